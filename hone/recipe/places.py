"""Where the files, folders and Hub ids of a recipe are.

Called by `load.py`. A relative path belongs to the recipe's folder; one from the command line to
the current directory first. What exists becomes absolute; what looks like a path and does not exist
is a fault; the rest is taken for a Hub id, which nobody is asked about here.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hone.errors import nearest
from hone.recipe.environment import escape, has_variable
from hone.recipe.faults import Fault, KeyPath, Origins, origin_of, quoted
from hone.recipe.shape import place_words, recipe_shape, value_at, walk

_DATA_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
_PACKED_SUFFIXES = (".gz", ".zst", ".bz2", ".xz", ".zip")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
_BUILT_IN_TEMPLATES = ("auto", "chatml", "alpaca", "llama")
_MOST_NAMES = 5_000  # names of a folder that are compared with a missing one
_MOST_LISTED = 5
_LONGEST_NAME = 255


def find_places(
    recipe: dict[str, Any], given: dict[str, Any], origins: Origins, folder: Path
) -> list[Fault]:
    """Makes the paths in `recipe` (expanded) absolute; returns a fault for each that is missing.

    `given` is the recipe as written: only the paths that were found from the current directory are
    changed in it, since resuming may begin in another one.
    """
    faults = []
    for path, kind in list(_marked(recipe)):
        text, name = _file_and_name(value_at(path, recipe), kind)
        written, _ = _file_and_name(value_at(path, given), kind)
        origin = origin_of(path, origins)
        folders = [Path.cwd()] if origin.is_command_line else []
        found = _find(text, [*folders, folder])
        if _names_no_file(text, name, kind):
            continue
        if found is not None:
            _put(recipe, path, str(found) + name)
            from_here = bool(folders) and found == _join(folders[0], text)
            if from_here and not _is_rooted(text) and found != _join(folder, text):
                _put(given, path, os.path.join(escape(str(folders[0])), written) + name)
        problem = _find_problem(text, written, kind, found, folder)
        if problem:
            faults.append(Fault(origin, path, problem))
            if _looks_like_path(text, kind, folder):
                _put(recipe, path, str(_join(folder, text)) + name)
    return faults


def rebase(recipe: dict[str, Any], folder: Path, written: str) -> None:
    """Relative paths that exist in `folder` become those of the place where `written` names it."""
    for path, kind in list(_marked(recipe)):
        text, name = _file_and_name(value_at(path, recipe), kind)
        if _is_rooted(text) or has_variable(text) or _names_no_file(text, name, kind):
            continue
        if _find(text, [folder]) is not None:
            _put(recipe, path, os.path.join(written, text) + name)


def _marked(recipe: object) -> Iterator[tuple[KeyPath, str]]:
    """The path and the kind of every text that names a place."""
    for path, shape, value in walk(recipe, recipe_shape()):
        kind = shape.get("place")
        if kind and isinstance(value, str):
            yield path, kind
        elif kind and isinstance(value, list):
            yield from (((*path, i), kind) for i, part in enumerate(value) if isinstance(part, str))


def _file_and_name(text: str, kind: str) -> tuple[str, str]:
    """`reward.py:distinct` of kind `code` as the file and `:distinct`; other places as they are."""
    file, colon, name = text.rpartition(":")
    return (file, colon + name) if kind == "code" and colon else (text, "")


def _names_no_file(text: str, name: str, kind: str) -> bool:
    """True for a built-in template, and for a word where code may be named."""
    return (kind == "template" and text in _BUILT_IN_TEMPLATES) or (kind == "code" and not name)


def _put(recipe: Any, path: KeyPath, value: str) -> None:
    value_at(path[:-1], recipe)[path[-1]] = value


def _is_rooted(text: str) -> bool:
    return os.path.isabs(text) or text.startswith("~")


def _join(folder: Path, text: str) -> Path:
    return Path(os.path.abspath(os.path.join(folder, os.path.expanduser(text))))


def _find(text: str, folders: list[Path]) -> Path | None:
    candidates = [_join(folder, text) for folder in folders] if text and "\0" not in text else []
    return next((path for path in candidates if os.path.exists(path)), None)


def _find_problem(
    text: str, written: str, kind: str, found: Path | None, folder: Path
) -> str | None:
    if found is not None:
        if kind in ("model", "tokenizer") and not found.is_dir():
            return f"{quoted(written)} is a file; expected a model's folder or a Hub id"
        if kind == "template" and not found.is_file():
            return f"{quoted(written)} is a folder; expected a Jinja file"
        if kind == "code" and not found.is_file():
            return f"{quoted(written)} is a folder; expected file.py:name"
        return None
    if kind in ("model", "tokenizer", "data") and not _looks_like_path(text, kind, folder):
        if _HUB_ID.fullmatch(text):
            return None
        return f"{quoted(written)} neither exists nor is a Hub id; expected a path or OWNER/NAME"
    return _missing(text, written, kind, folder)


def _looks_like_path(text: str, kind: str, folder: Path) -> bool:
    """True for a rooted or dotted path and for a data file's name, a misspelt suffix included."""
    if kind == "code":
        return True
    if text.startswith((".", "/", "~")) or kind != "data":
        return text.startswith((".", "/", "~"))
    if text.lower().endswith(_DATA_SUFFIXES + _PACKED_SUFFIXES):
        return True
    return bool(Path(text).suffix) and Path(text).stem in map(_stem, names_in(folder))


def _missing(text: str, written: str, kind: str, folder: Path) -> str:
    """Names the folder that was looked into and the nearest name in it.

    Neither where a variable is part of the path: its value is not shown.
    """
    if not text or has_variable(written):
        return f"{quoted(written)} names nothing that exists; expected {place_words(kind)}"
    target = _join(folder, text)
    while not os.path.exists(target.parent):
        target = target.parent
    missing = f"nothing named {quoted(target.name)} in {target.parent}"
    names = names_in(target.parent)
    built_in = _BUILT_IN_TEMPLATES if kind == "template" else ()
    if close := _nearest_name(target.name, [*names, *built_in]):
        return f"{quoted(written)} does not exist: {missing}; did you mean {quoted(close)}?"
    there = ", ".join(sorted(name for name in names if not name.startswith("."))[:_MOST_LISTED])
    return f"{quoted(written)} does not exist: {missing}, which holds {there or 'nothing'}"


def _nearest_name(wished: str, names: list[str]) -> str | None:
    """The name most like the wished one, the suffix aside: any two `.jsonl` files look alike."""
    stem = nearest(_stem(wished)[:_LONGEST_NAME], map(_stem, names))
    same = sorted(name for name in names if _stem(name) == stem)
    return nearest(wished[:_LONGEST_NAME], same) or next(iter(same), None)


def _stem(name: str) -> str:
    return name.partition(".")[0] or name


def names_in(folder: Path) -> list[str]:
    """The names in a folder, not all of a very large one; none where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for _, entry in zip(range(_MOST_NAMES), entries, strict=False)]
    except OSError:
        return []
