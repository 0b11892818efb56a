"""Removing runs: what would be lost, and deletion that a kill cannot leave in halves.

Called by `hone remove` and `hone run --clean`, which ask the person first. A run is renamed to a
hidden name and deleted then; what a kill leaves of it under that name is swept the next time. Left
out: asking (cli/), and removing anything that is not a run.
"""

import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hone.concealing import reveal
from hone.errors import UserError
from hone.files import sync
from hone.metrics import latest_row
from hone.runs import Run, list_runs
from hone.signals import uninterrupted

# Only names that `_hidden` makes are ever swept.
REMOVED = re.compile(r"\.[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.[0-9a-f]{32}\.removed")


@dataclass(frozen=True)
class Holdings:
    """What is lost with a run. steps: trained in the newest stage. results: finished stages.

    needed_by: the runs beside it whose base model lies in it.
    """

    name: str
    path: str
    state: str
    stage: str | None
    steps: int
    checkpoints: int
    results: int
    size_bytes: int
    created_at: str | None
    needed_by: list[str]


def find_holdings(run: Run) -> Holdings:
    """What a run holds, counted on the disk; files that vanish meanwhile are not counted."""
    status, folders = run.status(), run.stage_folders()
    row = latest_row(folders[-1] / "metrics.jsonl") if folders else None
    return Holdings(
        name=run.name,
        path=str(run.path),
        state=status["state"],
        stage=folders[-1].name if folders else None,
        steps=row["step"] if row else 0,
        checkpoints=sum(1 for _ in run.path.glob("stages/*/checkpoints/step_*")),
        results=sum((folder / "model").is_dir() for folder in folders),
        size_bytes=_size_bytes(run.path),
        created_at=status.get("created_at"),
        needed_by=[other.name for other in list_runs(run.path.parent) if _stands_on(other, run)],
    )


def check_removable(run: Run) -> None:
    """Raises UserError where the run is a link, or another process works on it."""
    if not (run.path / "lock.json").is_file() or run.path.is_symlink():
        message = f"`{run.path}` is no run of Hone's own making: it is a link or has no lock.json"
        raise UserError(message, hint="remove it yourself", exit_code=2)
    with run.lock():
        pass


def remove_run(run: Run) -> None:
    """Delete a run; raises UserError where another process works on it."""
    check_removable(run)
    with _set_aside(run) as hidden:
        pass
    shutil.rmtree(hidden, ignore_errors=True)
    sweep(run.path.parent)


def replace_run(run: Run, make: Callable[[], Run]) -> Run:
    """Delete a run and have `make` put a new one in its place; where that fails the old one stays.

    Raises UserError where another process works on it.
    """
    check_removable(run)
    with _set_aside(run) as hidden:
        made = make()
    shutil.rmtree(hidden, ignore_errors=True)
    sweep(run.path.parent)
    return made


def sweep(runs_folder: Path) -> None:
    """Delete what a kill has left of removed runs."""
    for path in runs_folder.glob(".*.removed") if runs_folder.is_dir() else ():
        if REMOVED.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _set_aside(run: Run) -> Iterator[Path]:
    """The run under a hidden name, and locked; an exception puts it back."""
    hidden = run.path.with_name(f".{run.name}.{uuid.uuid4().hex}.removed")
    with uninterrupted(), run.lock():
        run.path.rename(hidden)
        sync(hidden.parent)
        try:
            yield hidden
        except BaseException:
            hidden.rename(run.path)
            raise


def _stands_on(other: Run, run: Run) -> bool:
    model = other.resolved().get("model")
    if other == run or not isinstance(model, str):
        return False
    text = reveal(model)
    folder = Path(other.read_lock_json().get("recipe", {}).get("folder", "")) / text
    return folder.resolve().is_relative_to(run.path)


def uses(run: Run, recipe: dict[str, Any]) -> bool:
    """True where a recipe with absolute paths names something inside of a run's folder."""
    return any(Path(text).is_relative_to(run.path) for text in _texts(recipe))


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for part in value.values() if isinstance(value, dict) else ():
        yield from _texts(part)
    for part in value if isinstance(value, list) else ():
        yield from _texts(part)


def _size_bytes(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        try:
            size += path.lstat().st_size
        except FileNotFoundError:
            continue
    return size
