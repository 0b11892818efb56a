"""A recipe file and overrides to a checked recipe, or all that is wrong with it at once.

Called by `hone check`, `hone run`, `hone data show` and, from a run's `recipe.resolved.json`, by
`hone resume`. Overrides win over the file, the file over the defaults. Nothing here looks into the
data or the model: that is the work of `stages/`.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hone.errors import UserError, nearest
from hone.recipe.document import Document, read_document
from hone.recipe.environment import expand
from hone.recipe.faults import Fault, KeyPath, Origin, Origins, dotted, origin_of, raise_faults
from hone.recipe.overrides import apply_overrides
from hone.recipe.places import find_places, names_in
from hone.recipe.schema import Recipe
from hone.recipe.shape import Shape, meant, recipe_shape, value_at, walk
from hone.recipe.wording import mend, messages_of

_HINT = "`hone recipe schema` lists every key with its meaning"
_MOST_BYTES = 200_000
_MOST_ROUNDS = 10


@dataclass(frozen=True)
class LoadedRecipe:
    """A checked recipe with where it came from.

    recipe: variables expanded, existing paths absolute; for the running program only.
    text: the file as given. resolved: JSON-able, with all defaults and with variables as written.
    origins: for each leaf of `resolved`, `recipe.yaml:12`, `command line` or `default`.
    folder: the absolute folder that relative paths belong to.
    """

    recipe: Recipe
    text: str
    resolved: dict[str, Any]
    origins: dict[str, str]
    folder: Path


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Reads and checks a recipe; raises one UserError (exit code 2) with a line for each fault."""
    text = _read_text(path)
    origin = Origin(str(path), 1)
    document = read_document(text, origin)
    given = _mapping_of(document, origin)
    faults = list(document.faults)
    _spell_out(given, document.origins)
    faults += apply_overrides(
        given, document.origins, overrides, lambda: _spell_out(given, document.origins)
    )
    return _check(given, document.origins, faults, path.absolute().parent, text)


def load_resolved(resolved: dict[str, Any], folder: Path) -> LoadedRecipe:
    """The recipe of a run that began before, from its `recipe.resolved.json`; `text` is empty.

    Variables are expanded again. Raises UserError as `load_recipe` does, but not for a file that is
    gone: what a run has begun with is in its cache, and whoever still needs the file will say so.
    """
    given = copy.deepcopy(resolved)
    origins: Origins = {(): Origin("recipe.resolved.json")}
    if not isinstance(given, dict):
        raise_faults([Fault(origins[()], (), "expected a mapping")], hint=_HINT)
    for path in _leaves(given):
        origins[path] = origins[()]
    return _check(given, origins, [], folder.absolute(), "", begun=True)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe for editors and forms; the fields' texts are its descriptions."""
    schema = json.loads(json.dumps(recipe_shape()))
    for definition in [schema, *schema["$defs"].values()]:
        _make_public(definition)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def describe_resolved(loaded: LoadedRecipe) -> list[tuple[str, Any, str]]:
    """Every value of the resolved recipe: dotted path, value (variables as written), origin."""
    return [
        (dotted(path), value_at(path, loaded.resolved), loaded.origins[dotted(path)])
        for path in _leaves(loaded.resolved)
    ]


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes() if path.stat().st_size <= _MOST_BYTES else None
    except FileNotFoundError:
        raise _not_found(path) from None
    except IsADirectoryError:
        raise UserError(f'"{path}" is a folder; expected a recipe file', exit_code=2) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f'"{path}" cannot be read: {reason}', exit_code=2) from None
    if content is None:
        message = f'"{path}" is larger than {_MOST_BYTES:,} bytes; expected a recipe file'
        raise UserError(message, hint="data files are named in the recipe", exit_code=2)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line, column = before.count(b"\n") + 1, len(before) - before.rfind(b"\n")
        found = f"column {column} holds the byte 0x{content[error.start]:02X}"
        message = f"{path}:{line}: not UTF-8 text: {found}"
    raise UserError(message, hint="save the file with the encoding UTF-8", exit_code=2)


def _not_found(path: Path) -> UserError:
    folder = path.absolute().parent
    if not folder.is_dir():
        return UserError(f'"{path}" does not exist, nor does its folder', exit_code=2)
    recipes = sorted(name for name in names_in(folder) if name.endswith((".yaml", ".yml")))
    close = nearest(path.name, recipes)
    if close:
        hint = f"did you mean {path.with_name(close)}?"
    else:
        hint = f"recipes there: {', '.join(recipes[:10]) or 'none'}"
    return UserError(f'"{path}" does not exist', hint=hint, exit_code=2)


