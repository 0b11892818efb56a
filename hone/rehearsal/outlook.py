"""How much a whole stage computes, and how long that takes at the pace of a rehearsal.

Called by `rehearse.py`. Counted are tokens, because steps differ: going forward and back costs
three times as much as going forward alone, which evaluations and a reference do. Left out: writing
checkpoints, and loading.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from hone.recipe.data import Occasions
from hone.recipe.preference import LOSS_FACTS, Dpo
from hone.rehearsal.play import Played
from hone.stages.data import StageData
from hone.stages.tasks import Tasks

FORWARD = 1 / 3  # of the work of going forward and back


@dataclass(frozen=True)
class Outlook:
    """A stage's work. tokens: that are trained on in all steps; forward: that are only read.

    Of a stage that draws what it learns from, `tokens` is 0, since its steps are alike. batches: of
    rollouts, each for a step or several. answers: completions that evaluations draw, of at most
    `answer_tokens` each.
    """

    steps: int
    tokens: float = 0.0
    forward: float = 0.0
    batches: int = 0
    answers: int = 0
    answer_tokens: int = 0


def forecast_s(outlook: Outlook, played: Played) -> float:
    """Seconds that all steps and evaluations take at the pace of the rehearsal."""
    if not outlook.tokens:
        learning = played.step_s - played.sampling_s
        evaluating = outlook.answers * outlook.answer_tokens / played.sampled_tokens_per_s
        return outlook.steps * learning + outlook.batches * played.sampling_s + evaluating
    return (outlook.tokens + FORWARD * outlook.forward) / played.tokens_per_s


def data_outlook(data: StageData) -> Outlook:
    """The work of a stage with prepared data."""
    epoch = epoch_tokens(data)
    tokens = epoch * data.epoch_of(data.total_steps)
    evaluated = count_evaluations(data.settings.evaluation, data.total_steps)
    held_out = float(data.held_out.prepared.lengths[data.held_out.indices].sum())
    forward = evaluated * held_out
    losses = data.settings.losses if isinstance(data.settings, Dpo) else ()
    if any(LOSS_FACTS[name].needs_reference for name in losses):
        forward += min(epoch, tokens) + held_out
    return Outlook(data.total_steps, tokens, forward)


def epoch_tokens(data: StageData) -> float:
    """Tokens of an epoch: what each data set gives to it, at that set's mean length."""
    tokens = 0.0
    for count, ends in zip(data.per_epoch, pairwise(data.prepared.borders), strict=True):
        begin, end = np.searchsorted(data.training.indices, ends)
        lengths = data.prepared.lengths[data.training.indices[begin:end]]
        tokens += count * float(lengths.mean())
    return tokens


def tasks_outlook(tasks: Tasks) -> Outlook:
    """The work of a stage that samples."""
    settings = tasks.settings
    evaluated = count_evaluations(settings.evaluation, tasks.total_steps)
    return Outlook(
        tasks.total_steps,
        batches=tasks.batch_of(tasks.total_steps),
        answers=evaluated * len(tasks.held_out.questions),
        answer_tokens=settings.completion_tokens,
    )


def count_evaluations(evaluation: Occasions | None, steps: int) -> int:
    """How often a stage of so many steps evaluates: `Training.evaluates_at`."""
    if evaluation is None:
        return 0
    return evaluation.before + -(-steps // evaluation.every)
