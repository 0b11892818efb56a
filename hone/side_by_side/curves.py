"""The training curves of two runs over each other, stage by stage.

Used by `picture.py` and `page.py`. Stages are put together that have the same number and method;
one that only one of the runs has stands alone.
"""

from dataclasses import dataclass
from pathlib import Path

from hone.metrics import Row, read_metrics
from hone.runs import Run

MEASURED = {"grpo": "reward"}  # what a stage is judged by; of all others the loss


@dataclass(frozen=True)
class Line:
    """The rows of one run in one stage. run: 0 for the first, 1 for the second."""

    run: int
    training: list[Row]
    held_out: list[Row]


@dataclass(frozen=True)
class StageCurves:
    """A stage of one run or of both. name: as its folder is called. column: of the rows."""

    name: str
    column: str
    lines: list[Line]


def stage_curves(first: Run, second: Run) -> list[StageCurves]:
    """The stages of both runs in order, those with rows."""
    folders: dict[str, list[tuple[int, Path]]] = {}
    for number, run in enumerate((first, second)):
        for folder in run.stage_folders():
            folders.setdefault(folder.name, []).append((number, folder))
    found = []
    for name in sorted(folders, key=lambda each: int(each.partition("-")[0])):
        column = MEASURED.get(name.partition("-")[2], "loss")
        lines = [_line(number, folder, column) for number, folder in folders[name]]
        lines = [line for line in lines if line.training]
        if lines:
            found.append(StageCurves(name, column, lines))
    return found


def _line(number: int, folder: Path, column: str) -> Line:
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if row.get(column) is not None]
    training = [row for row in rows if "split" not in row]
    return Line(number, training, [row for row in rows if row.get("split") == "evaluation"])
