"""`hone resume`: go on with a run where its last whole step was saved."""

from hone.cli.arguments import RUNS_FOLDER, RunName, RunsFolder
from hone.cli.output import make_console, say
from hone.cli.run import execute


def resume(run: RunName, runs: RunsFolder = RUNS_FOLDER) -> None:
    """Go on with a run that was stopped or failed.

    It ends in the same bytes as one that was never interrupted.

    \b
    Example:
      hone resume first
      hone resume elsewhere/runs/first
    """
    from hone.runs import open_run

    console = make_console()
    found = open_run(run, runs)
    if found.done:
        say(console, f"run {found.name} is finished: hone show {found.reference}")
        return
    for change in found.version_changes():
        say(console, f"warning: the result may differ, versions have changed: {change}")
    state = found.status()
    say(console, f"run {found.name} in {found.path}, {state['state']} before")
    execute(found, console)
