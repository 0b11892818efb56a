"""`hone doctor`: the mathematics of training, tested on a model and data of the person's own."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hone.cli.arguments import RUNS_FOLDER, AsJson, RunsFolder
from hone.cli.output import make_console, print_json, print_table
from hone.errors import UserError

if TYPE_CHECKING:
    from hone.doctor.findings import Finding

HEADING = ("CHECK", "DIFFERENCE", "LIMIT", "STATUS", "TIME", "COMPARED")


def doctor(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A folder, a Hub id, or the name of a run.")
    ],
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="FILE", help="Rows to test with; else built-in ones."),
    ] = None,
    seconds: Annotated[
        float,
        typer.Option(
            "--seconds", metavar="S", min=1.0, help="About how long; decides how long samples are."
        ),
    ] = 60.0,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option("--device", help="Where the model runs.")
    ] = "auto",
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        typer.Option("--precision", help="The number format of your runs."),
    ] = "auto",
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, help="What random tokens are drawn from.")
    ] = 0,
    as_json: AsJson = False,
    runs: RunsFolder = RUNS_FOLDER,
) -> int:
    """Test the mathematics on a model of yours.

    Everything that training relies on is computed in two ways, with this model on this machine, and
    the largest difference is shown with its limit. Exit code 1 when one is over.

    \b
    Example:
      hone doctor HuggingFaceTB/SmolLM2-135M
      hone doctor ./my-model --data chat.jsonl
      hone doctor first --json
    """
    source = _find_source(model, runs)
    if data is not None and not data.exists():
        message = f"there is no data file `{data}`"
        raise UserError(message, hint="name a file or folder of rows", exit_code=2)
    console = make_console()
    from hone.device import choose_device
    from hone.doctor.examine import Examination
    from hone.stages.run import quieten_libraries

    quieten_libraries()
    with console.status(f"{model}: starting") as status:
        examination = Examination(
            source,
            choose_device(device),
            data=None if data is None else str(data.resolve()),
            precision=precision,
            seed=seed,
            seconds=seconds,
            told=lambda text: status.update(f"{model}: {text}"),
        )
        findings = list(examination.run())
    passes = all(finding.passes for finding in findings)
    if as_json:
        print_json({"ok": passes, "findings": [finding.as_json() for finding in findings]})
    else:
        _print_findings(model, findings)
    return 0 if passes else 1


def _find_source(model: str, runs: Path) -> str:
    """The folder of a run's result, or the folder or Hub id itself."""
    if any((Path(model) / name).exists() for name in ("config.json", "adapter_config.json")):
        return str(Path(model).absolute())
    from hone.runs import list_runs, open_run

    is_run = model in {run.name for run in list_runs(runs)}
    if not is_run and not (Path(model) / "recipe.resolved.json").exists():
        return model
    found = open_run(model, runs)
    from hone.stages.run import find_result

    return find_result(found)


def _print_findings(model: str, findings: "list[Finding]") -> None:
    print_table([HEADING, *map(_cells, findings)])
    for note in dict.fromkeys(finding.note for finding in findings if finding.note):
        names = ", ".join(finding.name for finding in findings if finding.note == note)
        print(f"\n{names}: {note}")
    wrong = [finding.name for finding in findings if not finding.passes]
    verdict = f"wrong: {', '.join(wrong)}" if wrong else "nothing is wrong"
    seconds = sum(finding.seconds for finding in findings)
    print(f"\n{model}: {len(findings)} checks in {seconds:.0f} s, {verdict}")


def _cells(finding: "Finding") -> tuple[str, ...]:
    return (
        finding.name,
        _figure(finding.difference),
        _figure(finding.limit),
        finding.status,
        f"{finding.seconds:.1f} s",
        finding.compared,
    )


def _figure(value: float | None) -> str:
    """Counts as whole numbers, distances with two digits."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value in range(10_000) else f"{value:.1e}"
