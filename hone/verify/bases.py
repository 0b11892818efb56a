"""What the results of a run stand on, and whether its folders are still what the run has made.

Told by the recipe and the run alone: what an adapter says of itself is what is to be checked.
"""

import os
from pathlib import Path

from hone.checkpoints import find_fault, hash_manifest
from hone.recipe.training import Full
from hone.runs import Run
from hone.sampling import base_of_adapter
from hone.verify.subject import OWN_BASE, StageResult, Subject


def base_under(subject: Subject, stage: StageResult) -> str | None:
    """The folder or Hub id of the weights that a stage's adapter stands on; None where the stage
    trains whole weights.
    """
    if isinstance(stage.settings.trains, Full):
        return None
    own = stage.folder / OWN_BASE
    if own.is_dir():
        return str(own)
    if stage.index > 0:
        before = subject.stages[stage.index - 1]
        return base_under(subject, before) or str(before.model)
    source = subject.sources[0]
    return (base_of_adapter(Path(source)) if os.path.isdir(source) else None) or source


def is_same_place(first: str, second: str) -> bool:
    """True where two names are of one folder, or the same Hub id."""
    folders = os.path.isdir(first) and os.path.isdir(second)
    return os.path.samefile(first, second) if folders else first == second


def find_change(run: Run, folder: Path) -> str | None:
    """Why a model in the run is not what the run has saved there, or None."""
    name = folder.relative_to(run.path)
    if fault := find_fault(folder):
        return f"{name}: {fault}"
    saved, found = run.announced(folder), hash_manifest(folder)
    if saved is None:
        return f"{name}: events.jsonl does not say that the run has saved it"
    if found != saved:
        return (
            f"{name}: another model than the run has saved (SHA-256 of its manifest "
            f"{found[:12]}, in events.jsonl {saved[:12]})"
        )
    return None
