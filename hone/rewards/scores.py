"""What is scored and what comes of it: groups, scores, and the sum of rewards.

Made by the stage (`Group`) and by `pool.py` (`Score`); written to `rollouts/`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hone.records import Task


@dataclass(frozen=True)
class Group:
    """One task with its completions, ready to be scored.

    completions: G texts, special tokens left out. completion_ids: their tokens. step: the step that
    learns from them, from 1. total_steps: of the stage. epoch: passes over the tasks so far.

    Example: Group(Task(0, "2 + 3?"), ["5", "6"], [[20, 2], [21, 2]], step=1, total_steps=100)
    """

    task: Task
    completions: list[str]
    completion_ids: list[list[int]]
    step: int = 1
    total_steps: int = 1
    epoch: float = 0.0


@dataclass(frozen=True)
class Score:
    """What one completion got.

    rewards: by name, not weighted; None: not applicable, or not known after a failure. failure:
    why nothing may be learnt from the completion: "`distinct` raised ValueError: ...", "`distinct`
    took longer than 10 s", "`distinct` returned 'abc'", "no reward applies". extra: what reward
    functions said of it by `log_extra`.
    """

    rewards: dict[str, float | None]
    failure: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


class Scores(list[Score]):
    """The scores of a group in the order of its completions.

    metrics: what reward functions said of the group by `log_metric`, each name with all its values.
    """

    def __init__(
        self, scores: list[Score], metrics: Mapping[str, list[float]] | None = None
    ) -> None:
        super().__init__(scores)
        self.metrics = dict(metrics or {})


def total(score: Score, weights: Mapping[str, float]) -> float:
    """The weighted sum of the rewards that apply; a name without a weight weighs 1.

    NaN where none applies, as TRL has it: such a score is a failure already.
    """
    parts = [
        weights.get(name, 1.0) * reward
        for name, reward in score.rewards.items()
        if reward is not None
    ]
    return math.fsum(parts) if parts else math.nan
