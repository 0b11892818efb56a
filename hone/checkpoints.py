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

from hone.files import sync
from hone.signals import uninterrupted

MANIFEST = "manifest.json"
STATE = "state.json"


@dataclass(frozen=True)
class CheckpointState:
    """What a checkpoint knows besides weights and optimizer.

    step: optimizer updates made. evaluated: the evaluation due at this step is in the metrics.
    best_step, best_loss: the best evaluation so far. time_s: seconds the run had taken. Everything
    else follows from the recipe and the step.
    """

    step: int
    evaluated: bool
    best_step: int | None = None
    best_loss: float | None = None
    time_s: float = 0.0


def step_folder(folder: Path, step: int) -> Path:
    """The folder of the checkpoint of `step`."""
    return folder / f"step_{step:06d}"


def write_folder(final: Path, write: Callable[[Path], None]) -> None:
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
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


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


def prune(folder: Path, *, keep: int, best_step: int | None) -> None:
    """Delete all but the newest `keep` checkpoints and the best one."""
    kept = list_checkpoints(folder)[-keep:]
    for path in list_checkpoints(folder):
        if path not in kept and (best_step is None or path != step_folder(folder, best_step)):
            shutil.rmtree(path)


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {
            "size": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }
