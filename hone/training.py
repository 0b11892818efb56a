"""What one stage's training needs, and how its steps are cut into micro-batches.

Made by the stages, used up by `fit.py`. Left out: what happens in a step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from hone.forest import plan_micro_batches
from hone.losses import LossFunction
from hone.metrics import Row
from hone.models import LanguageModel
from hone.recipe.schema import EarlyStopping, TrainingStage
from hone.records import Sample

EVALUATION = 0.5  # an evaluation comes half a step after its step


def _ignore(*_: object) -> None:
    """For whoever does not want to be told."""


@dataclass
class Training:
    """All that one stage's training needs; made by the stage, used up by `fit`.

    samples_of: the samples of step 1, 2, ...; held_out: the samples of evaluations, empty for none.
    smaller_budgets: (moment, tokens), from then on at most so many tokens at once instead of
    `token_budget`; the moment is a step, or 6.5 for the evaluation after step 6. keep_budgets is
    given all of them before a new one is used. place_of: where a
    sample came from, in words. conceal: hides in what is saved what the recipe took from the
    environment.
    """

    model: LanguageModel
    optimizer: torch.optim.Optimizer
    loss: LossFunction
    settings: TrainingStage
    folder: Path
    seed: int
    stage: int
    total_steps: int
    samples_of: Callable[[int], Sequence[Sample]]
    held_out: Sequence[Sample]
    token_budget: int
    epoch_of: Callable[[int], float]
    report: Callable[[Row], None] = _ignore
    warn: Callable[[str], None] = _ignore
    conceal: Callable[[str], str] = str
    place_of: Callable[[Sample], str] = lambda sample: f"sample {sample.index}"
    smaller_budgets: list[tuple[float, int]] = field(default_factory=list)
    keep_budgets: Callable[[list[tuple[float, int]]], None] = _ignore

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are kept."""
        return self.folder / "checkpoints"

    @property
    def early_stopping(self) -> EarlyStopping | None:
        """The recipe's rule for ending before the last step."""
        return self.settings.evaluation.early_stopping if self.settings.evaluation else None

    def budget_at(self, moment: float) -> int:
        """Tokens computed at once in a step, or in the evaluation half a step later."""
        smaller = [tokens for begin, tokens in self.smaller_budgets if begin <= moment]
        return min([self.token_budget, *smaller])

    def evaluates_at(self, step: int) -> bool:
        """True where an evaluation is due after `step` updates."""
        evaluation = self.settings.evaluation
        if evaluation is None:
            return False
        if step == 0:
            return evaluation.before
        return step % evaluation.every == 0 or step == self.total_steps


def plan_step(training: Training, samples: Sequence[Sample], moment: float) -> list[list[int]]:
    """How a step, or an evaluation, is cut into micro-batches: by its samples, the layout and the
    budget of that moment.
    """
    return cut(training, samples, training.budget_at(moment))


def cut(training: Training, samples: Sequence[Sample], token_budget: int) -> list[list[int]]:
    """Micro-batches of at most `token_budget` tokens, as the model's layout needs them."""
    layout = training.model.layout
    return plan_micro_batches(
        samples, token_budget, padded=layout != "forest", alone=layout == "alone"
    )
