"""The check `learning`: held-out prompts improved from a stage's start to its result, beyond
chance, and none of them was trained on.

A prompt improves where its score grew, by the recipe's `verify.measure`:

    loss                      minus the loss of its answer, in nats per token (preferences: minus
                              the stage's own loss)
    exact, contains, numeric  of the greedy answer against the sample's own one
    preference                log p(chosen) - log p(rejected) of whole answers
    reward                    of the greedy answer, by the stage's environment and rewards

A stage for which the named one has no meaning takes its own. Prompts that stay equal, answered
rightly before and after say, have not improved. Left out: how large the gain is (loss.py,
rewards.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from hone.environments import make_environment
from hone.evaluation.measures import MEASURES
from hone.intervals import bootstrap, sign_test
from hone.recipe.policy import Grpo
from hone.recipe.verify import MeasureName
from hone.records import Sample
from hone.rewards.scores import Score, total
from hone.sampling import Artifact
from hone.verify.answered import scored
from hone.verify.likelihoods import Reals, tell
from hone.verify.loss import CHOSEN, REJECTED, held_out, stage_losses
from hone.verify.overlap import Overlap, find_overlap, prompt_length
from hone.verify.subject import StageResult, Subject
from hone.verify.verdicts import Found, NotApplicableError, Part, join_parts, not_applicable
from hone.verify.verdicts import status_of as status

HOW = (
    "share of held-out prompts whose score grew from each stage's start to its result, one-sided "
    "sign test; held-out prompts compared with all training prompts as text"
)
CHANCE = 0.05  # the largest probability of a sign test that passes
NOISE_NATS = 1e-4  # a smaller change of a log-probability is the order of fp32 sums
ANSWERED: tuple[MeasureName, ...] = ("exact", "contains", "numeric")


@dataclass(frozen=True)
class Scores:
    """Of N prompts, higher is better. noise: changes up to it count as equal. full: the highest
    score that there is, None where there is none.
    """

    before: Reals
    after: Reals
    noise: float = 0.0
    full: float | None = None

    @property
    def improved(self) -> int:
        """Prompts whose score grew."""
        return int((self.after - self.before > self.noise).sum())

    @property
    def worse(self) -> int:
        """Prompts whose score fell."""
        return int((self.before - self.after > self.noise).sum())


def check_learning(subject: Subject) -> Found:
    """Enough held-out prompts improved in every stage, and none of them was trained on."""
    return join_parts([check_stage(subject, stage) for stage in subject.stages])


def check_stage(subject: Subject, stage: StageResult) -> Part:
    """The same of one stage."""
    try:
        samples = [] if stage.method == "grpo" else held_out(subject, stage)
        measure, note = choose_measure(subject.settings.measure, stage, samples)
        scores = SCORING[measure](subject, stage, samples)
    except NotApplicableError as reason:
        return not_applicable(stage.name, str(reason))
    overlap = find_overlap(subject, stage)
    threshold, count = subject.settings.thresholds.learning, len(scores.before)
    share, chance = scores.improved / count, sign_test(scores.improved, scores.worse)
    told = [
        f"{scores.improved} of {count} held-out prompts improved by {measure}, {scores.worse} got "
        f"worse (sign test: p = {chance:.2g})",
        note,
        _tell_leak(overlap),
    ]
    return Part(
        stage.name,
        status(share > threshold and chance < CHANCE and not overlap.leaked),
        share,
        threshold,
        count,
        "; ".join(filter(None, told)),
        {"measure": measure, "p": chance, **_details(scores, subject), **overlap.details},
    )


def choose_measure(
    wished: MeasureName | None, stage: StageResult, samples: Sequence[Sample]
) -> tuple[MeasureName, str]:
    """(the measure of a stage, why it is not the one that the recipe names)."""
    own: MeasureName = "reward" if stage.method == "grpo" else "loss"
    has_prompts = any(prompt_length(sample) for sample in samples)
    meaningful: dict[str, tuple[MeasureName, ...]] = {
        "grpo": ("reward",),
        "dpo": ("loss",) if getattr(stage.settings, "unpaired", False) else ("loss", "preference"),
        "sft": ("loss", *ANSWERED) if has_prompts else ("loss",),
    }
    if wished is None or wished in meaningful.get(stage.method, ("loss",)):
        return wished or own, ""
    return own, f"the measure `{wished}` has no meaning for this stage, so its own is taken"


def _tell_leak(overlap: Overlap) -> str:
    if not overlap.leaked:
        return ""
    first = overlap.examples[0]
    return (
        f"{overlap.count} of {overlap.total} held-out prompts stand word for word in the training "
        f"data, for example {first['held_out']} in {first['training']} of {first['stage']}: "
        f"{first['text']!r}"
    )


def _details(scores: Scores, subject: Subject) -> dict[str, Any]:
    count, seed = len(scores.before), subject.recipe.seed
    means = {
        name: vars(bootstrap(values.tolist(), seed))
        for name, values in (("score_before", scores.before), ("score_after", scores.after))
    }
    equal = count - scores.improved - scores.worse
    shares = {"improved": scores.improved, "worse": scores.worse, "equal": equal}
    if scores.full is not None:
        shares["full_marks_before"] = int((scores.before >= scores.full).sum())
    return {**{name: number / count for name, number in shares.items()}, **means}


# --- Scores ---------------------------------------------------------------------------------------


def _score_loss(subject: Subject, stage: StageResult, samples: Sequence[Sample]) -> Scores:
    losses = stage_losses(subject, stage)
    return Scores(-losses.before / losses.counts, -losses.after / losses.counts, NOISE_NATS)


def _score_preference(subject: Subject, stage: StageResult, samples: Sequence[Sample]) -> Scores:
    def margins(artifact: Artifact) -> Reals:
        told = tell(artifact, samples)
        return np.array([each[CHOSEN].logprob - each[REJECTED].logprob for each in told])

    return Scores(margins(subject.start(stage)), margins(subject.result(stage)), NOISE_NATS)


def _score_answers(measure: str) -> Callable[[Subject, StageResult, Sequence[Sample]], Scores]:
    judge = MEASURES[measure]

    def score(subject: Subject, stage: StageResult, samples: Sequence[Sample]) -> Scores:
        asked = [sample for sample in samples if prompt_length(sample)]
        questions = [question_of(sample) for sample in asked]
        most = subject.settings.completion_tokens

        def scores(artifact: Artifact) -> Reals:
            decode = artifact.renderer.tokenizer.decode
            answers = artifact.generate([prompt for prompt, _ in questions], max_new_tokens=most)
            return np.array(
                [
                    judge(*(decode(ids, skip_special_tokens=True) for ids in (answer, expected)))
                    for answer, (_, expected) in zip(answers, questions, strict=True)
                ]
            )

        return Scores(scores(subject.start(stage)), scores(subject.result(stage)), full=1.0)

    return score


def question_of(sample: Sample) -> tuple[list[int], list[int]]:
    """(the tokens before the first answer, those of that answer with its end token)."""
    (segment,) = sample.segments
    first = prompt_length(sample)
    rest = np.asarray(segment.trained[first:], dtype=bool)
    length = len(rest) if rest.all() else int(np.argmin(rest))
    ids = segment.tokens.tolist()
    return ids[:first], ids[first : first + length]


def _score_rewards(subject: Subject, stage: StageResult, samples: Sequence[Sample]) -> Scores:
    """Of the stage's held-out questions whose answers could be scored before and after."""
    found = scored(subject, stage).pairs
    if not found:
        raise NotApplicableError("no answer could be scored; see the check `rewards`")
    before, after = np.array(found, dtype=np.float64).T
    return Scores(before, after, full=_full_marks(stage))


def _full_marks(stage: StageResult) -> float | None:
    """The most that an environment gives; None beside a person's own rewards, which have no end."""
    settings = cast(Grpo, stage.settings)
    if settings.environment is None or settings.rewards:
        return None
    best = make_environment(settings.environment).full_marks
    return total(Score(dict(best)), settings.environment.weights)


SCORING: dict[MeasureName, Callable[[Subject, StageResult, Sequence[Sample]], Scores]] = {
    "loss": _score_loss,
    "preference": _score_preference,
    "reward": _score_rewards,
    **{name: _score_answers(name) for name in ANSWERED},
}
