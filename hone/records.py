"""What travels between the stages of the work: plain records, without torch.

`data/` makes them, `forest.py` lays them into batches. A `Sample` is one tree of segments; for
supervised data it has a single segment. Preference and policy samples hang several completions on
one prompt. A `Task` comes from `environments/` and is answered by a group of completions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Segment:
    """A run of tokens that stands right after its parent's last token.

    tokens: (L,) int32 ids. trained: (L,) bool, True where the token is a target of the loss.
    parent: index of the parent segment in the sample, -1 for the root. constants: by name, (L,)
    numbers that travel with the tokens to the loss (log-probabilities of a reference, advantages).

    Example: Segment(tokens=array([5, 6, 7]), trained=array([False, True, True]), parent=-1)
    """

    tokens: np.ndarray
    trained: np.ndarray
    parent: int = -1
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One tree of segments, parents before children; `index` is its row in the prepared data."""

    index: int
    segments: tuple[Segment, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of all segments; a shared prompt counts once."""
        return sum(len(segment.tokens) for segment in self.segments)


@dataclass(frozen=True)
class Task:
    """What is asked once, and answered by a group of completions.

    index: its number in its split, from 0. prompt: text, or messages as in `hone.data.messages`.
    columns: what else is known of it, for rewards. gold: an answer that scores full marks, where
    there is one. place: file and line, in words.

    Example: Task(0, "What is 2 + 3?", {"answer": "5"}, gold="5", place="sums.jsonl:1")
    """

    index: int
    prompt: str | list[dict[str, Any]]
    columns: Mapping[str, Any] = field(default_factory=dict)
    gold: str | None = None
    place: str = ""
