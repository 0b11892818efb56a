"""quarantine.jsonl: the samples of steps that made no update, because a number was not finite.

Written by `fit`, one line a step:
{"step": 7, "loss": null, "grad_norm": null, "samples": [{"index": 3, "place": "a.jsonl:4"}, ...],
"suspects": [3]}. `suspects` are the samples of the micro-batches whose own loss was not finite;
where it is empty, only the gradient was at fault. Resuming takes back the lines after its step.
"""

import json
import math
from pathlib import Path
from typing import Any

from hone.files import append_line, read_json_lines, write_whole

QUARANTINE = "quarantine.jsonl"


def quarantine(folder: Path, step: int, loss: float, grad_norm: float, **samples: Any) -> None:
    """Append the line of one step; numbers that are not finite become null."""
    line = {"step": step, "loss": _finite(loss), "grad_norm": _finite(grad_norm), **samples}
    append_line(folder / QUARANTINE, json.dumps(line))


def read_quarantine(folder: Path) -> list[dict[str, Any]]:
    """All lines of a stage, oldest first; [] where every step made its update."""
    return read_json_lines(folder / QUARANTINE)


def take_back(folder: Path, step: int) -> None:
    """Remove the lines of the steps after `step`, which are done again."""
    lines = read_quarantine(folder)
    kept = [line for line in lines if line["step"] <= step]
    if kept != lines:
        write_whole(folder / QUARANTINE, "".join(json.dumps(line) + "\n" for line in kept))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
