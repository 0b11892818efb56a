"""What one stage's training needs.

Made by the stages, used up by `fit.py`. Left out: what happens in a step, and how one is cut into
micro-batches (cutting.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import torch

from hone.losses import LossFunction
from hone.metrics import Row
from hone.models import LanguageModel
from hone.recipe.data import Stopping
from hone.recipe.training import TrainingStage
from hone.records import Sample

EVALUATION = 0.5  # an evaluation comes half a step after its step


def _ignore(*_: object) -> None:
    """For whoever does not want to be told."""


def _missing(*_: object) -> NoReturn:
    raise AssertionError("the stage's method has to give `fit` its loss and its samples")


@dataclass
class Training:
    """All that one stage's training needs; made by the stage, used up by `fit`.

    samples_of: the samples of step 1, 2, ...; held_out: the samples of evaluations, empty for none.
    smaller_budgets: (moment, tokens), from then on at most so many tokens at once instead of
    `token_budget`; the moment is a step, 6.5 for the evaluation after step 6, or below 0.5 for what
    comes before both. keep_budgets is given all of them before a new one is used. place_of: where a
    sample came from, in words. conceal: hides in what is saved what the recipe took from the
    environment.

    prepare: what the loss needs besides, put onto a step's or an evaluation's samples with the
    weights as they are (samples, moment). facts_of: what a method adds to the row of a step.
    evaluate: the evaluation after a step, where it is not the loss on `held_out`. wants_entropy:
    whether the batches carry the constant `entropy` to the loss. at_work: the samples of the
    micro-batch that is computed now.
    """

    model: LanguageModel
    optimizer: torch.optim.Optimizer
    settings: TrainingStage
    folder: Path
    seed: int
    stage: int
    total_steps: int
    token_budget: int
    epoch_of: Callable[[int], float]
    loss: LossFunction = _missing
    samples_of: Callable[[int], Sequence[Sample]] = _missing
    held_out: Sequence[Sample] = ()
    prepare: Callable[[Sequence[Sample], float], Sequence[Sample]] = lambda samples, _: samples
    facts_of: Callable[[int], Row] = lambda _: {}
    evaluate: Callable[[int], Row] | None = None
    wants_entropy: bool = False
    at_work: Sequence[Sample] = ()
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
    def early_stopping(self) -> Stopping | None:
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
