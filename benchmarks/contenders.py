"""Who is measured, and how one of them is run in a process of its own. Used by `sft.py`."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure import Outcome, Request, now

FEW_STEPS = 5  # of contenders that are too slow for a whole pass


@dataclass(frozen=True)
class Contender:
    """system: the module that runs it. settings: what differs from what that module sets.

    few: only some steps, not a pass. extra: measured only when asked for.
    """

    system: str
    settings: dict[str, Any] = field(default_factory=dict)
    few: bool = False
    extra: bool = False


GROUPED = {"train_sampling_strategy": "group_by_length"}
ALONE = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
REBALANCED = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "train_sampling_strategy": "batch_rebalance",
}
FP32, BF16 = {"bf16": False}, {"bf16": True}


def contenders_of(device: str, fast_bf16: bool) -> dict[str, Contender]:
    """All contenders of a device by name. fast_bf16: bf16 is worth a whole pass of TRL's.

    TRL's default of computing activations twice is off, which makes it faster; "trl checkpointed"
    has it on. The extras are ways to cut padding that a person has to know of.
    """
    hone, trl = "run_hone", "run_trl"
    if device == "cuda":
        return {
            "hone": Contender(hone),
            "trl": Contender(trl, BF16),
            "trl length-grouped": Contender(trl, BF16 | GROUPED),
        }
    few = not fast_bf16
    return {
        "hone": Contender(hone),
        "hone fp32": Contender(hone, {"precision": "fp32"}),
        "trl": Contender(trl, FP32),
        "trl length-grouped": Contender(trl, FP32 | GROUPED),
        "trl bf16": Contender(trl, BF16, few=few),
        "trl bf16 length-grouped": Contender(trl, BF16 | GROUPED, few=few, extra=True),
        "trl bf16 weights": Contender(trl, FP32 | {"weights": "bfloat16"}, few=few, extra=True),
        "trl bf16 rebalanced": Contender(trl, BF16 | REBALANCED, few=few, extra=True),
        "trl rebalanced": Contender(trl, FP32 | REBALANCED, extra=True),
        "trl 1x8": Contender(trl, FP32 | ALONE, extra=True),
        "trl checkpointed": Contender(trl, FP32 | {"activation_checkpointing": True}, extra=True),
    }


def run_contender(
    name: str,
    contender: Contender,
    *,
    number: int,
    folder: Path,
    scratch: Path,
    device: str,
    threads: int,
) -> Outcome:
    """Measure one contender in a fresh process; raises RuntimeError with the end of its log where
    it fails.
    """
    place = scratch / f"{number}-{name.replace(' ', '-')}"
    place.mkdir(parents=True)
    request = Request(
        contender=name,
        round=number,
        folder=folder,
        scratch=place,
        device=device,
        threads=threads,
        settings=contender.settings,
        max_steps=FEW_STEPS if contender.few else None,
        started=now(),
    )
    request.write(place / "request.json")
    command = [sys.executable, "-m", f"benchmarks.{contender.system}", str(place / "request.json")]
    log = place / "log.txt"
    with log.open("w") as file:
        done = subprocess.run(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=surroundings(scratch, threads),
            check=False,
        )
    if done.returncode != 0:
        tail = "\n".join(log.read_text().splitlines()[-30:])
        raise RuntimeError(f'"{name}" ended with {done.returncode}:\n{tail}')
    return Outcome.read(place / "outcome.json")


def surroundings(scratch: Path, threads: int) -> dict[str, str]:
    """The environment of every contender: the same threads, no network, caches of the benchmark's
    own.
    """
    return {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(scratch / "huggingface"),
        "HONE_CACHE": str(scratch / "hone"),
    }
