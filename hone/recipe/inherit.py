"""What a stage takes from elsewhere: the values of a profile, the adapter of an earlier stage.

Called by `load.py` and `profiles.py` after the overrides and before the check, with plain values.
What is given wins, key by key; what would contradict it is not taken. Left out: defaults, which
are the schema's.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from hone.recipe.faults import KeyPath, Origin, Origins, origin_of
from hone.recipe.schema import STAGES
from hone.recipe.shape import Shape, branches, meant, shape_at, type_name, value_at

OriginOf = Callable[[KeyPath], Origin]
"""The origin of a value that is taken, by its path below the mapping it is taken from."""

_NOT_CARRIED = ("before",)  # what is done with the adapter of the one stage before this one


def fill(
    given: dict[str, Any],
    path: KeyPath,
    below: Mapping[str, Any],
    origins: Origins,
    origin_below: OriginOf,
) -> None:
    """Adds to the mapping at `path` of `given` what `below` says and it does not, deep.

    A key that is excluded by a given one (`epochs` by `steps`), and a mapping of another type
    (`adapter: {type: full}`), take nothing from `below`. A mapping goes into every one of a list.
    """
    holder: dict[str, Any] = value_at(path, given)
    shape = shape_at(path, given)
    group = meant(shape, holder).get("alternatives", []) if shape else []
    decided = any(holder.get(key) is not None for key in group)
    for key, value in below.items():
        inner = (*path, key)

        def origin_inner(rest: KeyPath, key: str = key) -> Origin:
            return origin_below((key, *rest))

        if key not in holder:
            if not (decided and key in group):
                _take(given, inner, value, origins, origin_inner)
        elif isinstance(value, Mapping):
            upper = holder[key]
            parts = [inner] if isinstance(upper, dict) else []
            if isinstance(upper, list):
                parts = [(*inner, i) for i, part in enumerate(upper) if isinstance(part, dict)]
            for part in parts:
                if not _contradicts(value_at(part, given), value, shape_at(part, given)):
                    fill(given, part, value, origins, origin_inner)


def _take(
    given: dict[str, Any], path: KeyPath, value: Any, origins: Origins, origin_below: OriginOf
) -> None:
    value_at(path[:-1], given)[path[-1]] = copy.deepcopy(value)
    for rest in _paths(value):
        origins[(*path, *rest)] = origin_below(rest)


def _paths(value: Any, path: KeyPath = ()) -> list[KeyPath]:
    """The paths of a value and of all that it holds."""
    items = list(value.items() if isinstance(value, Mapping) else [])
    items = list(enumerate(value)) if isinstance(value, list) else items
    return [path, *(deeper for key, inner in items for deeper in _paths(inner, (*path, key)))]


def _contradicts(upper: dict[str, Any], lower: Mapping[str, Any], shape: Shape | None) -> bool:
    """True where the two mappings are of different types.

    Without a `type` the given one is of the lower one's, unless it has keys of another type only.
    """
    members = [member for member in branches(shape or {}) if type_name(member)]
    if not members or shape is None:
        return False
    of_lower = meant(shape, dict(lower))
    if "type" in upper:
        return bool(upper["type"] != type_name(of_lower))
    known = {key for member in members for key in member["properties"]}
    return not upper.keys() & known <= of_lower["properties"].keys()


def carry_over(given: dict[str, Any], origins: Origins) -> None:
    """Gives each stage the adapter settings of the nearest earlier one, where it has none itself.

    A stage whose method trains no adapters is passed over.
    """
    nearest: KeyPath | None = None
    stages = given.get("stages")
    for index, stage in enumerate(stages if isinstance(stages, list) else []):
        for method, settings in stage.items() if isinstance(stage, dict) else ():
            fields = STAGES[method].model_fields if method in STAGES else {}
            if "adapter" not in fields or not isinstance(settings, dict):
                continue
            path = ("stages", index, method)
            if nearest is not None:
                _carry(given, nearest, path, origins)
            nearest = (*path, "adapter") if isinstance(settings.get("adapter"), dict) else None


def _carry(given: dict[str, Any], source: KeyPath, path: KeyPath, origins: Origins) -> None:
    """Fills the adapter of the stage at `path` from the one at `source`."""
    settings = {
        key: value for key, value in value_at(source, given).items() if key not in _NOT_CARRIED
    }

    def origin_there(rest: KeyPath) -> Origin:
        origin = origin_of((*source, *rest[1:]), origins)
        if origin.inherited.startswith("stage "):
            return origin
        return replace(origin, inherited=f"stage {int(source[1]) + 1}")

    fill(given, path, {"adapter": settings}, origins, origin_there)


__all__ = ["carry_over", "fill"]
