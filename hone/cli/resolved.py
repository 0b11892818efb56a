"""Values as YAML, with where each is from beside it and its help above it, where that is wanted.

Called by `hone run --dry-run` (origins), `hone recipe show` (both) and `hone init` (help). What is
printed can be read as a recipe again.
"""

import json
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from hone.recipe.document import read_document
from hone.recipe.faults import KeyPath, Origin, dotted
from hone.recipe.shape import shape_at

INDENT = "  "
WIDTH = 100

HelpOf = Callable[[KeyPath], str]
"""The help of the value at a path; "" where there is none."""


class Line(NamedTuple):
    """A line of YAML, and where its value is from; "" for a line without a value."""

    text: str
    origin: str = ""
    is_comment: bool = False


def resolved_lines(
    resolved: Mapping[str, Any],
    origins: Mapping[str, str] | None = None,
    help_of: HelpOf = lambda path: "",
) -> list[str]:
    """Lines of YAML; each value is followed by a comment with the file and line it is from, and
    stands below its help.
    """
    lines = list(_Writer(origins, help_of).block(resolved, (), ""))
    width = max((len(line.text) for line in lines if line.origin), default=0)
    return [
        f"{line.text.ljust(width)}  # {line.origin}" if line.origin else line.text for line in lines
    ]


def help_in(recipe: Mapping[str, Any], below: KeyPath = ()) -> HelpOf:
    """The help of the fields of `recipe`, by their paths from `below` on."""

    def help_of(path: KeyPath) -> str:
        shape = shape_at((*below, *path), recipe) or {}
        return " ".join(str(shape.get("description", "")).split())

    return help_of


class _Writer:
    """Writes values with the origins (none: without them) and the help of each."""

    def __init__(self, origins: Mapping[str, str] | None, help_of: HelpOf) -> None:
        self.origins = origins
        self.help_of = help_of

    def block(self, value: Any, path: KeyPath, margin: str) -> Iterator[Line]:
        """The lines of a mapping or of a list that holds some, each behind `margin`."""
        if isinstance(value, Mapping):
            for key, item in value.items():
                yield from self.help((*path, key), margin)
                yield from self.item(f"{margin}{_scalar(key)}:", item, (*path, key), margin)
            return
        for index, item in enumerate(value):
            inner = (*path, index)
            if not _is_block(item):
                yield Line(f"{margin}- {_scalar(item)}", self.origin(inner))
                continue
            lines = list(self.block(item, inner, margin + INDENT))
            first = next(number for number, line in enumerate(lines) if not line.is_comment)
            for line in lines[:first]:
                yield Line(line.text.removeprefix(INDENT), is_comment=True)
            yield Line(f"{margin}- {lines[first].text.strip()}", lines[first].origin)
            yield from lines[first + 1 :]

    def item(self, start: str, item: Any, path: KeyPath, margin: str) -> Iterator[Line]:
        """A key with what it holds, on its own line or below."""
        if _is_block(item):
            yield Line(start)
            yield from self.block(item, path, margin + INDENT)
        else:
            yield Line(f"{start} {_scalar(item)}", self.origin(path))

    def help(self, path: KeyPath, margin: str) -> Iterator[Line]:
        """The help of the value at `path` as comments."""
        for text in textwrap.wrap(self.help_of(path), WIDTH - len(margin) - 2):
            yield Line(f"{margin}# {text}", is_comment=True)

    def origin(self, path: KeyPath) -> str:
        """Where the value, or the nearest thing that holds it, was given."""
        if self.origins is None:
            return ""
        for length in range(len(path), 0, -1):
            if found := self.origins.get(dotted(path[:length])):
                return found
        return "default"


def _is_block(value: Any) -> bool:
    """Whether a value stands on lines of its own; a list of plain values does not."""
    if isinstance(value, list):
        return any(isinstance(item, Mapping | list) for item in value)
    return isinstance(value, Mapping) and bool(value)


def _scalar(value: Any) -> str:
    """A value on one line; text stands without quotes where it is read as the same text."""
    if isinstance(value, str) and value.isprintable():
        read = read_document(f"{value}: {value}\n", Origin("text"))
        if not read.faults and read.value == {value: value}:
            return value
    return json.dumps(value, ensure_ascii=True)