def _mapping_of(document: Document, origin: Origin) -> dict[str, Any]:
    """The top of a document; raises where there is none or it is not a mapping."""
    if not isinstance(document.value, dict):
        found = "a list" if isinstance(document.value, list) else f'"{document.value}"'
        where = Origin(origin.source)
        message = f"expected a mapping with model and stages, found {found}"
        if document.value is None:
            message = "the recipe is empty; expected a mapping with model and stages"
        raise_faults(document.faults or [Fault(where, (), message)], hint=_HINT)
    value: dict[str, Any] = document.value
    return value


def _spell_out(given: dict[str, Any], origins: Origins) -> None:
    """Replaces text by the mapping that it stands for: `data: a.jsonl` by `data: {path: ...}`."""
    for path, shape, value in list(walk(given, recipe_shape())):
        if not isinstance(value, str):
            continue
        key = meant(shape, {}).get("shorthand")
        if key:
            value_at(path[:-1], given)[path[-1]] = {key: value}
            origins[(*path, key)] = origin_of(path, origins)


def _check(
    given: dict[str, Any],
    origins: Origins,
    faults: list[Fault],
    folder: Path,
    text: str,
    *,
    begun: bool = False,
) -> LoadedRecipe:
    """Expands, finds the paths, judges the whole; raises all faults or returns the recipe.

    begun: for a run that began before, whose files may be gone.
    """
    expanded, unset = expand(given, origins)
    missing = find_places(expanded, given, origins, folder)
    missing = [] if begun else missing
    faulty = {fault.path for fault in [*faults, *unset]}
    faults += [*unset, *(fault for fault in missing if fault.path not in faulty)]
    recipe, wrong = _validate(expanded, given)
    faulty = {fault.path for fault in faults}
    for path, message in wrong.items():
        if path not in faulty:
            faults.append(Fault(origin_of(path, origins), path, message))
    raise_faults(faults, hint=_HINT)
    assert recipe is not None, "a recipe without faults is valid"
    resolved = _resolve(recipe, given)
    named = {dotted(path): _origin_name(path, origins) for path in _leaves(resolved)}
    return LoadedRecipe(recipe, text, resolved, named, folder)


def _validate(expanded: dict[str, Any], given: object) -> tuple[Recipe | None, dict[KeyPath, str]]:
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


def _resolve(recipe: Recipe, given: dict[str, Any]) -> dict[str, Any]:
    """The recipe with its defaults as plain values; texts are those that were written."""
    resolved: dict[str, Any] = recipe.model_dump(mode="json")
    for stage in resolved["stages"]:
        for method in [name for name, settings in stage.items() if settings is None]:
            del stage[method]
    for path, _, value in walk(given, recipe_shape()):
        if isinstance(value, str):
            value_at(path[:-1], resolved)[path[-1]] = value
    return resolved


def _leaves(value: object, path: KeyPath = ()) -> list[KeyPath]:
    """The paths of all values that are no group of settings; a list of plain values is one."""
    if isinstance(value, dict) and value:
        return [leaf for key, inner in value.items() for leaf in _leaves(inner, (*path, key))]
    if isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        return [leaf for i, inner in enumerate(value) for leaf in _leaves(inner, (*path, i))]
    return [path]


def _origin_name(path: KeyPath, origins: Origins) -> str:
    return origins[path].name if path in origins else "default"


def _make_public(definition: Shape) -> None:
    """Turns the marks that only this folder reads into what an editor understands."""
    for field in definition.get("properties", {}).values():
        field.pop("place", None)
    if definition["title"] == "Stage":
        definition |= {"minProperties": 1, "maxProperties": 1}
    definition.pop("alternatives", None)
    if short := definition.pop("shorthand", None):
        spelled_out = dict(definition)
        field = definition["properties"][short]
        definition.clear()
        definition |= {
            "title": spelled_out["title"],
            "description": spelled_out["description"],
            "anyOf": [{"type": "string"} | _word_of(field), spelled_out],
        }


def _word_of(field: Shape) -> Shape:
    """The one word that may stand for a mapping whose shorthand is its `type`."""
    return {"const": field["const"]} if "const" in field else {}


__all__ = [
    "LoadedRecipe",
    "describe_resolved",
    "json_schema",
    "load_recipe",
    "load_resolved",
]
