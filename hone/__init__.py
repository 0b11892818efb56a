"""Hone: from a base model and your data to a fine-tuned model that is proven."""

__version__ = "0.1.0"
