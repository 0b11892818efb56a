"""The check `loss`: what is held out became likelier from a stage's start to its result.

Both are loaded from their folders and computed by plain forwards (likelihoods.py); no figure that
training wrote is read. `learning.py` looks at the same losses prompt by prompt. Left out: rewards,
where a falling loss says nothing (learning.py and rewards.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast
from weakref import WeakKeyDictionary

import numpy as np
import torch

from hone.forest import count_step
from hone.intervals import Measure, bootstrap_of
from hone.losses.preference import PAIR_LOSSES, Pairs, Sides
from hone.losses.unpaired import kto
from hone.recipe.preference import Dpo
from hone.records import Sample
from hone.sampling import Artifact
from hone.stages.data import StageData
from hone.stages.mismatched import mismatch
from hone.verify.likelihoods import Reals, Told, tabulate, tell
from hone.verify.subject import StageResult, Subject
from hone.verify.verdicts import Found, NotApplicableError, Part, join_parts, not_applicable
from hone.verify.verdicts import status_of as status

HOW = (
    "held-out loss of each stage under its start and its result, both loaded again (preferences: "
    "the stage's own loss); share by which it fell, bootstrap interval over samples"
)
CHOSEN, REJECTED = 1, 2  # segments of a pair; of an unpaired sample, 1 is the completion


@dataclass(frozen=True)
class Losses:
    """Of N held-out samples. before, after: (N,) the losses under the stage's start and its result,
    summed over `counts` (N,) of `unit`.
    """

    before: Reals
    after: Reals
    counts: Reals
    unit: str

    def fall(self, seed: int) -> Measure:
        """The share of the loss that is gone, 1 - after / before, with its interval."""
        table = np.stack([self.before, self.after], axis=1)
        return bootstrap_of(table, lambda means: 1 - means[..., 1] / means[..., 0], seed)


_kept: WeakKeyDictionary[Subject, dict[int, Losses]] = WeakKeyDictionary()


def check_loss(subject: Subject) -> Found:
    """Held-out loss fell by more than the threshold in every stage, beyond chance."""
    return join_parts([_check_stage(subject, stage) for stage in subject.stages])


def held_out(subject: Subject, stage: StageResult) -> list[Sample]:
    """What is looked at of a stage's held-out samples. Raises NotApplicableError where there are
    none.
    """
    if stage.method == "grpo":
        raise NotApplicableError(
            "a policy loss is no measure of quality, it may rise while answers get better; see "
            "rewards and learning"
        )
    material = cast(StageData, subject.material(stage))
    if not len(material.held_out):
        raise NotApplicableError(
            "nothing was held out; to have this checked, put `evaluation: {share: 0.05}` into the "
            f"stage `{stage.method}` of the recipe"
        )
    return list(material.held_out[: subject.settings.samples])


def stage_losses(subject: Subject, stage: StageResult) -> Losses:
    """The loss that the stage trained, of its held-out samples, computed once for each subject.
    Nats per token for text; for preferences its own loss function, with the stage's start as the
    reference. Raises NotApplicableError where nothing is held out.
    """
    kept = _kept.setdefault(subject, {})
    if stage.index not in kept:
        kept[stage.index] = _compute_losses(subject, stage)
    return kept[stage.index]


def _compute_losses(subject: Subject, stage: StageResult) -> Losses:
    samples = held_out(subject, stage)
    start, result = subject.start(stage), subject.result(stage)
    if isinstance(stage.settings, Dpo):
        make = _unpaired_losses if stage.settings.unpaired else _pair_losses
        before, after = make(stage.settings, samples, start, result)
        return Losses(before, after, np.ones(len(samples)), "samples")
    before_table, after_table = tabulate(start, samples), tabulate(result, samples)
    return Losses(before_table.losses, after_table.losses, after_table.counts, "tokens")


def _check_stage(subject: Subject, stage: StageResult) -> Part:
    try:
        losses = stage_losses(subject, stage)
    except NotApplicableError as reason:
        return not_applicable(stage.name, str(reason))
    threshold = subject.settings.thresholds.loss
    fall = losses.fall(subject.recipe.seed)
    total = losses.counts.sum()
    before, after = float(losses.before.sum() / total), float(losses.after.sum() / total)
    unit = "nats per token" if losses.unit == "tokens" else "the mean over samples"
    return Part(
        stage.name,
        status(fall.mean > threshold and fall.is_above_zero),
        fall.mean,
        threshold,
        len(losses.before),
        f"held-out loss {before:.4g} to {after:.4g} ({unit}), {-fall.mean:+.1%} "
        f"(95 %: {-fall.high:+.1%} to {-fall.low:+.1%})",
        {
            "loss": _loss_name(stage),
            "before": before,
            "after": after,
            "low": fall.low,
            "high": fall.high,
            losses.unit: int(total),
        },
    )


def _loss_name(stage: StageResult) -> str:
    if isinstance(stage.settings, Dpo):
        return " + ".join(stage.settings.losses)
    return "negative log-likelihood"


# --- Preferences ----------------------------------------------------------------------------------


def _pair_losses(
    settings: Dpo, samples: Sequence[Sample], start: Artifact, result: Artifact
) -> tuple[Reals, Reals]:
    """(N,) before and after. Terms that are divided by the tokens of a step are divided by those of
    all these samples, so that the means are the stage's loss.
    """
    references = tell(start, samples)
    counts = count_step(samples)

    def losses(told: list[tuple[Told, ...]]) -> Reals:
        chosen, rejected = (_sides(told, references, side) for side in (CHOSEN, REJECTED))
        pairs = Pairs(chosen, rejected, counts)
        total = torch.zeros(len(samples), dtype=torch.float64)
        for name, weight in settings.losses.items():
            total += weight * PAIR_LOSSES[name](pairs, **settings.parameters_of(name))
        return total.numpy()

    return losses(references), losses(tell(result, samples))


def _unpaired_losses(
    settings: Dpo, samples: Sequence[Sample], start: Artifact, result: Artifact
) -> tuple[Reals, Reals]:
    """The same for KTO. As in the evaluations of training, the samples are one step: each lends its
    prompt to the completion of the next one, which gives the reference point.
    """
    desirable = torch.tensor([bool(s.segments[CHOSEN].constants["label"].any()) for s in samples])
    mixed = mismatch(samples, settings.max_tokens)
    references = _completions(start, samples), _completions(start, mixed)

    def losses(artifact: Artifact) -> Reals:
        ratio_N, gain_N = (
            _completions(artifact, each) - reference
            for each, reference in zip((samples, mixed), references, strict=True)
        )
        point = gain_N.mean().clamp(min=0) if len(samples) > 1 else torch.zeros(())
        values_N = kto(ratio_N, desirable, point, **settings.parameters_of("kto"))
        return cast(Reals, values_N.numpy())

    return losses(start), losses(result)


def _sides(told: list[tuple[Told, ...]], references: list[tuple[Told, ...]], segment: int) -> Sides:
    def column(value: Callable[[Told], float], of: list[tuple[Told, ...]]) -> torch.Tensor:
        return torch.tensor([value(each[segment]) for each in of], dtype=torch.float64)

    return Sides(
        column(lambda each: each.logprob, told),
        column(lambda each: each.logprob, references),
        column(lambda each: each.count, told),
    )


def _completions(artifact: Artifact, samples: Sequence[Sample]) -> torch.Tensor:
    """(N,) log-probabilities of the completions."""
    told = tell(artifact, samples)
    return torch.tensor([each[CHOSEN].logprob for each in told], dtype=torch.float64)
