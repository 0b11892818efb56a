"""`hone verify`: what a run says about its model, measured on the saved results."""

from typing import TYPE_CHECKING, Annotated

import typer

from hone.cli.arguments import RUNS_FOLDER, AsJson, RunName, RunsFolder
from hone.cli.output import make_console, print_json, print_rich, say

if TYPE_CHECKING:
    from hone.verify.verdicts import Verdict

COLOURS = {"passed": "green", "failed": "bold red", "not_applicable": "dim"}


def verify(
    run: RunName,
    runs: RunsFolder = RUNS_FOLDER,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Also replay a slice of the run with a kill in the middle."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Prove what a run says about its model.

    Everything is measured on the saved results. The exit code is 0 where all checks that apply
    passed, and 1 where one failed; verify/verify.json in the run has the figures, report.html shows
    them.

    \b
    Example:
      hone verify first
      hone verify first --resume
      hone verify first --json
    """
    from hone.report.write import write_report
    from hone.runs import VERDICTS, open_run
    from hone.verify.examine import as_json as to_json
    from hone.verify.examine import passes
    from hone.verify.examine import verify as examine

    console = make_console()
    found = open_run(run, runs)
    with found.lock(), console.status("opening the run") as status:
        verdicts = examine(found, lambda name: status.update(f"checking {name}"), resume)
        report = write_report(found)
    if as_json:
        print_json(to_json(verdicts))
    else:
        _print(verdicts)
        say(console, f"figures: {found.path / VERDICTS}")
        say(console, f"report:  {report}")
    if not passes(verdicts):
        raise typer.Exit(1)


def _print(verdicts: "list[Verdict]") -> None:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("check", "", "value", "threshold", "n", "reason"):
        table.add_column(name, justify="right" if name in ("value", "threshold", "n") else "left")
    for verdict in verdicts:
        table.add_row(
            verdict.name,
            f"[{COLOURS[verdict.status]}]{verdict.status.replace('_', ' ')}[/]",
            *(_number(value) for value in (verdict.value, verdict.threshold, verdict.n)),
            escape(verdict.reason),
        )
    print_rich(table)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
