"""A recipe file and overrides to a checked recipe, or all that is wrong with it at once.

Called by `hone check`, `hone run`, `hone data show` and, from a run's `recipe.resolved.json`, by
`hone resume`. Overrides win over the file, the file over the profile that a stage names, that over
the adapter of an earlier stage, and all over the defaults. Nothing here looks into the data or the
model: that is the work of `stages/`.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hone.recipe.document import Document, read_document
from hone.recipe.environment import expand
from hone.recipe.faults import Fault, KeyPath, Origin, Origins, dotted, origin_of, raise_faults
from hone.recipe.inherit import carry_over
from hone.recipe.judge import spell_out, validate
from hone.recipe.overrides import apply_overrides
from hone.recipe.places import find_places
from hone.recipe.policy import Grpo
from hone.recipe.profiles import apply_profiles
from hone.recipe.rewards import Environment
from hone.recipe.schema import Recipe
from hone.recipe.shape import Shape, recipe_shape, value_at, walk
from hone.recipe.text import read_text

_HINT = "`hone recipe schema` lists every key with its meaning"


@dataclass(frozen=True)
class LoadedRecipe:
    """A checked recipe with where it came from.

    recipe: variables expanded, existing paths absolute; for the running program only.
    text: the file as given. resolved: JSON-able, with all defaults and with variables as written.
    origins: for each leaf of `resolved`, `recipe.yaml:12`, `command line`, `profile chat`,
    `stage 1` or `default`.
    folder: the absolute folder that relative paths belong to.
    """

    recipe: Recipe
    text: str
    resolved: dict[str, Any]
    origins: dict[str, str]
    folder: Path


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Reads and checks a recipe; raises one UserError (exit code 2) with a line for each fault."""
    text = read_text(path)
    origin = Origin(str(path), 1)
    document = read_document(text, origin)
    given, origins = _mapping_of(document, origin), document.origins
    faults = list(document.faults)
    spell_out(given, origins)
    faults += apply_overrides(given, origins, overrides, lambda: spell_out(given, origins))
    faults += apply_profiles(given, origins, path)
    carry_over(given, origins)
    return _check(given, origins, faults, path.absolute().parent, text)


def load_environment(text: str) -> Environment:
    """The environment that a command line describes as it would stand in a recipe: `arithmetic`, or
    `{type: answers, data: questions.jsonl}`. Raises UserError as `load_recipe` does.
    """
    given: dict[str, Any] = {"model": "none", "stages": [{"grpo": {}}]}
    origins: Origins = {(): Origin("command line")}
    override = f"grpo.environment={text}"
    faults = apply_overrides(given, origins, [override], lambda: spell_out(given, origins))
    loaded = _check(given, origins, faults, Path.cwd(), "")
    settings = loaded.recipe.stages[0].settings
    assert isinstance(settings, Grpo) and settings.environment is not None, "checked just now"
    return settings.environment


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
    found = [*unset, *(fault for fault in missing if fault.path not in faulty)]
    recipe, wrong = validate(expanded, given)
    faulty |= {fault.path for fault in found}
    for path, message in wrong.items():
        if path not in faulty:
            found.append(Fault(origin_of(path, origins), path, message))
    for fault in found:
        if not _is_told(fault, faults):
            faults.append(fault)
    raise_faults(faults, hint=_HINT)
    assert recipe is not None, "a recipe without faults is valid"
    resolved = _resolve(recipe, given)
    named = {dotted(path): _origin_name(path, origins) for path in _leaves(resolved)}
    return LoadedRecipe(recipe, text, resolved, named, folder)


def _is_told(fault: Fault, faults: Sequence[Fault]) -> bool:
    """True where the fault has been found in the place that its value was inherited from."""
    alike = [other for other in faults if other.message == fault.message]
    if fault.origin.inherited:
        return any(str(other.origin) == str(fault.origin) for other in alike)
    return any(other.path == fault.path[3:] for other in alike)  # a profile's paths begin there


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
    "load_environment",
    "load_recipe",
    "load_resolved",
]
