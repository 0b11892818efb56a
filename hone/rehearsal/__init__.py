"""The rehearsal of a recipe: every stage for two steps on a few rows, all the way to its result."""
