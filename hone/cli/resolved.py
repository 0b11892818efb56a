"""The resolved recipe as YAML, with the origin of each value beside it: `hone run --dry-run`."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from hone.recipe.faults import KeyPath, dotted

INDENT = "  "


Line = tuple[str, str]
"""A line of YAML, and where its value is from; "" for a line without a value."""


def resolved_lines(resolved: Mapping[str, Any], origins: Mapping[str, str]) -> list[str]:
    """Lines of YAML; each value is followed by a comment with the file and line it is from."""
    lines = list(_block(resolved, (), "", origins))
    width = max((len(text) for text, origin in lines if origin), default=0)
    return [f"{text.ljust(width)}  # {origin}" if origin else text for text, origin in lines]


def _block(value: Any, path: KeyPath, margin: str, origins: Mapping[str, str]) -> Iterator[Line]:
    """The lines of a mapping or of a list that holds some, each behind `margin`."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            inner = (*path, key)
            if _is_block(item):
                yield f"{margin}{key}:", ""
                yield from _block(item, inner, margin + INDENT, origins)
            else:
                yield f"{margin}{key}: {_scalar(item)}", _origin(inner, origins)
        return
    for index, item in enumerate(value):
        inner = (*path, index)
        if _is_block(item):
            (first, origin), *rest = _block(item, inner, margin + INDENT, origins)
            yield f"{margin}- {first.strip()}", origin
            yield from rest
        else:
            yield f"{margin}- {_scalar(item)}", _origin(inner, origins)


def _is_block(value: Any) -> bool:
    """Whether a value stands on lines of its own; a list of plain values does not."""
    if isinstance(value, list):
        return any(isinstance(item, Mapping | list) for item in value)
    return isinstance(value, Mapping) and bool(value)


def _scalar(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _origin(path: KeyPath, origins: Mapping[str, str]) -> str:
    """Where the value, or the nearest thing that holds it, was given."""
    for length in range(len(path), 0, -1):
        if found := origins.get(dotted(path[:length])):
            return found
    return "default"
