"""Rollouts on disk: a line of JSON for each, in a file for each batch of them.

    stages/<n>-grpo/rollouts/step_000001.jsonl            what step 1 learns from
                             evaluation_000050.jsonl      held-out tasks after step 50
                             step_000002.jsonl.partial    scores as they come, until it is whole

A file without `.partial` is whole and never changes: a resumed run reuses it, and nothing in it is
sampled or scored again. Written by `rollouts.py`; read by it and by `hone rollouts`. `summarise` is
what the metrics say of a batch. Left out: how rollouts come about.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from hone.errors import UserError
from hone.files import append_line, read_json_lines, write_whole
from hone.metrics import Row

SCHEMA = 1
TRAINING, EVALUATION = "step", "evaluation"
PARTIAL = ".partial"
NAME = re.compile(rf"({TRAINING}|{EVALUATION})_(\d+)\.jsonl({PARTIAL})?")


@dataclass(frozen=True)
class Rollout:
    """One completion of a task, and what became of it.

    step: the first one that learns from it; of an evaluation the one before. group, sample: its
    place in the batch. task, place: number and origin of what was asked. ids: the end token
    included. logprobs: (L,) float32, when it was sampled. finish: `end`, `stop` or `length`.
    rewards: by name, None where one does not apply. total: their weighted sum. failure: why it has
    no rewards. left_out: why nothing is learned from it although it has. reference: (L,) float32,
    log-probabilities at the start of the stage, where there is a KL term. extra, metrics: what
    reward functions have logged besides, of it and (with a group's first) of its group.
    """

    step: int
    group: int
    sample: int
    task: int
    place: str
    prompt: str
    text: str
    finish: str
    prompt_ids: Sequence[int]
    ids: Sequence[int]
    logprobs: np.ndarray
    rewards: dict[str, float | None] = field(default_factory=dict)
    failure: str | None = None
    total: float | None = None
    advantage: float | None = None
    left_out: str | None = None
    reference: np.ndarray | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)

    @property
    def survives(self) -> bool:
        """True where it has a reward, so that it counts in its group's baseline."""
        return self.failure is None and self.total is not None

    @property
    def used(self) -> bool:
        """True where something is learned from it."""
        return self.survives and self.left_out is None

    def as_line(self) -> str:
        """A line of JSON that `from_line` reads back exactly."""
        table = {each.name: getattr(self, each.name) for each in fields(self)}
        for name in ("logprobs", "reference"):
            if table[name] is not None:
                table[name] = [_shortest(value) for value in table[name]]
        return json.dumps({"schema": SCHEMA, **table}, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_line(cls, table: dict[str, Any]) -> "Rollout":
        """The rollout of a line's table."""
        given = {each.name: table[each.name] for each in fields(cls)}
        for name in ("logprobs", "reference"):
            if given[name] is not None:
                given[name] = np.array(given[name], dtype=np.float32)
        return cls(**given)


def _shortest(value: np.float32) -> float:
    """A number that is written with few digits and read back as the same float32."""
    short = float(str(value))
    return short if np.float32(short) == value else float(value)


def rollouts_path(stage_folder: Path, kind: str, step: int) -> Path:
    """The file of the rollouts that step `step` learns from, or of the evaluation after it."""
    return stage_folder / "rollouts" / f"{kind}_{step:06d}.jsonl"


def write_rollouts(path: Path, rollouts: Iterable[Rollout]) -> None:
    """Write the file whole or not at all, on the disk; the partial one goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(rollout.as_line() + "\n" for rollout in rollouts))
    partial_path(path).unlink(missing_ok=True)


def read_rollouts(path: Path) -> list[Rollout] | None:
    """All rollouts of a whole file; None where there is none. Raises UserError for one that has
    been changed.
    """
    if not path.exists():
        return None
    try:
        return [Rollout.from_line(json.loads(line)) for line in path.read_bytes().splitlines()]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"`{path}` is no file of rollouts: {type(error).__name__}: {error}",
            hint="put it back as it was, or delete it: the step is then sampled and scored again",
        ) from error


def partial_path(path: Path) -> Path:
    """Where rollouts are kept as they are scored, until the file is whole."""
    return path.with_name(path.name + PARTIAL)


def append_scored(path: Path, rollouts: Sequence[Rollout]) -> None:
    """Keep a scored group. It outlives the process, a power loss perhaps not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    append_line(partial_path(path), "\n".join(rollout.as_line() for rollout in rollouts))


def mark_stopped(path: Path) -> None:
    """Say that the stage stops for the failures in what is kept: they are to be scored again."""
    append_line(partial_path(path), json.dumps({"stopped": "failures"}))


def read_scored(path: Path) -> dict[int, list[Rollout]]:
    """What `append_scored` has kept, by group; a line that a kill has torn is left out, and so are
    groups with failures for which the stage has stopped.
    """
    kept: dict[int, list[Rollout]] = {}
    for table in read_json_lines(partial_path(path)):
        if "stopped" in table:
            kept = {n: each for n, each in kept.items() if not any(r.failure for r in each)}
        else:
            rollout = Rollout.from_line(table)
            kept.setdefault(rollout.group, []).append(rollout)
    return kept


@dataclass(frozen=True)
class RolloutFile:
    """A file of rollouts. stage: the name of its stage's folder. whole: nothing is missing."""

    path: Path
    stage: str
    kind: str
    step: int
    whole: bool

    def read(self) -> list[Rollout]:
        """Its rollouts, as far as they are there; [] where it has just been replaced."""
        if self.whole:
            return read_rollouts(self.path) or []
        tables = read_json_lines(self.path)
        return [Rollout.from_line(table) for table in tables if "stopped" not in table]


def list_rollout_files(stage_folders: Iterable[Path]) -> list[RolloutFile]:
    """The files of these stages, in the order of stages and steps."""
    found = []
    for folder in stage_folders:
        for path in (folder / "rollouts").glob("*"):
            if match := NAME.fullmatch(path.name):
                kind, step, partial = match.groups()
                found.append(RolloutFile(path, folder.name, kind, int(step), not partial))
    order = [path.name for path in stage_folders]
    return sorted(found, key=lambda each: (order.index(each.stage), each.step, each.kind))


# What the metrics say of a batch

FEW_SURVIVORS = "fewer than two survivors"
NO_SPREAD = "no spread"
CUT_OFF = "cut off"


def groups_of(rollouts: Iterable[Rollout]) -> list[list[Rollout]]:
    """The rollouts by group, in order."""
    found: dict[int, list[Rollout]] = {}
    for rollout in rollouts:
        found.setdefault(rollout.group, []).append(rollout)
    return list(found.values())


def has_spread(group: Sequence[Rollout]) -> bool:
    """True where not all survivors of a group have the same reward."""
    return len({rollout.total for rollout in group if rollout.survives}) > 1


def summarise(rollouts: Sequence[Rollout], full_marks: Mapping[str, float]) -> Row:
    """The facts of a batch, a pure function of its rollouts.

    reward: mean of the weighted sums of those that survive. For each named reward that applies
    anywhere: mean, spread (standard deviation), and the shares at_bottom and at_top of its limits,
    which are 0 and full marks for an environment's, and else the least and the largest of the
    batch. Lengths in tokens; shares of all rollouts, but no_spread_share of the groups with at
    least two survivors.
    """
    groups = groups_of(rollouts)
    survivors = [rollout for rollout in rollouts if rollout.survives]
    compared = [group for group in groups if sum(each.survives for each in group) > 1]
    lengths = np.array([len(rollout.ids) for rollout in rollouts])
    row: Row = {}
    if survivors:
        totals = np.array([rollout.total for rollout in survivors], dtype=np.float64)
        row |= {"reward": float(totals.mean()), "reward_spread": float(totals.std())}
    names = dict.fromkeys(name for rollout in rollouts for name in rollout.rewards)
    for name in names:
        row |= _of_reward(name, survivors, full_marks.get(name))
    if compared:
        row["no_spread_share"] = sum(not has_spread(each) for each in compared) / len(compared)
    row |= {
        "rollouts": len(rollouts),
        "used_share": sum(rollout.used for rollout in rollouts) / len(rollouts),
        "failed_share": sum(rollout.failure is not None for rollout in rollouts) / len(rollouts),
        "truncated_share": sum(each.finish == "length" for each in rollouts) / len(rollouts),
        "completion_tokens": float(lengths.mean()),
        "completion_tokens_max": int(lengths.max()),
    }
    logged: dict[str, list[float]] = {}
    for rollout in rollouts:
        for name, values in rollout.metrics.items():
            logged.setdefault(name, []).extend(values)
    return row | {f"metric/{name}": float(np.mean(values)) for name, values in logged.items()}


def _of_reward(name: str, survivors: Sequence[Rollout], full: float | None) -> Row:
    found = [each.rewards[name] for each in survivors if each.rewards.get(name) is not None]
    if not found:
        return {}
    values = np.array(found, dtype=np.float64)
    bottom, top = (0.0, full) if full is not None else (values.min(), values.max())
    return {
        f"reward/{name}": float(values.mean()),
        f"reward/{name}/spread": float(values.std()),
        f"reward/{name}/at_bottom": float((values <= bottom).mean()),
        f"reward/{name}/at_top": float((values >= top).mean()),
    }
