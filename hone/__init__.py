"""Hone: from a base model and your data to a fine-tuned model that is proven."""

import logging

__version__ = "0.1.0"

# PEFT imports bitsandbytes where it is installed, which then tells of packages that nobody needs.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
