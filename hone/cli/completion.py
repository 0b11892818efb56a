"""What the shell offers after TAB: profiles, and the keys and values of a recipe.

Called by typer for the parameters that name these functions, in a process of its own for every
TAB: nothing below the torch line is imported, and a recipe that cannot be read offers no less.
"""

from pathlib import Path
from typing import Any

import typer

RECIPES = (".yaml", ".yml")


def complete_profiles(incomplete: str) -> list[str]:
    """The profiles that come with Hone, and the YAML files here."""
    from hone.recipe.profiles import profile_names

    return [name for name in [*profile_names(), *_recipes()] if name.startswith(incomplete)]


def complete_overrides(ctx: typer.Context, incomplete: str) -> list[str]:
    """The next part of a key, or the values that it may have behind "=".

    Bash breaks words at "=": there the key, and the "=" where more stands behind it, have become
    words before this one.
    """
    words = ["", "", *(ctx.params.get("overrides") or [])]
    if words[-1] == "=":
        return _values(words[-2], incomplete)
    if words[-1] and "=" not in words[-1] and words[-2] != "=" and not incomplete:
        return _values(words[-1], "")
    key, equals, value = incomplete.partition("=")
    if equals:
        return [f"{key}={each}" for each in _values(key, value)]
    return _keys(incomplete, ctx.params.get("recipe") or ctx.params.get("name"))


def _recipes() -> list[str]:
    return sorted(path.name for path in Path().iterdir() if path.suffix in RECIPES)


def _keys(incomplete: str, recipe: object) -> list[str]:
    """Keys that begin so, "=" behind those that take a value and a dot behind groups; a group that
    alone is left is opened.
    """
    from hone.recipe.shape import recipe_shape

    holder, dot, start = incomplete.rpartition(".")
    if dot:
        keys = _below(_shape_of(holder))
    else:
        keys = dict(recipe_shape()["properties"])
        methods = _below(keys.pop("stages")["items"])
        keys |= {name: methods[_method(name)] for name in _stages_of(recipe, list(methods))}
    found = {f"{holder}{dot}{key}": shape for key, shape in keys.items() if key.startswith(start)}
    offered = [f"{key}=" if _takes_value(shape) else f"{key}." for key, shape in found.items()]
    if len(found) == 1 and (inner := _below(next(iter(found.values())))):
        (key,) = found
        plain = [each for each in offered if each.endswith("=")]
        return plain + (_keys(f"{key}.", recipe) if inner else [])
    return offered


def _takes_value(shape: dict[str, Any]) -> bool:
    """True where a plain value may stand, and not only a group of settings."""
    from hone.recipe.shape import branches

    return any(branch.get("type") != "object" for branch in branches(shape))


def _values(key: str, start: str) -> list[str]:
    """What may stand behind `key=`: names, true and false, profiles."""
    from hone.recipe.shape import branches

    if key.endswith(".profile"):
        return complete_profiles(start)
    shape = _shape_of(key)
    names: list[object] = []
    for branch in branches(shape) if shape else ():
        names += branch.get("enum", [])
        names += [branch["const"]] if "const" in branch else []
        names += ["true", "false"] if branch.get("type") == "boolean" else []
    return [str(name) for name in names if str(name).startswith(start)]


def _shape_of(key: str) -> dict[str, Any]:
    """The shape of the value that a dotted key leads to; {} where it leads nowhere."""
    from hone.recipe.shape import recipe_shape

    first, *rest = key.split(".")
    top = recipe_shape()["properties"]
    methods = _below(top["stages"]["items"])
    shape = methods.get(_method(first)) or top.get(first) or {}
    for part in rest:
        shape = _below(shape).get(part, {})
    return dict(shape)


def _below(shape: dict[str, Any]) -> dict[str, Any]:
    """The keys that a mapping of this shape may have, in all its types."""
    from hone.recipe.shape import branches

    found: dict[str, Any] = {}
    for branch in branches(shape) if shape else ():
        for name, inner in branch.get("properties", {}).items():
            found[name] = _joined(found[name], inner) if name in found else inner
    return found


def _joined(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """A value that may be either: the `type` of the members of a union."""
    return {"anyOf": [one, other]}


def _method(name: str) -> str:
    """`sft` for `sft[1]`."""
    return name.partition("[")[0]


def _stages_of(recipe: object, methods: list[str]) -> list[str]:
    """The stages of a recipe as overrides name them; every method where it cannot be read."""
    from hone.errors import UserError
    from hone.recipe.document import read_document
    from hone.recipe.faults import Origin
    from hone.recipe.overrides import stage_names
    from hone.recipe.text import read_text

    try:
        value = read_document(read_text(Path(str(recipe))), Origin("recipe")).value
    except UserError:
        return methods
    stages = value.get("stages") if isinstance(value, dict) else None
    names = stage_names(stages) if isinstance(stages, list) else []
    return [name for name in names if _method(name) in methods] or methods
