"""`hone show`: a run from its directory alone: state, recipe, stages, files, what to type next."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hone.cli.arguments import RUNS_FOLDER, AsJson, RunName, RunsFolder
from hone.cli.output import duration, number, print_json, print_table

if TYPE_CHECKING:
    from hone.runs import Run

HEADING = ("STAGE", "STEPS", "LOSS", "HELD OUT", "TOKENS", "TIME")

# What a stage is summarised by, where the recipe has it.
TOLD = ("data", "environment", "adapter", "batch", "epochs", "steps", "learning_rate", "schedule")

MEASURES = ("loss", "accuracy", "reward")  # of held-out samples, or tasks

MOST_WARNINGS = 5

NOT_YET = "not yet"  # verified


def show(run: RunName, runs: RunsFolder = RUNS_FOLDER, as_json: AsJson = False) -> None:
    """Describe a run.

    \b
    Example:
      hone show first
      hone show first --json
    """
    from hone.runs import open_run

    found = open_run(run, runs)
    described = describe(found)
    if as_json:
        print_json(described)
    else:
        _print(described, found)


def describe(run: "Run") -> dict[str, Any]:
    """All that `hone show` prints, as JSON."""
    from hone.changes import describe_accepted

    return {
        "name": run.name,
        "path": str(run.path),
        "status": run.status(),
        "recipe": run.resolved(),
        "data_changes": describe_accepted(run),
        "warnings": [each["message"] for each in run.events() if each["event"] == "warning"],
        "stages": [_stage(folder) for folder in run.stage_folders()],
        "verified": _verified(run),
    }


def _verified(run: "Run") -> dict[str, Any] | None:
    """What `hone verify` has found: passed, failed (and which checks), or not yet; None where the
    recipe does not ask for it and nobody has.
    """
    verdicts = run.verdicts()
    if verdicts is None:
        asked = run.resolved().get("verify") is not None
        return {"state": NOT_YET, "failed": []} if asked else None
    failed = [check["name"] for check in verdicts["checks"] if check["status"] == "failed"]
    return {"state": "passed" if verdicts["passed"] else "failed", "failed": failed}


def _stage(folder: Path) -> dict[str, Any]:
    """A stage that has begun: its first and last losses, and what it took over all attempts."""
    from hone.metrics import read_metrics

    rows = read_metrics(folder / "metrics.jsonl")
    training = [row for row in rows if "split" not in row]
    evaluation = [row for row in rows if row.get("split") == "evaluation"]
    model = folder / "model"
    return {
        "stage": folder.name,
        "steps": training[-1]["step"] if training else 0,
        "loss": _first_and_last(training, "loss"),
        **{f"evaluation_{name}": _first_and_last(evaluation, name) for name in MEASURES},
        "skipped_steps": sum(row.get("skipped", 0) for row in training if row.get("samples") != 0),
        "empty_steps": sum(row.get("samples") == 0 for row in training),
        "tokens": sum(row.get("tokens", 0) for row in training),
        "step_time_s": sum(row.get("step_s", 0.0) for row in training),
        "metrics": str(folder / "metrics.jsonl") if rows else None,
        "model": str(model) if model.is_dir() else None,
    }


def _first_and_last(rows: list[dict[str, Any]], name: str) -> list[float]:
    found = [row[name] for row in rows if row.get(name) is not None]
    return [found[0], found[-1]] if found else []


def _print(described: dict[str, Any], run: "Run") -> None:
    status, recipe = described["status"], described["recipe"]
    attempt = f", attempt {status['attempt']}" if "attempt" in status else ""
    print(f"{described['name']}: {status['state']}{attempt}")
    if status["state"] == "failed":
        print(f"  {status.get('message', '')}")
    if status["state"] == "running":
        print(f"  process {status.get('pid')} on {status.get('host')}")
    print(f"\nmodel  {_inline(recipe['model'])}")
    for index, stage in enumerate(recipe["stages"], 1):
        method, settings = next((key, value) for key, value in stage.items() if value is not None)
        told = [f"{key} {_inline(settings[key])}" for key in TOLD if settings.get(key) is not None]
        print(f"{index} {method}  {', '.join(told)}")
    for change in described["data_changes"]:
        print(f"data changed on the way, so the result is not exact: {change}")
    if described["stages"]:
        print()
        print_table([HEADING, *map(_cells, described["stages"])])
    if verified := described["verified"]:
        failed = f": {', '.join(verified['failed'])}" if verified["failed"] else ""
        print(f"\nverified: {verified['state']}{failed}")
    _print_warnings(described)
    _print_files(described, run)
    _print_next(described, run)


def _print_warnings(described: dict[str, Any]) -> None:
    """The newest warnings, and the stages in which steps made no update."""
    warnings = described["warnings"]
    if warnings:
        print()
    if len(warnings) > MOST_WARNINGS:
        print(f"{len(warnings):,} warnings, the newest {MOST_WARNINGS} of them:")
    for warning in warnings[-MOST_WARNINGS:]:
        print(f"warning: {warning}")
    for stage in described["stages"]:
        if stage["skipped_steps"]:
            print(
                f"{stage['stage']}: {stage['skipped_steps']:,} steps made no update, because a "
                "number was not finite; their samples are in quarantine.jsonl"
            )
        if stage["empty_steps"]:
            print(
                f"{stage['stage']}: {stage['empty_steps']:,} steps made no update, because no "
                "group of rollouts was left to learn from; see `hone rollouts`"
            )


def _inline(value: Any) -> str:
    """A setting in a few words: the `path` or `type` of a table stands for it."""
    if isinstance(value, list):
        return " + ".join(map(_inline, value))
    if not isinstance(value, dict):
        return str(value)
    for key in ("path", "architecture"):
        if key in value:
            return str(value[key])
    given = [f"{key} {_inline(item)}" for key, item in value.items() if item and key != "type"]
    return " ".join([value["type"], *given] if "type" in value else given)


def _cells(stage: dict[str, Any]) -> tuple[str, ...]:
    return (
        stage["stage"],
        number(stage["steps"]),
        " -> ".join(map(number, stage["loss"])) or "-",
        _held_out(stage),
        number(stage["tokens"]),
        duration(stage["step_time_s"]),
    )


def _held_out(stage: dict[str, Any]) -> str:
    """The measures of held-out samples, at first and at last."""
    measured = {name: stage[f"evaluation_{name}"] for name in MEASURES}
    told = [
        f"{name} {' -> '.join(map(number, found))}" for name, found in measured.items() if found
    ]
    return ", ".join(told) or "-"


def _print_files(described: dict[str, Any], run: "Run") -> None:
    print(f"\nfolder   {run.path}")
    for stage in described["stages"]:
        for what in ("model", "metrics"):
            if stage[what]:
                print(f"{what.ljust(7)}  {stage[what]}")


def _print_next(described: dict[str, Any], run: "Run") -> None:
    if described["status"]["state"] == "running":
        return
    if not run.done:
        print(f"\ngo on: hone resume {run.reference}")
    if run.lacks_verdicts():
        print(f"\nverify it: hone verify {run.reference}")
    if any(stage["model"] for stage in described["stages"]):
        print(f"\ntalk to it: hone chat {run.reference}")
