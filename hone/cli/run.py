"""`hone run`: make a run from a recipe and work on it. `resume.py` shares `execute`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hone.cli.arguments import RUNS_FOLDER, AsJson, Overrides, Recipe, RunsFolder, Yes
from hone.cli.output import make_console, print_json, say
from hone.cli.remove import ask
from hone.errors import UserError
from hone.signals import StopRequested, uninterrupted

if TYPE_CHECKING:
    from rich.console import Console

    from hone.recipe.load import LoadedRecipe
    from hone.runs import Run


def run(
    recipe: Recipe,
    overrides: Overrides = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="The run's name; else the recipe's, counted."),
    ] = None,
    runs: RunsFolder = RUNS_FOLDER,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the whole recipe and where each value is from.")
    ] = False,
    clean: Annotated[
        bool, typer.Option("--clean", help="Delete the run of that name first; asks.")
    ] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Train what a recipe says.

    The run is a folder; it can be stopped or killed at any moment and resumed to the same bytes.
    Where the recipe has `verify:`, the finished run is verified; the exit code is 3 where that
    fails. --json is for --dry-run.

    \b
    Example:
      hone run recipe.yaml
      hone run recipe.yaml sft.steps=50 sft.learning_rate=1e-4 --name first
      hone run recipe.yaml --name first --clean
      hone run recipe.yaml --dry-run
    """
    from hone.recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    if dry_run:
        _print_resolved(loaded.resolved, loaded.origins, as_json)
        return
    if as_json:
        raise UserError("`--json` without `--dry-run`", hint="hone show RUN --json", exit_code=2)
    if clean and name is None:
        raise UserError("`--clean` without `--name`", hint="--name FIRST --clean", exit_code=2)
    from hone.runs import create_run

    console = make_console()
    old = _run_to_replace(loaded, str(name), runs, yes) if clean else None
    with uninterrupted():  # whoever stops it here is still told what was made
        if old is None:
            made = create_run(loaded, name, runs, stem=recipe.stem)
        else:
            from hone.removal import replace_run

            made = replace_run(old, lambda: create_run(loaded, name, runs))
            say(console, f"removed the run {name} that was here before")
        say(console, f"run {made.name} in {made.path}")
    methods = [stage.method for stage in loaded.recipe.stages]
    listed = ", ".join(f"{number} {method}" for number, method in enumerate(methods, 1))
    say(console, f"stages: {listed}")
    execute(made, console)


def _run_to_replace(loaded: "LoadedRecipe", name: str, runs: Path, yes: bool) -> "Run | None":
    """The run that `--clean` deletes, after all that could stand against it, and the question."""
    from hone.removal import check_removable, find_holdings, uses
    from hone.runs import Run, check_name, is_run

    check_name(name)
    old = Run(runs.resolve() / name)
    if not is_run(old.path):
        return None  # nothing is there, or `create_run` says what is
    check_removable(old)
    if uses(old, loaded.recipe.model_dump(mode="json")):
        message = f"the recipe uses files of the run `{name}`, which `--clean` would delete"
        raise UserError(message, hint="give the new run another name", exit_code=2)
    if not old.trained_nothing():
        _check_thoroughly(loaded)  # a faulty recipe must not cost a run
        ask([find_holdings(old)], yes)
    return old


def _check_thoroughly(loaded: "LoadedRecipe") -> None:
    from hone.cli.check import find_all

    for finding in find_all(loaded):
        if finding.severity == "error":
            message = f"{finding.message}; nothing was deleted"
            raise UserError(message, hint=finding.hint, exit_code=2)


def execute(run: "Run", console: "Console", *, accept_changed_data: bool = False) -> None:
    """One attempt at a run; however it ends, it is said what can be done next."""
    from hone.runs import CRASHED

    resume = f"hone resume {run.reference}"
    try:
        with run.attempt() as attempt:
            if accept_changed_data:
                _accept_changed_data(run, attempt, console)
            from hone.estimate.fitting import check_memory
            from hone.stages.run import run_recipe

            if attempt == 1:  # a later one has begun already, and its data files may be gone
                check_memory(run.loaded_recipe(), with_data=False)
            run_recipe(run, console=console)
    except StopRequested as stop:
        if not run.done:
            say(console, f"{stop}; go on: {resume}")
        raise
    except UserError as error:
        # Another state says that another process works on it; a full disk keeps "failed" from it.
        if run.status()["state"] not in ("failed", CRASHED):
            raise
        hint = f"{error.hint}\n      then go on: {resume}" if error.hint else f"go on: {resume}"
        raise UserError(error.message, hint=hint, exit_code=error.exit_code) from error
    except Exception:
        say(console, f"the run can go on: {resume}")
        raise
    say(console, f"finished; talk to the result: hone chat {run.reference}")
    if run.loaded_recipe().recipe.verify is not None:
        from hone.verify.fresh import NOT_VERIFIED, verify_command, verify_in_fresh_process

        say(console, f"verifying it: {verify_command(run)}")
        if not verify_in_fresh_process(run, console):
            raise typer.Exit(NOT_VERIFIED)


def _accept_changed_data(run: "Run", attempt: int, console: "Console") -> None:
    from hone.changes import accept_changed_data

    changes = accept_changed_data(run, attempt)
    if not changes:
        say(console, "no data have changed")
    for line in (line for change in changes for line in change.in_words()):
        say(console, f"accepted: {line}")


def _print_resolved(resolved: dict[str, object], origins: dict[str, str], as_json: bool) -> None:
    from hone.cli.resolved import resolved_lines

    if as_json:
        print_json({"recipe": resolved, "origins": origins})
    else:
        print("\n".join(resolved_lines(resolved, origins)))
