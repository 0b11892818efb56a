"""The reward of the GRPO benchmark, as TRL calls rewards and as a Hone recipe names them."""

from typing import Any


def even(completions: list[str], **_: Any) -> list[float]:
    """The share of words whose number is even; half of all words are."""
    return [
        sum(word[-1] in "02468" for word in text.split()) / max(1, len(text.split()))
        for text in completions
    ]
