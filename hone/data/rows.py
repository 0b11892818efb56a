"""A row of data with the place it came from, and the fault that concerns one row only.

Made by `sources.py`; `formats.py` and `chat.py` raise `RowError` for a row they cannot use, and
`prepare.py` decides whether that stops the work or is counted.
"""

from dataclasses import dataclass
from typing import Any

from hone.errors import UserError


class RowError(UserError):
    """One row cannot be used; `prepare.py` puts its place in front of the message."""


@dataclass(frozen=True)
class Row:
    """One row: `values` by column, `source` the index of its file, `number` its line or row there,
    from 1.
    """

    source: int
    number: int
    values: dict[str, Any]


@dataclass(frozen=True)
class BadRow:
    """A row that could not even be read, and why."""

    source: int
    number: int
    message: str


def kind_of(value: object) -> str:
    """What a JSON value is, in words for a message."""
    names = {
        str: "text",
        bool: "true or false",
        list: "a list",
        dict: "an object",
        type(None): "nothing (null)",
    }
    return names.get(
        type(value), "a number" if isinstance(value, int | float) else type(value).__name__
    )
