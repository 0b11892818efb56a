"""`hone runs`: a line for each run, read from the run directories."""

from typing import TYPE_CHECKING, Any

from hone.cli.arguments import RUNS_FOLDER, AsJson, RunsFolder
from hone.cli.output import age, number, print_json, print_table

if TYPE_CHECKING:
    from hone.runs import Run

HEADING = ("NAME", "STATE", "STAGE", "STEP", "LOSS", "AGE")


def runs(runs: RunsFolder = RUNS_FOLDER, as_json: AsJson = False) -> None:
    """List the runs.

    The newest stands last; the loss is that of the newest step.

    \b
    Example:
      hone runs
      hone runs --json
    """
    from hone.runs import list_runs

    rows = [describe(run) for run in list_runs(runs)]
    if as_json:
        print_json(rows)
    elif rows:
        print_table([HEADING, *map(_cells, rows)])
    else:
        print(f"no runs in {runs}; make one: hone run recipe.yaml")


def describe(run: "Run") -> dict[str, Any]:
    """Where a run stands: its status, its newest stage and that stage's newest training row."""
    from hone.metrics import latest_row

    status = run.status()
    folders = run.stage_folders()
    row = latest_row(folders[-1] / "metrics.jsonl") if folders else None
    return {
        "name": run.name,
        "path": str(run.path),
        "state": status["state"],
        "stage": folders[-1].name if folders else None,
        "num_stages": len(run.resolved().get("stages", [])),
        "step": row["step"] if row else None,
        "steps": status.get("steps"),
        "loss": row.get("loss") if row else None,
        "created_at": status.get("created_at"),
        "message": status.get("message"),
    }


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    step = number(row["step"])
    if row["steps"]:
        step += f"/{number(row['steps'])}"
    stage = f"{row['stage']} of {row['num_stages']}" if row["stage"] else "-"
    created = age(row["created_at"]) if row["created_at"] else "-"
    return row["name"], row["state"], stage, step, number(row["loss"]), created
