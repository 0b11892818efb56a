"""`hone init`: a commented recipe from flags, or from questions at a terminal.

What may be answered, and what is suggested, is in `init_answers.py`. The comments are the help
texts of the schema; what is written has been checked as a recipe.
"""

import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from hone.cli.completion import complete_profiles
from hone.cli.init_answers import (
    NO_PROFILE,
    SHARE,
    data_fault,
    look,
    method_fault,
    model_fault,
    note,
    profile_fault,
    share_fault,
)
from hone.errors import UserError


def init(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The recipe that is written.")
    ] = Path("recipe.yaml"),
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="Folder or Hub id of the model.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DATA", help="File, folder or Hub id of the data."),
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option(
            "--stage", metavar="METHOD", help="sft, dpo or pretrain; else as the data are."
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile",
            metavar="PROFILE",
            help="A profile's name or file, or none; else as the data are.",
            autocompletion=complete_profiles,
        ),
    ] = None,
    share: Annotated[
        float | None,
        typer.Option("--evaluation-share", metavar="SHARE", help="What is held out; 0: nothing."),
    ] = None,
    epochs: Annotated[
        float | None, typer.Option("--epochs", metavar="N", help="Passes over the data.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", help="Optimizer steps, not epochs.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Ask nothing; take what is suggested.")
    ] = False,
) -> None:
    """Write a recipe.

    Asks for what is not given, where there is a terminal; suggests the stage and the profile that
    fit the data. The recipe is checked before it is written.

    \b
    Example:
      hone init
      hone init chat.yaml --model HuggingFaceTB/SmolLM2-135M --data chats.jsonl
      hone init --model base --data rows.jsonl --profile none --steps 200 --yes
    """
    ask = sys.stdin.isatty() and not yes
    _check_file(file, force, ask)
    _check_flags(model, data, stage, profile, share, ask)
    model = model or _prompt("Base model (folder or Hub id)", None, model_fault)
    data = data or _prompt("Data (file, folder or Hub id)", None, data_fault)
    found = look(model, data)
    method = stage or _answer("Stage (sft, dpo or pretrain)", found.method, ask, method_fault)
    if profile is None:
        words, suggested = "Profile (a name, a file or none)", found.profile(method)
        profile = _answer(words, suggested, ask and method == "sft", profile_fault)
    if share is None:
        words = "Share of the data that is held out for evaluation"
        share = float(_answer(words, str(SHARE), ask, share_fault))
    folder = file.absolute().parent
    settings = _settings(_in_recipe(data, folder), share, epochs, steps) | found.settings(method)
    if profile != NO_PROFILE:
        settings = {"profile": _profile_in_recipe(profile, folder), **settings}
        if found.has_template:
            settings["data"]["template"] = "auto"
            note("the model has a chat template of its own, which goes before the profile's")
    recipe = {
        "model": _in_recipe(model, folder),
        "seed": 0,
        "stages": [{method: settings}],
        "verify": {},
    }
    _write(file, _text_of(recipe, file))
    shown = shlex.quote(str(file))
    print(f"wrote {file}")
    print(f"  hone check {shown}   what is wrong with it, the data and the model")
    print(f"  hone run {shown}     train")


def _check_file(file: Path, force: bool, ask: bool) -> None:
    """Raises UserError where the file cannot be written or is not to be overwritten."""
    if not file.absolute().parent.is_dir():
        parent = file.parent
        message = f'the folder "{parent}" does not exist'
        raise UserError(message, hint=f"mkdir -p {shlex.quote(str(parent))}", exit_code=2)
    if file.is_dir():
        message = f'"{file}" is a folder; expected the name of a file'
        raise UserError(message, hint=f"hone init {file}/recipe.yaml", exit_code=2)
    if not file.exists() or force:
        return
    if not ask:
        hint = "give another name, or --force to overwrite it"
        raise UserError(f'"{file}" exists', hint=hint, exit_code=2)
    typer.confirm(f"{file} exists. Overwrite it?", abort=True, err=True)


