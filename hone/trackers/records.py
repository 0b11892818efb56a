"""What travels from a run to a tracker, and what a tracker is.

Made by `follow.py`, taken by `tensorboard.py`, `wandb.py` and `mlflow.py`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from hone.metrics import Row
from hone.runs import Run


@dataclass(frozen=True)
class About:
    """What is known about a run before its first row.

    identity: eight hexadecimal digits, the same in every attempt. parameters: the recipe, flat,
    `${NAME}` as written. folder: of the run. recipe_folder: where relative paths belong.
    """

    name: str
    identity: str
    folder: Path
    recipe_folder: Path
    parameters: dict[str, str | int | float | bool]
    versions: dict[str, str]
    recipe: dict[str, Any]
    began_s: float

    @classmethod
    def of(cls, run: Run) -> "About":
        """What the run's directory says."""
        locked, recipe = run.read_lock_json(), run.resolved()
        recipe = {key: value for key, value in recipe.items() if key != "trackers"}
        began = run.status().get("created_at") or "1970-01-01T00:00:00+00:00"
        return cls(
            name=run.name,
            identity=sha256(f"{run.name} {began}".encode()).hexdigest()[:8],
            folder=run.path,
            recipe_folder=Path(locked["recipe"]["folder"]),
            parameters=dict(_flat(recipe)),
            versions={name: version for name, version in locked["versions"].items() if version},
            recipe=recipe,
            began_s=datetime.fromisoformat(began).timestamp(),
        )


@dataclass(frozen=True)
class Point:
    """The numbers of one row. stage: "1-sft". number: how many were sent before it, over all
    stages. time_s: when it was made, in seconds since 1970. values: {"loss": ...} for training,
    {"evaluation/loss": ...} for held-out data.
    """

    stage: str
    step: int
    number: int
    time_s: float
    values: dict[str, float]

    @classmethod
    def of(cls, row: Row, stage: str, number: int, began_s: float) -> "Point":
        """A row of metrics.jsonl; what is no finite number is left out."""
        prefix = f"{row['split']}/" if "split" in row else ""
        return cls(
            stage=stage,
            step=row["step"],
            number=number,
            time_s=began_s + (row.get("time_s") or 0.0),
            values={
                prefix + key: value
                for key, value in row.items()
                if isinstance(value, int | float)
                and not isinstance(value, bool)
                and key not in ("step", "time_s")
            },
        )


class Tracker(Protocol):
    """One tracker, connected. Every method may raise or hang: the process is the tracker's own.

    anew: it holds no rows of this run, so that all are sent.
    remote: what a person needs to find the run there; kept in `trackers/NAME.json`.
    """

    anew: bool
    remote: dict[str, str]

    def send(self, points: Sequence[Point]) -> None:
        """Take points in their order. One that was taken before is taken as the same one."""

    def take_back(self, stage: str, step: int) -> bool:
        """Forget the rows after `step`; False where the tracker cannot."""

    def confirm(self) -> bool:
        """True where all that was sent outlives the process; False where `close` must come."""

    def close(self, state: str) -> None:
        """Say how the run ended (`succeeded`, `stopped`, `failed`, `crashed`) and let go."""


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str | int | float | bool]]:
    """Each value of the recipe with its path: `stages/1/sft/learning_rate`; null is left out."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{path}/{key}" if path else key)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for number, item in enumerate(value, 1):
            yield from _flat(item, f"{path}/{number}")
    elif isinstance(value, list):
        yield path, ", ".join(map(str, value))
    elif value is not None:
        yield path, value
