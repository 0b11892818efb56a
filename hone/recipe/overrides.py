"""Values from the command line: `sft.steps=200`, `sft[1].learning_rate=1e-4`, `seed=3`.

Called by `load.py` before the recipe is checked. A key begins with a key of the recipe or with a
method, which stands for the only stage of that method (`sft[1]`: the second one). The value is
YAML. Whether the key's last parts exist is left to the check of the whole recipe.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from hone.errors import nearest
from hone.recipe.document import read_document
from hone.recipe.faults import Fault, KeyPath, Origin, Origins, command_line, dotted, quoted
from hone.recipe.shape import item, meant, recipe_shape, shape_at

_KEY = re.compile(r"\w{1,60}(?:\.\w{1,60}|\[\d{1,6}\])*")
_PART = re.compile(r"\w+")


class _NoSuchPlace(Exception):
    """The override's key leads nowhere; the text says why."""


def apply_overrides(
    recipe: dict[str, Any],
    origins: Origins,
    overrides: Sequence[str],
    after_each: Callable[[], None],
) -> list[Fault]:
    """Changes `recipe` and `origins` in place, in order; returns what could not be done.

    after_each is called behind every override, so that the next one finds shorthands spelt out.
    """
    faults = []
    for number, override in enumerate(overrides):
        origin = command_line(number)
        try:
            faults += _apply(recipe, origins, override, origin)
            after_each()
        except _NoSuchPlace as reason:
            faults.append(Fault(origin, (), f"{quoted(override)}: {reason}"))
    return faults


def _apply(recipe: dict[str, Any], origins: Origins, text: str, origin: Origin) -> list[Fault]:
    key, equals, value_text = text.partition("=")
    if not equals or not _KEY.fullmatch(key.strip()):
        raise _NoSuchPlace("expected KEY=VALUE, for example sft.steps=200")
    path = _path_of(key.strip(), recipe)
    document = read_document(value_text, origin, path)
    if not document.faults:
        _set(recipe, origins, path, document.value, origin)
        origins.update(document.origins)
    return document.faults


def _path_of(key: str, recipe: dict[str, Any]) -> KeyPath:
    first, *rest = (int(part) if part.isdecimal() else part for part in _PART.findall(key))
    known = list(recipe_shape()["properties"])
    methods = list(meant(recipe_shape()["properties"]["stages"]["items"], {})["properties"])
    if first in methods:
        return _stage_path(str(first), rest, recipe)
    if first not in known:
        stages = recipe.get("stages")
        names = stage_names(stages if isinstance(stages, list) else [])
        there = {name.partition("[")[0] for name in names}
        methods.sort(key=there.__contains__)  # the last one is offered first
        raise _NoSuchPlace(f"unknown key {quoted(first)}; {_offer(str(first), methods)}")
    return (first, *rest)


def _offer(name: str, methods: list[str]) -> str:
    """A setting of a stage with the method before it, else the nearest name, else all names."""
    known = [*recipe_shape()["properties"], *methods]
    for method in reversed(methods):
        stage_shape = shape_at(("stages", 0, method), {"stages": [{}]}) or {}
        if name in meant(stage_shape, {})["properties"]:
            return f"did you mean {quoted(f'{method}.{name}')}?"
    close = nearest(name, known)
    return f"did you mean {quoted(close)}?" if close else f"expected one of {', '.join(known)}"


def _stage_path(method: str, rest: list[str | int], recipe: dict[str, Any]) -> KeyPath:
    """The path of a setting in the only stage of a method, or in the one `rest` begins with."""
    stages = recipe.get("stages")
    listed = stages if isinstance(stages, list) else []
    found = [
        index for index, stage in enumerate(listed) if isinstance(stage, dict) and method in stage
    ]
    wished = rest[0] if rest else None
    if isinstance(wished, int):
        if wished >= len(found):
            raise _NoSuchPlace(f"there is no {method}[{wished}]; {_stages_there(listed)}")
        return ("stages", found[wished], method, *rest[1:])
    if not found:
        raise _NoSuchPlace(f"there is no stage {quoted(method)}; {_stages_there(listed)}")
    if len(found) > 1:
        raise _NoSuchPlace(f"{quoted(method)} may be one of several; {_stages_there(listed)}")
    return ("stages", found[0], method, *rest)


def stage_names(stages: Sequence[object]) -> list[str]:
    """Each stage by the name that addresses it: pretrain, sft[0], sft[1]."""
    methods = [next(iter(stage)) for stage in stages if isinstance(stage, dict) and stage]
    return [
        f"{method}[{methods[:index].count(method)}]" if methods.count(method) > 1 else method
        for index, method in enumerate(methods)
    ]


def _stages_there(stages: Sequence[object]) -> str:
    return f"the recipe has {', '.join(stage_names(stages)) or 'none'}"


def _set(
    recipe: dict[str, Any], origins: Origins, path: KeyPath, value: object, origin: Origin
) -> None:
    """Puts a value at `path`; mappings on the way that are not there are made."""
    holder: Any = recipe
    for depth, key in enumerate(path[:-1]):
        inner = _step(holder, key, path[: depth + 1])
        if inner is None:
            inner = {}
            holder[key] = inner
            origins[path[: depth + 1]] = origin
        holder = inner
    last = path[-1]
    _step(holder, last, path)
    if value is not None:
        _take_back_alternatives(recipe, origins, path)
    _forget(origins, path)
    holder[last] = value


def _step(holder: Any, key: str | int, path: KeyPath) -> Any:
    """What `holder` has at `key`, None when nothing; raises where it can hold no such key."""
    if isinstance(holder, dict) and isinstance(key, str):
        return holder.get(key)
    if isinstance(holder, list) and isinstance(key, int):
        if key < len(holder):
            return holder[key]
        raise _NoSuchPlace(f"{quoted(dotted(path[:-1]))} has {len(holder)} items, from 0")
    kinds: dict[type, str] = {list: "a list", dict: "a mapping"}
    found = kinds.get(type(holder)) or quoted(holder)
    raise _NoSuchPlace(f"{quoted(dotted(path[:-1]))} is {found}, which has no {quoted(key)}")


def _take_back_alternatives(recipe: dict[str, Any], origins: Origins, path: KeyPath) -> None:
    """Removes what the file says for keys that the one at `path` excludes: `epochs` for `steps`."""
    holder_shape = shape_at(path[:-1], recipe)
    holder = recipe
    for key in path[:-1]:
        holder = item(holder, key)
    if holder_shape is None or not isinstance(holder, dict):
        return
    alternatives = meant(holder_shape, holder).get("alternatives", [])
    for other in alternatives if path[-1] in alternatives else []:
        origin = origins.get((*path[:-1], other))
        if other != path[-1] and other in holder and origin and not origin.is_command_line:
            _forget(origins, (*path[:-1], other))
            del holder[other]


def _forget(origins: Origins, path: KeyPath) -> None:
    """Removes the origins of a value and of what it holds."""
    for known in [known for known in origins if known[: len(path)] == path]:
        del origins[known]
