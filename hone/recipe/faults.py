"""A fault in a recipe and where it stands: the records that the other files of this folder pass on.

Made by `document.py`, `overrides.py`, `environment.py`, `places.py` and `load.py`, which shows all
of them in one `UserError`.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath

from hone.errors import UserError

KeyPath = tuple[str | int, ...]
"""The keys and indexes that lead from the top of a recipe to a value: ("stages", 0, "sft")."""

Origins = dict[KeyPath, "Origin"]
"""Where each value that a person gave stands; defaults are not in it."""

_COMMAND_LINE = "command line"
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_LONGEST_NAME = 60
_MOST_SHOWN = 100  # a file of another kind has thousands


@dataclass(frozen=True)
class Origin:
    """A file and a line (from 1), or the command line (without one).

    `order` is the rank among the sources: the file's faults are shown before the command line's.
    `inherited` says how a value came to a place where it is not written: "profile chat", "stage 1".
    """

    source: str
    line: int | None = None
    order: int = 0
    inherited: str = ""

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"

    @property
    def is_command_line(self) -> bool:
        """True for an override."""
        return self.source == _COMMAND_LINE

    @property
    def name(self) -> str:
        """As `str`, with the file's name alone instead of its path; or how it was inherited."""
        if self.inherited:
            return self.inherited
        if self.is_command_line:
            return self.source
        return str(Origin(PurePath(self.source).name or self.source, self.line))


def command_line(number: int) -> Origin:
    """The origin of the override with this number (from 0)."""
    return Origin(_COMMAND_LINE, order=number + 1)


@dataclass(frozen=True)
class Fault:
    """One mistake: where it stands, the value it is about, what was found and what was expected."""

    origin: Origin
    path: KeyPath
    message: str

    def __str__(self) -> str:
        return ": ".join(filter(None, (str(self.origin), dotted(self.path), self.message)))


def dotted(path: KeyPath) -> str:
    """("stages", 0, "sft", "steps") as `stages[0].sft.steps`."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{shown_key(part)}" for part in path]
    return "".join(parts).removeprefix(".")


def shown_key(key: str) -> str:
    """A key as it is printed: on one line, and not longer than anybody reads."""
    if _PLAIN_KEY.fullmatch(key) and len(key) <= _LONGEST_NAME:
        return key
    return quoted(key)


def quoted(value: object) -> str:
    """A value in double quotes, on one line and cut where it is too long."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    if len(text) > _LONGEST_NAME:
        text = text[: _LONGEST_NAME - 3] + "..."
    return json.dumps(text, ensure_ascii=not text.isprintable())


def origin_of(path: KeyPath, origins: Mapping[KeyPath, Origin]) -> Origin:
    """Where the value at `path` stands, or the nearest value that holds it."""
    while path not in origins and path:
        path = path[:-1]
    return origins[path]


def raise_faults(faults: Iterable[Fault], *, hint: str) -> None:
    """Raises one UserError with a line for each fault in the order of the lines; none: returns."""
    ordered = sorted(faults, key=lambda fault: (fault.origin.order, fault.origin.line or 0))
    lines = [str(fault) for fault in ordered[:_MOST_SHOWN]]
    if len(ordered) > _MOST_SHOWN:
        lines.append(f"and {len(ordered) - _MOST_SHOWN} more")
    if lines:
        raise UserError("\n".join(lines), hint=hint, exit_code=2)
