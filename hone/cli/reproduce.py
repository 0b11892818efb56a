"""`hone reproduce`: make a run again from its lock, and say whether the bytes are the same."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hone.cli.arguments import RUNS_FOLDER, AsJson, RunName, RunsFolder
from hone.cli.output import make_console, print_json, say
from hone.errors import UserError
from hone.signals import StopRequested

if TYPE_CHECKING:
    from rich.console import Console

    from hone.comparison import Comparison
    from hone.runs import Run


def reproduce(
    run: RunName,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="The new run's name.")
    ] = None,
    runs: RunsFolder = RUNS_FOLDER,
    steps: Annotated[
        int | None,
        typer.Option("--steps", metavar="N", min=1, help="Only the first N steps of the run."),
    ] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Start even where data or model files have changed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a run again and compare the bytes.

    The new run has the first one's recipe, threads, number format and date. Called again, it goes
    on where it was stopped. The exit code is 0 where every byte is the same, and 1 where not; then
    it is said what differed first.

    \b
    Example:
      hone reproduce first
      hone reproduce first --steps 20
      hone reproduce first --name again --json
    """
    from hone.comparison import compare_runs
    from hone.reproduction import (
        check_reproducible,
        has_reached,
        open_reproduction,
        place_of_step,
        write_result,
    )
    from hone.runs import open_run

    console = make_console()
    found = open_run(run, runs)
    check_reproducible(found, steps)
    until = place_of_step(found, steps) if steps else None
    _check_inputs(found, anyway, console)
    for warning in _differences_here(found):
        say(console, f"warning: the bytes may differ: {warning}")
    again = open_reproduction(found, name)
    say(console, f"run {again.name} in {again.path}")
    if not again.done and not (until and has_reached(again, until)):
        _train(found, again, until, console)
    comparison = compare_runs(found, again, until)
    result = {"run": found.name, "reproduction": again.name, "steps": steps}
    result |= comparison.as_json()
    write_result(again, result)
    if as_json:
        print_json(result)
    else:
        _print(result, comparison, found)
    if not comparison.same:
        raise typer.Exit(1)


def _check_inputs(found: "Run", anyway: bool, console: "Console") -> None:
    """Raises UserError where the run's files are not there as they were, unless that is wanted."""
    from hone.reproduction import find_input_changes

    changes = [change.in_words() for change in find_input_changes(found)]
    if changes and not anyway:
        lines = "".join(f"\n  {change}" for change in changes)
        raise UserError(
            f"the run `{found.name}` cannot be made again from what is here:{lines}",
            hint="put the files back as they were, or see what comes out: --anyway",
            exit_code=2,
        )
    for change in changes:
        say(console, f"warning: {change}")


def _differences_here(found: "Run") -> list[str]:
    """What this machine has otherwise than the one that the run was made on."""
    from hone.device import choose_device, describe_device

    locked: dict[str, str] = found.read_lock_json().get("device", {})
    here = describe_device(choose_device(found.loaded_recipe().recipe.device))
    return found.version_changes() + [
        f"device {key} {locked[key]} -> {value}"
        for key, value in here.items()
        if key in locked and locked[key] != value
    ]


def _train(found: "Run", again: "Run", until: tuple[int, int] | None, console: "Console") -> None:
    """Work on the new run up to `until`; however it ends otherwise, it is said how to go on."""
    from hone.signals import StepReached

    go_on = f"hone reproduce {found.reference} --name {again.name}"
    try:
        with again.attempt():
            from hone.stages.run import run_recipe

            run_recipe(again, console=console, until=until, tracks=False)
    except StepReached:
        return
    except StopRequested as stop:
        say(console, f"{stop}; go on: {go_on}")
        raise
    except UserError as error:
        hint = f"{error.hint}\n      then go on: {go_on}" if error.hint else f"go on: {go_on}"
        raise UserError(error.message, hint=hint, exit_code=error.exit_code) from error


def _print(result: dict[str, Any], comparison: "Comparison", found: "Run") -> None:
    names = f"{result['reproduction']}", f"{result['run']}"
    compared = f"{comparison.rows:,} rows of metrics and {comparison.num_files:,} files"
    if comparison.first is None:
        print(f"{names[0]} is the same as {names[1]}, byte for byte: {compared}")
    else:
        print(f"{names[0]} is not the same as {names[1]}; of {compared},")
        print(f"what differs first is {comparison.first.in_words()}")
    for file in comparison.files:
        print(f"  {file}")
    if comparison.surroundings:
        print("\nnot the same to begin with:")
    for difference in comparison.surroundings:
        print(f"  {difference.in_words()}")
    for text in comparison.missing:
        print(f"not compared: {text}")
