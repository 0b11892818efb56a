"""Profiles: named settings for a stage, from which it takes what the recipe does not give.

Called by `load.py` for `profile: NAME` in a stage, by `hone recipe show` and `hone init`. Those
that come with Hone are the YAML files beside this one, in `profiles/`; any other is a file that a
person names. A run keeps the merged values, so that it never reads a profile again.
"""

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hone.errors import UserError, nearest
from hone.recipe.document import read_document
from hone.recipe.environment import escape, expand, has_variable
from hone.recipe.faults import Fault, KeyPath, Origin, Origins, origin_of, quoted
from hone.recipe.inherit import fill
from hone.recipe.judge import spell_out, validate
from hone.recipe.places import names_in, rebase
from hone.recipe.schema import STAGES
from hone.recipe.shape import value_at
from hone.recipe.text import read_text

FOLDER = Path(__file__).parent / "profiles"
SUFFIXES = (".yaml", ".yml")
_AFTER_ALL_OTHERS = 1_000_000  # the rank of a profile's faults


@dataclass(frozen=True)
class Profile:
    """What a profile says: the settings it has and where each stands, by its path in a stage.

    name: as it was asked for. text: the file's. faults: what is wrong with it by itself.
    """

    name: str
    text: str
    settings: dict[str, Any]
    origins: Origins
    faults: list[Fault]

    def origin_of(self, path: KeyPath) -> Origin:
        """Where the value at `path` of a stage stands in the profile."""
        return origin_of(path, self.origins)

    @property
    def summary(self) -> str:
        """The comment that the file begins with."""
        lines = self.text.splitlines()
        comments = [line.lstrip("# ").rstrip() for line in lines if line.startswith("#")]
        return comments[0] if lines and lines[0].startswith("#") else ""


