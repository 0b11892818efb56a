"""`hone report`: all that is known about a run on one page, a file of its own."""

from pathlib import Path
from typing import Annotated

import typer

from hone.cli.arguments import RUNS_FOLDER, RunName, RunsFolder
from hone.errors import UserError


def report(
    run: RunName,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Where it goes; report.html in the run."),
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    runs: RunsFolder = RUNS_FOLDER,
) -> None:
    """Write all about a run on one page.

    One HTML file without network: what was trained on what, curves, verdicts, answers, rollouts,
    versions and hashes, warnings. A run may be working, or have failed: the page says how far it
    came. The file's place is printed.

    \b
    Example:
      hone report first
      hone report first --open
      hone report first --out first.html
    """
    from hone.report.write import write_report
    from hone.runs import open_run

    found = open_run(run, runs)
    if out is not None:
        _check_place(out)
    path = write_report(found, out)
    print(path)
    if show:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())


def _check_place(out: Path) -> None:
    """Raises UserError where no file can be written."""
    if out.is_dir():
        raise UserError(
            f"`--out {out}`: this is a folder, expected a file",
            hint=f"--out {out / 'report.html'}",
            exit_code=2,
        )
    if not out.parent.is_dir():
        raise UserError(
            f"`--out {out}`: there is no folder `{out.parent}`",
            hint=f"mkdir -p {out.parent}",
            exit_code=2,
        )
