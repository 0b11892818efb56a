"""A run made again from its lock: whether that is possible, and the new run.

`hone reproduce` calls it, trains, and compares with `comparison.py`. What was chosen in the first
attempt (threads, date, number format, token budget) stands in the new run's lock.json before it
begins; what is found on the machine (versions, device, files) does not.
"""

from dataclasses import replace
from typing import Any

from hone.changes import describe_accepted, locked_sources
from hone.comparison import rows_of
from hone.errors import UserError
from hone.files import write_json
from hone.metrics import latest_row
from hone.provenance import FileChange, find_file_changes, find_model_changes
from hone.runs import Run, create_run, list_runs

RESULT = "reproduction.json"

# Of lock.json: what a new run finds out itself instead of taking it over.
OWN = {"recipe", "versions", "platform", "device", "base", "data_changes", "reproduces"}


def check_reproducible(run: Run, steps: int | None) -> None:
    """Raises UserError where a run cannot be made again: unfinished, or its data were changed."""
    if accepted := describe_accepted(run):
        raise UserError(
            f"the run `{run.name}` cannot be made again: its data changed on the way "
            f"({'; '.join(accepted)}), and what it had before is not kept",
            hint="hone show has the details; a new run can be reproduced: hone run recipe.yaml",
            exit_code=2,
        )
    if steps is None and not run.done:
        raise UserError(
            f"the run `{run.name}` is not finished: {run.status()['state']}",
            hint=f"finish it: hone resume {run.reference}\n      or compare its beginning: "
            f"hone reproduce {run.reference} --steps 10",
            exit_code=2,
        )


def find_input_changes(run: Run) -> list[FileChange]:
    """Data and base model files that are not what the run had, every one read again."""
    base = run.read_lock_json().get("base", {})
    changes = [change for model in base.get("models", []) for change in _changed(model)]
    changes += find_file_changes(base.get("texts", []), anew=True)
    for _, _, entry in locked_sources(run):
        changes += find_file_changes(entry["sources"], anew=True)
    return list({change.path: change for change in changes}.values())


def _changed(model: dict[str, Any]) -> list[FileChange]:
    return find_model_changes(model, anew=True)


def open_reproduction(run: Run, name: str | None) -> Run:
    """The run that makes `run` again: one of an earlier call that is not finished, or a new one.

    A new one has the resolved recipe, and all that was chosen in the first attempt, before it
    begins. Raises UserError where another run has the name.
    """
    folder = run.path.parent
    for other in reversed(list_runs(folder)):
        mine = other.read_lock_json().get("reproduces", {}).get("path") == str(run.path)
        unfinished = not other.done or not (other.path / RESULT).exists()
        if mine and (other.name == name if name else unfinished):
            return other
    loaded = replace(run.loaded_recipe(), text=(run.path / "recipe.yaml").read_text())
    stem = f"{run.name[:80]}-reproduced"
    return create_run(loaded, name, folder, stem=stem, lock=locked_values(run))


def locked_values(run: Run) -> dict[str, Any]:
    """What lock.json holds that was chosen, without what was found: files, versions, device."""
    lock = run.read_lock_json()
    found = {(str(stage), name) for stage, name, _ in locked_sources(run)}
    stages = {
        number: {name: value for name, value in stage.items() if (number, name) not in found}
        for number, stage in lock.get("stages", {}).items()
    }
    chosen = {name: value for name, value in lock.items() if name not in OWN}
    return {**chosen, "stages": stages, "reproduces": {"name": run.name, "path": str(run.path)}}


def place_of_step(run: Run, steps: int) -> tuple[int, int]:
    """(stage from 1, its step) of the run's step `steps`, counted through its stages."""
    left = steps
    for number, folder in enumerate(run.stage_folders(), 1):
        rows = [row for row in rows_of(folder) if "split" not in row]
        trained = rows[-1]["step"] if rows else 0
        if left <= trained:
            return number, left
        left -= trained
    raise UserError(
        f"the run `{run.name}` has {steps - left} steps, fewer than {steps}",
        hint=f"--steps {max(1, steps - left)}",
        exit_code=2,
    )


def has_reached(run: Run, until: tuple[int, int]) -> bool:
    """True where the run has the row of that (stage from 1, step) already."""
    folders = run.stage_folders()
    if len(folders) != until[0]:
        return len(folders) > until[0]
    row = latest_row(folders[-1] / "metrics.jsonl")
    return row is not None and int(row["step"]) >= until[1]


def write_result(run: Run, result: dict[str, Any]) -> None:
    """Keep what a comparison has found in the new run."""
    write_json(run.path / RESULT, result)