def profile_names() -> list[str]:
    """The profiles that come with Hone."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def apply_profiles(given: dict[str, Any], origins: Origins, recipe: Path) -> list[Fault]:
    """Gives every stage that names a profile what it does not say itself; returns all faults.

    recipe: the recipe's file, whose folder a profile's path belongs to; one from the command line
    belongs to the current directory first.
    """
    faults: list[Fault] = []
    told: set[tuple[str, str]] = set()
    for path in _named_in(given):
        try:
            profile = _profile_of(given, origins, path, recipe)
        except UserError as error:
            place = (*path, "profile")
            faults.append(Fault(origin_of(place, origins), place, error.message))
            continue
        for fault in [*profile.faults, *_useless(profile, path, origins)]:
            if (str(fault.origin), fault.message) not in told:
                told.add((str(fault.origin), fault.message))
                faults.append(fault)
        known = STAGES[str(path[-1])].model_fields
        settings = {key: value for key, value in profile.settings.items() if key in known}
        fill(given, path, settings, origins, profile.origin_of)
    return faults


def open_profile(
    name: str, method: str = "sft", file: Path | None = None, source: str | None = None
) -> Profile:
    """Reads and checks a profile for a stage of this method.

    file: where it is, if it does not come with Hone. source: how faults name it. Raises UserError
    where there is no such file or it is no mapping; what is wrong with its keys and values is in
    `faults`.
    """
    if file is None:
        text, origin = read_text(FOLDER / f"{name}.yaml"), Origin(f"profile {name}")
    else:
        text, origin = read_text(file, "profile"), Origin(source or name, 1, _AFTER_ALL_OTHERS)
    path: KeyPath = ("stages", 0, method)
    document = read_document(text, origin, path)
    settings = {} if document.value is None else document.value
    faults = [replace(fault, path=fault.path[len(path) :]) for fault in document.faults]
    if not isinstance(settings, dict) or not (settings or faults):
        found = "it is empty" if document.value is None else f"found {quoted(settings)}"
        raise UserError(f"the profile {quoted(name)} holds no keys of a stage: {found}")
    origins = {key: origin_of(key, document.origins) for key in document.origins}
    faults += _check(settings, origins, path, origin)
    if file is not None:
        rebase({"stages": [{method: settings}]}, file.parent, os.path.dirname(name))
    below = {
        key[len(path) :]: replace(each, inherited=_shown(each))
        for key, each in origins.items()
        if key[: len(path)] == path
    }
    return Profile(name, text, settings, below | {(): origin}, faults)


def find_profile(name: str, folders: Sequence[Path], shown: str | None = None) -> Path | None:
    """The file of a profile, None for one that comes with Hone; raises UserError for no profile.

    shown: the name as written, where it is not to be shown with its variables' values.
    """
    shown = name if shown is None else shown
    if name in profile_names():
        return None
    if name and "\0" not in name:
        for folder in folders:
            file = Path(os.path.abspath(os.path.join(folder, os.path.expanduser(name))))
            if file.is_file():
                return file
    names = profile_names()
    expected = f"expected {', '.join(names)} or a YAML file"
    folder = Path(os.path.abspath(os.path.join(folders[-1], os.path.dirname(name))))
    files = [each for each in names_in(folder) if each.endswith(SUFFIXES)]
    close = nearest(os.path.basename(name), [*names, *files])
    if has_variable(shown) or not close:
        raise UserError(f"there is no profile {quoted(shown)}; {expected}", exit_code=2)
    close = close if close in names else os.path.join(os.path.dirname(name), close)
    message = f"there is no profile {quoted(shown)}; did you mean {quoted(close)}?"
    raise UserError(message, exit_code=2)


def _named_in(given: dict[str, Any]) -> list[KeyPath]:
    """The paths of the settings of all stages that name a profile."""
    stages = given.get("stages")
    return [
        ("stages", index, method)
        for index, stage in enumerate(stages if isinstance(stages, list) else [])
        for method, settings in (stage.items() if isinstance(stage, dict) else ())
        if method in STAGES
        and isinstance(settings, dict)
        and isinstance(settings.get("profile"), str)
    ]


def _profile_of(given: dict[str, Any], origins: Origins, path: KeyPath, recipe: Path) -> Profile:
    """The profile that a stage names; what was found from the current directory is kept absolute,
    since resuming may begin in another one.
    """
    settings = value_at(path, given)
    written = settings["profile"]
    expanded, unset = expand(written, {(): origin_of((*path, "profile"), origins)})
    if unset:
        raise UserError(unset[0].message)
    folder = recipe.absolute().parent
    here = [Path.cwd()] if origin_of((*path, "profile"), origins).is_command_line else []
    file = find_profile(expanded, [*here, folder], written)
    if file is None:
        return open_profile(expanded, str(path[-1]))
    if file != Path(os.path.abspath(folder / os.path.expanduser(expanded))):
        settings["profile"] = written = os.path.join(escape(os.getcwd()), written)
    try:
        return open_profile(written, str(path[-1]), file, os.path.join(recipe.parent, written))
    except UserError as error:  # which names the file as it was found, variables and all
        raise UserError(error.message.replace(str(file), written)) from None


def _complete(stage: dict[str, Any], method: str) -> None:
    """Gives a profile what only a stage names: data, or where tasks and rewards come from."""
    evaluation = stage.get("evaluation")
    of_data = isinstance(evaluation, dict) and evaluation.keys() & {"share", "data"}
    if method == "grpo" and "data" not in stage and not of_data:
        stage.setdefault("environment", {"type": "arithmetic"})
        return
    if method == "grpo":
        stage.setdefault("rewards", [{"function": "reward.py:reward"}])
    data = stage.setdefault("data", {})
    if isinstance(data, dict):
        data.setdefault("path", "-")


def _check(settings: dict[str, Any], origins: Origins, path: KeyPath, start: Origin) -> list[Fault]:
    """All that is wrong with a profile by itself; shorthands are spelt out in `settings`.

    It is judged as the only stage of a recipe, with data if it names none. What only another
    method has is left to `_useless`.
    """
    method = str(path[-1])
    trial = {"model": "-", "stages": [{method: settings}]}
    spell_out(trial, origins)
    judged = copy.deepcopy(trial)
    stage: dict[str, Any] = value_at(path, judged)
    for key in _of_other_methods(settings, method):
        del stage[key]
    _complete(stage, method)
    expanded, unset = expand(judged, {(): start} | origins)
    wrong = {fault.path: fault.message for fault in unset}
    wrong |= {key: text for key, text in validate(expanded, judged)[1].items() if key not in wrong}
    if "profile" in settings:
        wrong[(*path, "profile")] = "a profile names no other profile"
    return [
        Fault(origin_of(key, {(): start} | origins), key[len(path) :], message)
        for key, message in wrong.items()
    ]


def _of_other_methods(settings: dict[str, Any], method: str) -> list[str]:
    """The keys that other stages have and this method has not."""
    others = {key for stage in STAGES.values() for key in stage.model_fields}
    return [key for key in settings if key in others - STAGES[method].model_fields.keys()]


def _useless(profile: Profile, path: KeyPath, origins: Origins) -> list[Fault]:
    """A fault where the stage names a profile with keys that its method does not have."""
    method = str(path[-1])
    keys = _of_other_methods(profile.settings, method)
    if not keys:
        return []
    place = (*path, "profile")
    named = ", ".join(f"`{key}`" for key in keys)
    message = (
        f"the profile {quoted(os.path.basename(profile.name))} has {named}, "
        f"which a stage of the method {method} does not have"
    )
    return [Fault(origin_of(place, origins), place, message)]


def _shown(origin: Origin) -> str:
    """How `--dry-run` names the origin of a profile's value."""
    name = origin.name
    return name if name.startswith("profile ") else f"profile {name}"
