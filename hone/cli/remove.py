"""`hone remove`: delete runs, after saying what is lost. `run.py` asks in the same words."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from hone.cli.arguments import RUNS_FOLDER, RunsFolder, Yes, complete_runs
from hone.cli.output import age, number, size
from hone.errors import UserError

if TYPE_CHECKING:
    from hone.removal import Holdings

Names = Annotated[
    list[str],
    typer.Argument(metavar="RUN...", help="Names or folders.", autocompletion=complete_runs),
]


def remove(names: Names, runs: RunsFolder = RUNS_FOLDER, yes: Yes = False) -> None:
    """Delete runs.

    Says what they hold and asks. A run that a process works on is never deleted.

    \b
    Example:
      hone remove first
      hone remove first second --yes
    """
    from hone.removal import check_removable, find_holdings, remove_run
    from hone.runs import open_run

    found = list(dict.fromkeys(open_run(name, runs) for name in names))
    for run in found:
        check_removable(run)
    ask([find_holdings(run) for run in found], yes)
    for run in found:
        remove_run(run)
        print(f"removed {run.name}")


def ask(lost: "list[Holdings]", yes: bool) -> None:
    """Say on stderr what would be deleted, and ask; raises Abort for no, and UserError where nobody
    can answer.
    """
    for holdings in lost:
        print(describe(holdings), file=sys.stderr)
    if yes:
        return
    if not sys.stdin.isatty():
        message = "this deletes runs, and there is no terminal to ask at; nothing was deleted"
        raise UserError(message, hint="to delete them without a question: --yes", exit_code=2)
    typer.confirm("delete for ever?", abort=True, err=True)


def describe(holdings: "Holdings") -> str:
    """What is lost with a run, in a few lines."""
    trained = f"step {number(holdings.steps)} of {holdings.stage}" if holdings.steps else "no step"
    created = f", made {age(holdings.created_at)} ago" if holdings.created_at else ""
    lines = [
        f"{holdings.name}: {holdings.state} at {trained}, finished stages: {holdings.results}, "
        f"checkpoints: {holdings.checkpoints}, {size(holdings.size_bytes)}{created}",
        f"  {holdings.path}",
    ]
    if holdings.needed_by:
        lines.append(f"  needed by {', '.join(holdings.needed_by)}: their base model lies in it")
    return "\n".join(lines)
