"""Checkpoints and results on disk: whole or not there.

A folder is written under a temporary name, every file and the folder are synced, a manifest with
the SHA-256 of every file comes last, then one rename. `find_newest` takes the newest folder whose
manifest holds and names the broken ones.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hone.files import is_disk_full, sync
from hone.signals import uninterrupted

MANIFEST = "manifest.json"
STATE = "state.json"

Announce = Callable[[Path, str], None]
"""Is told a folder's name and the SHA-256 of its manifest, right before the folder appears."""


def say_nothing(folder: Path, sha256: str) -> None:
    """For folders of which no record is kept."""


@dataclass(frozen=True)
class CheckpointState:
    """What a checkpoint knows besides weights and optimizer.

    step: optimizer steps made. evaluated: the evaluation due at this step is in the metrics.
    best_step, best_value: the best evaluation so far, by the metric that is watched. without_gain:
    evaluations since then. stopped_early: no step comes after this one. skipped_in_a_row: the last
    so many steps made no update. time_s: seconds the run had taken. Everything else follows from
    the recipe and the step.
    """

    step: int
    evaluated: bool
    best_step: int | None = None
    best_value: float | None = None
    without_gain: int = 0
    stopped_early: bool = False
    skipped_in_a_row: int = 0
    time_s: float = 0.0


def step_folder(folder: Path, step: int) -> Path:
    """The folder of the checkpoint of `step`."""
    return folder / f"step_{step:06d}"


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's folder is named by."""
    return int(checkpoint.name.removeprefix("step_"))


def write_folder(
    final: Path,
    write: Callable[[Path], None],
    announce: Announce = say_nothing,
) -> None:
    """Have `write` fill a folder that appears under the name `final` only when it is complete and
    on disk.

    What stood under that name before is replaced. An exception leaves nothing behind.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    for stale in final.parent.glob(f".{final.name}.*.tmp"):
        shutil.rmtree(stale)
    temporary = final.parent / f".{final.name}.{os.getpid()}.tmp"
    try:
        temporary.mkdir()
        write(temporary)
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        for path in files:
            sync(path)
        manifest = {str(p.relative_to(temporary)): _describe(p) for p in files}
        (temporary / MANIFEST).write_text(json.dumps({"schema": 1, "files": manifest}, indent=1))
        sync(temporary / MANIFEST)
        sync(temporary)
        announce(final, hash_manifest(temporary))
        with uninterrupted():
            if final.exists():
                shutil.rmtree(final)
            temporary.rename(final)
        sync(final.parent)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


def find_fault(folder: Path) -> str | None:
    """Why a written folder is not whole, or None: its manifest is missing, or a file is missing or
    differs from it.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError):
        return f"{MANIFEST} is missing or cannot be read"
    for name, expected in manifest.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["size"]:
            return f"{name} has {path.stat().st_size} bytes, expected {expected['size']}"
        if _describe(path)["sha256"] != expected["sha256"]:
            return f"{name} differs from its SHA-256 in {MANIFEST}"
    return None


def hash_manifest(folder: Path) -> str:
    """SHA-256 of the manifest of a written folder, and so of all that it holds."""
    return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()


def save_checkpoint(folder: Path, state: CheckpointState, write: Callable[[Path], None]) -> Path:
    """Write the checkpoint of `state.step`; `write` adds weights and optimizer state."""

    def write_all(temporary: Path) -> None:
        write(temporary)
        (temporary / STATE).write_text(json.dumps({"schema": 1, **vars(state)}, indent=1))

    final = step_folder(folder, state.step)
    write_folder(final, write_all)
    return final


def read_state(checkpoint: Path) -> CheckpointState:
    """The state of a checkpoint that is whole."""
    stored: dict[str, Any] = json.loads((checkpoint / STATE).read_text())
    stored.pop("schema")
    return CheckpointState(**stored)


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoint folders under `folder`, oldest first."""
    found = [p for p in folder.glob("step_*") if re.fullmatch(r"step_\d+", p.name)]
    return sorted(found, key=step_of)


def find_newest(folder: Path) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest whole checkpoint, or None, and the newer ones that are broken, each with the
    reason.
    """
    broken: list[tuple[Path, str]] = []
    for path in reversed(list_checkpoints(folder)):
        fault = find_fault(path)
        if fault is None:
            return path, broken
        broken.append((path, fault))
    return None, broken


def prune(folder: Path, *, keep: int, best_step: int | None, keep_every: int | None = None) -> None:
    """Delete all but the newest `keep` checkpoints, the best one and those of every `keep_every`
    steps.
    """
    found = list_checkpoints(folder)
    kept = {*found[-keep:], *_best(folder, best_step)}
    kept.update(path for path in found if keep_every and step_of(path) % keep_every == 0)
    for path in found:
        if path not in kept:
            shutil.rmtree(path)


def make_room(folder: Path, *, best_step: int | None) -> int:
    """Delete all checkpoints but the newest whole one and the best whole one; returns the bytes.

    For a full disk: what is broken goes, and what is kept has been read to its last byte.
    """
    newest, _ = find_newest(folder)
    best = [path for path in _best(folder, best_step) if find_fault(path) is None]
    freed = 0
    for path in list_checkpoints(folder):
        if path != newest and path not in best:
            freed += folder_bytes(path)
            shutil.rmtree(path)
    return freed


def write_making_room(write: Callable[[], None], checkpoints: Path, best_step: int | None) -> None:
    """Do `write`; where the disk is full, delete what can be spared of the checkpoints and try once
    more. The second failure is raised.
    """
    try:
        return write()
    except Exception as error:
        if not is_disk_full(error):
            raise
    make_room(checkpoints, best_step=best_step)
    write()


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder; 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _best(folder: Path, best_step: int | None) -> list[Path]:
    return [] if best_step is None else [step_folder(folder, best_step)]


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {
            "size": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }
