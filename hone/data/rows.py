"""A row of data with the place it came from, the fault that concerns one row only, and its words.

Made by `sources.py`; `formats.py` and its neighbours and `chat.py` raise `RowError` for a row they
cannot use, and `prepare.py` decides whether that stops the work or is counted.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hone.errors import UserError, nearest


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


def missing_key(key: str, keys: Iterable[str], kind: str = "column") -> str:
    """The message for a column (or key) that is not there, or holds nothing."""
    names = [printable(name) for name in keys]
    if key in names:
        return f"the {kind} `{key}` is empty (null)"
    close = nearest(key, names)
    meant = f"; did you mean `{close}`?" if close else ""
    return f"there is no {kind} `{key}`; the {kind}s are {listed(names)}{meant}"


def listed(names: Iterable[str]) -> str:
    """Names in quotes, one after the other."""
    return ", ".join(f"`{printable(name)}`" for name in names) or "none"


def printable(value: object) -> str:
    """A value of a row as part of a message; halves of surrogate pairs are written as escapes."""
    return str(value).encode(errors="backslashreplace").decode()
