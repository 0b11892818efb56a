"""The quickstart: a small corpus, its recipe, and the difference that training makes."""
