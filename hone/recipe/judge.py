"""What is wrong with the values of a recipe, all of it: shorthands spelt out, then judged.

Called by `load.py` for a recipe and by `profiles.py` for a profile, which is a stage with gaps.
"""

import copy
from typing import Any

from pydantic import ValidationError

from hone.recipe.faults import KeyPath, Origins, origin_of
from hone.recipe.schema import Recipe
from hone.recipe.shape import meant, recipe_shape, value_at, walk
from hone.recipe.wording import mend, messages_of

_MOST_ROUNDS = 10


def spell_out(given: dict[str, Any], origins: Origins) -> None:
    """Replaces text by the mapping that it stands for: `data: a.jsonl` by `data: {path: ...}`."""
    for path, shape, value in list(walk(given, recipe_shape())):
        if not isinstance(value, str):
            continue
        key = meant(shape, {}).get("shorthand")
        if key:
            value_at(path[:-1], given)[path[-1]] = {key: value}
            origins[(*path, key)] = origin_of(path, origins)


def validate(expanded: dict[str, Any], given: object) -> tuple[Recipe | None, dict[KeyPath, str]]:
    """The recipe, or the messages of all faults.

    pydantic leaves out the rules across fields while a field is faulty; so what is faulty is mended
    and the rest is judged again, until nothing new comes to light.
    """
    trial = copy.deepcopy(expanded)
    found: dict[KeyPath, str] = {}
    for _ in range(_MOST_ROUNDS):
        try:
            recipe = Recipe.model_validate(trial)
        except ValidationError as error:
            errors = error.errors(include_url=False, include_input=False)
        else:
            return (None if found else recipe), found
        new = {
            path: message
            for path, message in messages_of(errors, given).items()
            if path not in found
        }
        if not new:
            break
        found |= new
        for path in new:
            mend(path, trial)
    return None, found
