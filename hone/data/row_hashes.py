"""Rows of files by the hash of what they say, so that equal ones are found in any file kind.

Used by `validate.py`, `split.py` and `statistics.py`. A row is hashed as JSON with its keys in
order: the order of columns, white space and the kind of file make no difference. 24 bytes are kept
of each row, 16 more of its prompt. Left out: samples of tokens (duplicates.py).
"""

import hashlib
import json
from array import array
from typing import Any

import numpy as np

from hone.data.duplicates import Found, Words, found_again, found_in
from hone.data.formats import Conversation, PromptCompletion, RowExample, sides_of
from hone.data.rows import RowError
from hone.data.sources import Source
from hone.seeds import Indices


def hash_of(*values: Any) -> int:
    """64 bits that are a pure function of the values as JSON; raises RowError."""
    try:
        text = json.dumps(values, sort_keys=True, default=str)
    except RecursionError:
        raise RowError("not readable: nested too deeply") from None
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def prompt_of(row: RowExample) -> Any:
    """What is given to the model before it answers first; None for plain text."""
    example = sides_of(row)[0]
    if isinstance(example, PromptCompletion):
        return example.prompt
    if isinstance(example, Conversation):
        answers = [
            i
            for i, message in enumerate(example.messages)
            if message["role"] == "assistant" and i >= example.given
        ]
        return example.messages[: answers[0]] if answers else None
    return None


class RowHashes:
    """The hashes of rows and of their prompts, with the places of the rows. seed: hashed too."""

    def __init__(self, seed: int | None = None) -> None:
        self._seed = seed
        self._places = array("q")  # source and number, in turns
        self._rows = array("Q")
        self._prompts = array("Q")
        self._prompt_rows = array("q")
        self._sources: list[tuple[Source, int]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add_source(self, source: Source) -> None:
        """The rows added from now on are of this source."""
        self._sources.append((source, len(self)))

    def add(self, file: int, number: int, values: Any, prompt: Any = None) -> None:
        """A row by its place in the source that was added last; raises RowError."""
        whole = hash_of(self._seed, values)
        if prompt is not None:
            self._prompts.append(hash_of(prompt))
            self._prompt_rows.append(len(self))
        self._places.extend((file, number))
        self._rows.append(whole)

    def place(self, row: int) -> str:
        """How a row is named to a person."""
        source = next(source for source, begin in reversed(self._sources) if begin <= row)
        return source.place(self._places[2 * row], self._places[2 * row + 1])

    def repeated(self, most: int) -> Found:
        """Rows that say what an earlier one says."""
        hashes, rows = self._whole()
        return found_again(hashes, rows, most)

    def overlap(self, other: "RowHashes", most: int) -> tuple[Found, Found]:
        """(rows, prompts) of this one that stand in the other one too."""
        whole, prompts = self._whole(), self._asked()
        return (
            found_in(*whole, *other._whole(), most),
            found_in(*prompts, *other._asked(), most),
        )

    def values(self) -> Words:
        """(N,) the hashes of all rows."""
        return self._whole()[0]

    def _whole(self) -> tuple[Words, Indices]:
        return np.array(self._rows, dtype=np.uint64), np.arange(len(self), dtype=np.int64)

    def _asked(self) -> tuple[Words, Indices]:
        return (
            np.array(self._prompts, dtype=np.uint64),
            np.array(self._prompt_rows, dtype=np.int64),
        )
