"""What pydantic found wrong, in plain words, with the nearest valid name.

Called by `load.py`. pydantic judges; the words come from the schema and from the value as the
person wrote it, never from the expanded one. Errors of union members that were not meant are
dropped.
"""

from collections.abc import Iterable
from typing import Any

from pydantic_core import ErrorDetails

from hone.errors import nearest
from hone.recipe.faults import KeyPath, quoted, shown_key
from hone.recipe.node import NoneGiven
from hone.recipe.shape import (
    Shape,
    branches,
    child,
    example,
    expected,
    is_union,
    item,
    meant,
    recipe_shape,
    shape_at,
    type_name,
    value_at,
)

# What other tools call it; the nearest name by its letters would be another key or none.
_ELSEWHERE = {
    "lr": "learning_rate",
    "scheduler": "schedule",
    "lr_scheduler_type": "schedule",
    "max_steps": "steps",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "batch_size": "batch",
    "train_batch_size": "batch",
    "max_length": "max_tokens",
    "max_seq_length": "max_tokens",
    "warmup_steps": "warmup",
    "warmup_ratio": "warmup",
    "dataset": "data",
    "eval": "evaluation",
    "optim": "optimizer",
    "r": "rank",
    "lora_alpha": "alpha",
    "target_modules": "targets",
    "eps": "epsilon",
    "base_model": "model",
    "vocab_size": "vocabulary",
}


def messages_of(errors: Iterable[ErrorDetails], given: object) -> dict[KeyPath, str]:
    """One message for each faulty path; `given` is the recipe as written."""
    by_path: dict[KeyPath, ErrorDetails] = {}
    for error in errors:
        by_path.setdefault(_path_of(error, given), error)
    inner = [
        path
        for path, error in by_path.items()
        if not _holds_another(path, by_path) and not _is_explained(path, error, given)
    ]
    return {path: _message(path, by_path[path], given) for path in inner}


def _holds_another(path: KeyPath, paths: Iterable[KeyPath]) -> bool:
    """True where a fault lies deeper: then this one is of a union's member that was not meant."""
    return any(len(other) > len(path) and other[: len(path)] == path for other in paths)


def _is_explained(path: KeyPath, error: ErrorDetails, given: object) -> bool:
    """True where a key seems to be missing and an unknown one stands there: that is reported."""
    holder = value_at(path, given)
    if not isinstance(error.get("ctx", {}).get("error"), NoneGiven) or not isinstance(holder, dict):
        return False
    known = meant(shape_at(path, given) or {}, holder).get("properties", {})
    return any(key not in known for key in holder)


def _path_of(error: ErrorDetails, given: object) -> KeyPath:
    """pydantic's location without the names of union members."""
    location = list(error["loc"])
    shape: Shape | None = recipe_shape()
    path: KeyPath = ()
    value = given
    while location and shape is not None:
        if is_union(shape):
            location.pop(0)
            if not location:
                break
        key = location.pop(0)
        shape = child(shape, value, key)
        value = item(value, key)
        path = (*path, key)
    if error["type"] == "missing" and isinstance(path[-1], int):
        return path[:-1]
    return (*path, "type") if error["type"].startswith("union_tag") else path


def _message(path: KeyPath, error: ErrorDetails, given: object) -> str:
    if error["type"] == "extra_forbidden":
        return _unknown_key(path, given)
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    shape = shape_at(path, given) or {}
    if error["type"].startswith("union_tag"):
        names = [name for branch in _siblings(path, given) if (name := type_name(branch))]
        shape = {"enum": names}
    if error["type"] == "missing" and item(value_at(path[:-1], given), path[-1]) is None:
        return f"is missing; expected {expected(shape)}{_help(shape)}"
    return f"expected {expected(shape)}, found {_found(value_at(path, given), shape)}"


def _help(shape: Shape) -> str:
    return f" ({shape['description'].rstrip('.')})" if "description" in shape else ""


def _siblings(path: KeyPath, given: object) -> list[Shape]:
    """The members of the union that holds the key at `path`."""
    holder = shape_at(path[:-1], given)
    return branches(holder) if holder is not None else []


def _found(value: object, shape: Shape) -> str:
    """The value as written, with what it seems to have been meant for."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    if not isinstance(value, str):
        return quoted(value)
    kinds = {branch.get("type") for branch in branches(shape)}
    if kinds & {"integer", "number"}:
        return _found_for_number(value)
    if "boolean" in kinds and value.lower() in ("yes", "on", "no", "off"):
        meant_value = "true" if value.lower() in ("yes", "on") else "false"
        return f"{quoted(value)}; did you mean {quoted(meant_value)}?"
    names = [name for branch in branches(shape) for name in _names(branch)]
    return quoted(value) + _offer(value, names)


def _found_for_number(value: str) -> str:
    try:
        float(value)
    except ValueError:
        return f"{quoted(value)}"
    return f"the text {quoted(value)}; without quotes it is a number"


def _names(branch: Shape) -> list[str]:
    return [name for name in [*branch.get("enum", []), branch.get("const")] if name is not None]


def _offer(name: str, valid: Iterable[str]) -> str:
    close = nearest(name[:100].lower(), valid)
    return f"; did you mean {quoted(close)}?" if close else ""


def _unknown_key(path: KeyPath, given: object) -> str:
    """Says what the key might have been: a neighbour, a key further down, one of the top level."""
    key = str(path[-1])
    holder_shape = shape_at(path[:-1], given) or {}
    here = meant(holder_shape, value_at(path[:-1], given))
    keys: dict[str, Any] = here.get("properties", {})
    start = f"unknown key {quoted(key)}"
    wished = _ELSEWHERE.get(key, key)
    if wished in keys:
        return f'{start}; did you mean "{wished}"?'
    for branch in branches(holder_shape):
        if wished in branch.get("properties", {}) and type_name(branch):
            return (
                f'{start} with type "{type_name(here)}"; it belongs to type "{type_name(branch)}"'
            )
        of_items = meant(branch.get("items", {}), {}) if "items" in branch else {}
        if wished in of_items.get("properties", {}):
            return f"{start}; it belongs to the items of a list"
    if close := nearest(key[:100], keys):
        return f'{start}; did you mean "{close}"?'
    if below := _find_below(wished, here):
        return f'{start}; did you mean "{below}"?'
    if wished in recipe_shape()["properties"]:
        return f'{start}; "{wished}" belongs to the top level of the recipe'
    return f"{start}; expected one of {', '.join(map(shown_key, keys))}"


def _find_below(key: str, shape: Shape) -> str | None:
    """The dotted key that ends in `key` one or two mappings further down."""
    for name, inner in shape.get("properties", {}).items():
        for branch in branches(inner):
            if key in branch.get("properties", {}):
                return f"{name}.{key}"
    return None


def mend(path: KeyPath, value: object) -> None:
    """Takes a faulty value out, so that pydantic goes on to the rules that it kept for later.

    A key that is needed gets an example instead; keys that exclude each other stay as they are and
    what holds them goes; a faulty stage stays.
    """
    for length in range(len(path), 0, -1):
        holder, key = value_at(path[: length - 1], value), path[length - 1]
        if not isinstance(holder, dict) or not isinstance(key, str):
            if length <= 2:
                return
            continue
        shape = meant(shape_at(path[: length - 1], value) or {}, holder)
        if key in shape.get("alternatives", []):
            continue
        if key in shape.get("required", []):
            holder[key] = example(shape["properties"][key])
        else:
            holder.pop(key, None)
        return
