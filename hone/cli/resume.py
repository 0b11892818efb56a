"""`hone resume`: go on with a run where its last whole step was saved."""

from typing import Annotated

import typer

from hone.cli.arguments import RUNS_FOLDER, RunName, RunsFolder
from hone.cli.output import make_console, say
from hone.cli.run import execute


def resume(
    run: RunName,
    runs: RunsFolder = RUNS_FOLDER,
    accept: Annotated[
        bool,
        typer.Option(
            "--accept-changed-data", help="Go on with data files that have changed meanwhile."
        ),
    ] = False,
) -> None:
    """Go on with a run that was stopped or failed.

    It ends in the same bytes as one that was never interrupted; so it is refused where data files
    or the base model have changed. Changed data can be accepted, and the run remembers it. At its
    end it is verified as by `hone run`, with the same exit codes.

    \b
    Example:
      hone resume first
      hone resume elsewhere/runs/first
      hone resume first --accept-changed-data
    """
    from hone.changes import check_unchanged
    from hone.runs import open_run

    console = make_console()
    found = open_run(run, runs)
    if found.lacks_verdicts():
        say(
            console,
            f"run {found.name} is finished, not yet verified: hone verify {found.reference}",
        )
        return
    if found.done:
        say(console, f"run {found.name} is finished: hone show {found.reference}")
        return
    check_unchanged(found, data=not accept)
    for change in found.version_changes():
        say(console, f"warning: the result may differ, versions have changed: {change}")
    state = found.status()
    say(console, f"run {found.name} in {found.path}, {state['state']} before")
    execute(found, console, accept_changed_data=accept)
