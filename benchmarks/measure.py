"""What a contender's process measures of itself, and the files between it and `harness.py`.

`run_hone.py` and `run_trl.py` use it alike, so that both are measured in the same way. Memory is
the peak of the resident set after a reset, above what stood there after the imports, and what the
processes that it has started hold for themselves; on CUDA the peak of torch's allocator.
"""

import json
import os
import re
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")
RESET_PEAK = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Request:
    """What one process is to do.

    folder: of the workload. scratch: for the process alone. settings: of the contender. started:
    `time.monotonic` before the process was started (one clock for all processes of the machine).
    max_steps: None for a whole pass.
    """

    contender: str
    round: int
    folder: Path
    scratch: Path
    device: str
    threads: int
    settings: dict[str, Any]
    max_steps: int | None
    started: float = 0.0

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self), default=str, indent=2))

    @classmethod
    def read(cls, path: Path) -> "Request":
        """What `write` wrote."""
        values = json.loads(path.read_text())
        places = {name: Path(values[name]) for name in ("folder", "scratch")}
        return cls(**{**values, **places})


@dataclass(frozen=True)
class Step:
    """One optimizer step. seconds: since the end of the one before, loading of data included."""

    seconds: float
    samples: int
    tokens: int
    trained_tokens: int
    loss: float


@dataclass
class Outcome:
    """What one process measured.

    to_trainer_s: from the start of the process to the end of the imports. to_first_step_s: from the
    start of the process to the end of step 1. pass_s: all steps, the first one included, and what
    was computed before them. before_s: computing references of `before_samples` samples, all of it
    before step 1.
    """

    contender: str
    round: int
    to_trainer_s: float
    to_first_step_s: float
    pass_s: float
    floor_bytes: int
    peak_bytes: int
    before_s: float = 0.0
    before_samples: int = 0
    note: str = ""
    steps: list[Step] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self), indent=2))

    @classmethod
    def read(cls, path: Path) -> "Outcome":
        """What `write` wrote."""
        values = json.loads(path.read_text())
        return cls(**{**values, "steps": [Step(**step) for step in values["steps"]]})


def resident_bytes(field_name: str) -> int:
    """A field of this process's status: VmRSS (now) or VmHWM (peak since the last reset)."""
    found = re.search(rf"^{field_name}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    assert found, f"{STATUS} has no {field_name}"
    return int(found.group(1)) * 1024


def children_bytes(process: int) -> int:
    """Memory that the children of a process, and theirs, share with no other process."""
    total = 0
    for listed in Path(f"/proc/{process}/task").glob("*/children"):
        for child in map(int, listed.read_text().split()):
            with suppress(FileNotFoundError, ProcessLookupError):  # it may have ended just now
                rollup = Path(f"/proc/{child}/smaps_rollup").read_text()
                private = re.findall(r"^Private_\w+:\s+(\d+) kB", rollup, re.MULTILINE)
                total += sum(map(int, private)) * 1024 + children_bytes(child)
    return total


class Memory:
    """The peak of memory from now on; `look` often, as what is trained may reset it too."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.floor = 0 if device == "cuda" else resident_bytes("VmRSS")
        self.highest = self.floor
        self.beside = 0
        if device != "cuda":
            RESET_PEAK.write_text("5")

    def look(self) -> int:
        """The peak so far."""
        if self.device == "cuda":
            import torch

            found = torch.cuda.max_memory_allocated()
        else:
            found = resident_bytes("VmHWM")
            self.beside = max(self.beside, children_bytes(os.getpid()))
        self.highest = max(self.highest, found)
        return self.highest + self.beside


def read_request() -> Request:
    """The request whose file is named on the command line."""
    return Request.read(Path(sys.argv[1]))


def now() -> float:
    """Seconds of a clock that all processes of the machine share."""
    return time.monotonic()
