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

    answers: completions that evaluations draw, of at most `answer_tokens` each. tokens is 0 where a
    stage draws what it learns from: its steps are alike, and are counted.
    """

    steps: int
    tokens: float = 0.0
    forward: float = 0.0
    answers: int = 0
    answer_tokens: int = 0


def forecast_s(outlook: Outlook, played: Played) -> float:
    """Seconds that all steps and evaluations take at the pace of the rehearsal."""
    if not outlook.tokens:
        drawn = outlook.answers * outlook.answer_tokens
        sampling = drawn / played.sampled_tokens_per_s if played.sampled_tokens_per_s else 0.0
        return outlook.steps * played.step_s + sampling
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
    answers = evaluated * len(tasks.held_out.questions)
    return Outlook(tasks.total_steps, answers=answers, answer_tokens=settings.completion_tokens)


def count_evaluations(evaluation: Occasions | None, steps: int) -> int:
    """How often a stage of so many steps evaluates: `Training.evaluates_at`."""
    if evaluation is None:
        return 0
    return evaluation.before + -(-steps // evaluation.every)
