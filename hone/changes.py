"""What has changed since a run began: its data files and its base model, before it goes on.

Called by `hone resume`: refused by default, since the result would not be exact; data may be
accepted, which is written down for ever. `hone show` and `hone reproduce` tell of it. Left out: the
versions of packages (runs.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hone.data.prepared import default_cache_folder, open_prepared
from hone.errors import UserError
from hone.provenance import FileChange, find_file_changes, find_model_changes
from hone.runs import Run


@dataclass(frozen=True)
class DataChange:
    """Changed files of one data source. stage: from 1. name: its key in the stage's lock."""

    stage: int
    name: str
    files: list[FileChange]

    def in_words(self) -> list[str]:
        """A line for each file."""
        return [f"{self.name} of stage {self.stage}: {file.in_words()}" for file in self.files]


def unfinished_sources(run: Run) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Those of the stages that are not finished: the only ones that are read again."""
    for stage, name, entry in locked_sources(run):
        if not any(run.path.glob(f"stages/{stage}-*/model/manifest.json")):
            yield stage, name, entry


def locked_sources(run: Run) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """(stage from 1, name, {key, sources}) of every data source that the run has prepared."""
    for number, stage in sorted(run.read_lock_json().get("stages", {}).items()):
        for name, entry in stage.items():
            if isinstance(entry, dict) and {"key", "sources"} <= set(entry):
                yield int(number), name, entry


def find_data_changes(run: Run) -> list[DataChange]:
    """The data files of unfinished stages that have another content now.

    A file that is gone is no change: what the run began with may be in the cache.
    """
    changes = []
    for stage, name, entry in unfinished_sources(run):
        there = [change for change in find_file_changes(entry["sources"]) if change.after]
        changes += [DataChange(stage, name, there)] if there else []
    return changes


def check_there(stage: int, name: str, entry: dict[str, Any]) -> None:
    """Raises UserError where a data file is gone, and what was prepared from it too."""
    gone = [
        source["path"]
        for source in entry["sources"]
        if "name" not in source and not Path(source["path"]).exists()  # the Hub has its own again
    ]
    if gone and open_prepared(entry["key"]) is None:
        raise UserError(
            f"{name} of stage {stage}: `{gone[0]}` is gone, and so are the tokens that were "
            f"prepared from it (`{default_cache_folder() / entry['key']}`)",
            hint="put the file back as it was",
            exit_code=2,
        )


def find_base_changes(run: Run) -> list[FileChange]:
    """The files of the base model that have another content now; none where the run made it."""
    if (run.path / "base" / "manifest.json").exists():
        return []
    recorded = run.read_lock_json().get("base", {}).get("models", [])
    found = [change for model in recorded for change in find_model_changes(model)]
    return found if any(change.after for change in found) else []


def check_unchanged(run: Run, *, data: bool = True) -> None:
    """Raises UserError where the base model or, if asked, the data are not those that the run began
    with.
    """
    for stage, name, entry in unfinished_sources(run):
        check_there(stage, name, entry)
    if base := find_base_changes(run):
        lines = "".join(f"\n  {change.in_words()}" for change in base)
        raise UserError(
            f"the base model has changed since the run `{run.name}` began, so resuming could not "
            f"be exact{lines}",
            hint="put the files back as they were, or start a new run",
            exit_code=2,
        )
    if data and (changes := find_data_changes(run)):
        lines = "".join(f"\n  {line}" for change in changes for line in change.in_words())
        raise UserError(
            f"data have changed since the run `{run.name}` began, so resuming could not be exact"
            f"{lines}",
            hint="put the files back as they were, or start a new run,\n      or go on with what "
            f"is there now: hone resume {run.reference} --accept-changed-data",
            exit_code=2,
        )


def accept_changed_data(run: Run, attempt: int) -> list[DataChange]:
    """Have the run go on with the data as they are now; returns what has changed.

    What it began with stays in lock.json under `data_changes`, with the attempt and the step. The
    stages then prepare the data anew and lock them.
    """
    changes = find_data_changes(run)
    lock = run.read_lock_json()
    for change in changes:
        before = lock["stages"][str(change.stage)].pop(change.name)
        entry = {
            "attempt": attempt,
            "stage": change.stage,
            "name": change.name,
            "step": _newest_step(run, change.stage),
            "key": before["key"],
            "files": [file.as_json() for file in change.files],
        }
        lock.setdefault("data_changes", []).append(entry)
        run.event("data_changed", **entry)
    run.write_lock_json(lock)
    return changes


def describe_accepted(run: Run) -> list[str]:
    """The changes of data that were accepted, in words."""
    return [
        f"stage {entry['stage']}, from step {entry['step']} (attempt {entry['attempt']}): "
        f"{entry['name']}, {', '.join(file['path'] for file in entry['files'])}"
        for entry in run.read_lock_json().get("data_changes", [])
    ]


def _newest_step(run: Run, stage: int) -> int:
    names = (path.name for path in run.path.glob(f"stages/{stage}-*/checkpoints/step_*"))
    return max((int(name.removeprefix("step_")) for name in names), default=0)