def _check_flags(
    model: str | None,
    data: str | None,
    stage: str | None,
    profile: str | None,
    share: float | None,
    ask: bool,
) -> None:
    """Raises UserError for a flag that is wrong, or missing where nobody can be asked."""
    missing = [flag for flag, value in (("--model", model), ("--data", data)) if value is None]
    if missing and not ask:
        raise UserError(
            f"{' and '.join(missing)} not given, and nobody to ask",
            hint="hone init recipe.yaml --model FOLDER_OR_ID --data FILE",
            exit_code=2,
        )
    for flag, value, fault in (
        ("--model", model, model_fault),
        ("--data", data, data_fault),
        ("--stage", stage, method_fault),
        ("--profile", profile, profile_fault),
        ("--evaluation-share", share, share_fault),
    ):
        if value is not None and (problem := fault(str(value))):
            raise UserError(f"{flag}: {problem}", hint="hone init --help", exit_code=2)


def _settings(data: str, share: float, epochs: float | None, steps: int | None) -> dict[str, Any]:
    """What the stage says, its profile aside."""
    settings: dict[str, Any] = {"data": {"path": data}}
    settings |= {"evaluation": {"share": share}} if share else {}
    settings |= {"epochs": epochs} if epochs is not None else {}
    settings |= {"steps": steps} if steps is not None else {}
    return settings


Fault = Callable[[str], str | None]
"""What is wrong with an answer, None where it is right."""


def _answer(words: str, suggested: str, ask: bool, fault: Fault) -> str:
    """What is answered, or the suggestion where nobody is asked."""
    return _prompt(words, suggested, fault) if ask else suggested


def _prompt(words: str, suggested: str | None, fault: Fault) -> str:
    """Ask until the answer is right."""

    def checked(answer: str) -> str:
        if problem := fault(answer):
            raise typer.BadParameter(problem)
        return answer

    return str(typer.prompt(words, default=suggested, value_proc=checked, err=True))


def _in_recipe(text: str, folder: Path) -> str:
    """A path that exists here as the recipe in `folder` has to name it; anything else as it is."""
    from hone.recipe.environment import escape

    rooted = os.path.isabs(text) or text.startswith("~")
    if rooted or not os.path.exists(text):
        return escape(text)
    return escape(os.path.relpath(os.path.abspath(text), os.path.abspath(folder)))


def _profile_in_recipe(profile: str, folder: Path) -> str:
    """A profile that comes with Hone goes before a file of the same name."""
    from hone.recipe.profiles import profile_names

    return profile if profile in profile_names() else _in_recipe(profile, folder)


def _text_of(recipe: dict[str, Any], file: Path) -> str:
    """The recipe as YAML, each value below its help."""
    from hone.cli.resolved import help_in, resolved_lines

    name = shlex.quote(file.name)
    start = f"""\
# What is not given here comes from the profile, if one is named, then from the defaults:
#   hone recipe show {name}   every value, its meaning and where it is from
#   hone check {name}         what is wrong with it, the data and the model
#   hone run {name}           train, and verify what came of it

"""
    return start + "\n".join(resolved_lines(recipe, None, help_in(recipe))) + "\n"


def _write(file: Path, text: str) -> None:
    """Check the text as a recipe in its place, then give it its name."""
    from hone.files import write_whole
    from hone.recipe.load import load_recipe

    trial = file.with_name(f".{file.name}.trial.yaml")
    try:
        trial.write_text(text)
        load_recipe(trial)
    except UserError as error:
        message = re.sub(rf"{re.escape(str(trial))}:(\d+: )?", "", error.message)
        hint = f"nothing was written; {error.hint}" if error.hint else "nothing was written"
        raise UserError(message, hint=hint, exit_code=2) from error
    finally:
        trial.unlink(missing_ok=True)
    write_whole(file, text)
