"""What is done to copies of runs, and which checks of the models see it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from hone.checkpoints import hash_manifest
from hone.runs import Run
from hone.verify.examine import CHECKS, make_check
from hone.verify.subject import Subject
from hone.verify.verdicts import FAILED, Verdict
from tests.verify.ground import seal

MODEL_CHECKS = ("artifacts", "parameters", "stages", "merged")
Tensors = dict[str, torch.Tensor]


def examine(run: Run, *names: str) -> dict[str, Verdict]:
    """The verdicts of some checks, of all four of the models where none is named."""
    subject = Subject(run)
    return {name: make_check(name, CHECKS[name], subject) for name in names or MODEL_CHECKS}


def red(verdicts: dict[str, Verdict]) -> set[str]:
    """The names of the checks that failed."""
    return {name for name, verdict in verdicts.items() if verdict.status == FAILED}


def told(verdict: Verdict) -> str:
    """Why a check failed."""
    assert verdict.status == FAILED, verdict
    return verdict.reason


def accept(run: Run, folder: Path) -> None:
    """What was changed in a folder is what the run has saved."""
    seal(folder)
    run.announce(folder, hash_manifest(folder))


def flip_bit(path: Path, behind: int = 4) -> None:
    """Change the lowest bit of a file's last fp32 number; size and time stamps stay."""
    stat = path.stat()
    content = bytearray(path.read_bytes())
    content[-behind] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def edit_json(path: Path, **values: Any) -> None:
    """Set some keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values, indent=2))


def edit_tensors(
    folder: Path, edit: Callable[[Tensors], Tensors], name: str = "adapter_model.safetensors"
) -> None:
    """Change the tensors of a file."""
    path = folder / name
    made = {name: tensor.contiguous() for name, tensor in edit(load_file(path)).items()}
    save_file(made, path, metadata={"format": "pt"})
