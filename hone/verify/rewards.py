"""The check `rewards`: what reinforcement was there for came about, and nothing else in its place.

Held-out questions are answered anew by each `grpo` stage's start and result (answered.py). Four
parts a stage: the mean reward rose; answers are well formed; rewards could be computed, now and
during training; not all questions get the same answer. Left out: prompts one by one (learning.py).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import cast

from hone.intervals import bootstrap
from hone.recorded import list_rollout_files
from hone.stages.tasks import Tasks
from hone.verify.answered import Answer, Scored, scored
from hone.verify.subject import StageResult, Subject
from hone.verify.verdicts import (
    FAILED,
    Found,
    NotApplicableError,
    Part,
    join_parts,
    not_applicable,
    status_of,
)

HOW = (
    "greedy answers to held-out questions by the start and the result of each grpo stage, scored "
    "as in training: paired bootstrap interval of the rewards' difference, share of well-formed "
    "answers, of failed scores, and of the most frequent answer"
)
FORMAT = "format"  # the reward that says whether an answer is well formed
TOLD = 60  # characters of an answer in a reason


def check_rewards(subject: Subject) -> Found:
    """The held-out reward of every `grpo` stage rose, and not for a reason that is none."""
    stages = [stage for stage in subject.stages if stage.method == "grpo"]
    if not stages:
        raise NotApplicableError("the recipe has no `grpo` stage")
    return join_parts([part for stage in stages for part in _parts(subject, stage)])


def _parts(subject: Subject, stage: StageResult) -> Iterator[Part]:
    name, thresholds = stage.name, subject.settings.thresholds
    try:
        found = scored(subject, stage)
    except NotApplicableError as reason:
        yield not_applicable(name, str(reason))
    else:
        yield compare(f"{name} reward", found)
        environment = cast(Tasks, subject.material(stage)).environment
        marks = environment.full_marks.get(FORMAT) if environment else None
        yield judge_format(f"{name} format", found.after, marks, thresholds.format)
        yield _held_out_failures(f"{name} held-out failures", found, thresholds.failures)
        yield judge_variety(f"{name} constant answers", found, thresholds.constant)
    yield _recorded_failures(f"{name} recorded failures", stage, thresholds.failures)


def compare(of: str, found: Scored) -> Part:
    """The mean reward rose, beyond chance."""
    pairs = found.pairs
    if not pairs:
        reason = f"not one of {len(found.questions)} answers could be scored"
        return Part(of, FAILED, None, 0.0, 0, reason)
    before, after = (bootstrap([pair[side] for pair in pairs]) for side in (0, 1))
    gain = bootstrap([new - old for old, new in pairs])
    reason = (
        f"mean reward {before.mean:.4g} to {after.mean:.4g}, {gain.mean:+.3g} "
        f"(95 %: {gain.low:+.3g} to {gain.high:+.3g})"
    )
    details = {"before": vars(before), "after": vars(after), "gain": vars(gain)}
    passed = status_of(gain.is_above_zero)
    return Part(of, passed, gain.mean, 0.0, len(pairs), reason, details)


def judge_format(
    of: str, answers: Sequence[Answer], full_marks: float | None, threshold: float
) -> Part:
    """Enough answers are well formed. full_marks: what the environment gives one that is."""
    marks = [answer.rewards.get(FORMAT) or 0.0 for answer in answers]
    if not any(FORMAT in answer.rewards for answer in answers):
        formed = [not answer.truncated for answer in answers]
        by = f"ended by themselves (there is no reward called `{FORMAT}`)"
    elif full_marks is None:
        formed, by = [mark > 0 for mark in marks], f"have more than 0 of the reward `{FORMAT}`"
    else:
        formed = [mark >= full_marks for mark in marks]
        by = f"have full marks of the reward `{FORMAT}`"
    share = sum(formed) / len(formed)
    reason = f"{sum(formed)} of {len(formed)} answers {by}"
    return Part(of, status_of(share >= threshold), share, threshold, len(formed), reason)


def _held_out_failures(of: str, found: Scored, threshold: float) -> Part:
    """Few answers could not be scored."""
    return judge_failures(of, [each.failure for each in (*found.before, *found.after)], threshold)


def _recorded_failures(of: str, stage: StageResult, threshold: float) -> Part:
    """Few rollouts of the training could not be scored, by what was recorded of them."""
    files = [each for each in list_rollout_files([stage.folder]) if each.whole]
    failures = [rollout.failure for file in files for rollout in file.read()]
    if not failures:
        return Part(of, FAILED, None, threshold, 0, "the rollouts of the training are not there")
    return judge_failures(of, failures, threshold)


def judge_failures(of: str, failures: Sequence[str | None], threshold: float) -> Part:
    """Few could not be scored; for each there is its failure, or None."""
    known = [failure for failure in failures if failure is not None]
    share = len(known) / len(failures)
    reason = f"{len(known)} of {len(failures)} could not be scored"
    if known:
        (most, times), *_ = Counter(known).most_common(1)
        reason += f", {times} times: {most}"
    return Part(of, status_of(share <= threshold), share, threshold, len(failures), reason)


def judge_variety(of: str, found: Scored, threshold: float) -> Part:
    """Different questions do not all get the same answer.

    Where right answers are known, as many answers may be the same as right ones are.
    """
    asked = {tuple(each.ids): n for n, each in reversed(list(enumerate(found.questions)))}
    places = sorted(asked.values())
    if len(places) == 1:
        return not_applicable(of, "only one question was held out")
    golds = [found.questions[n].task.gold for n in places]
    allowed = threshold
    if None not in golds:
        allowed = max(threshold, Counter(golds).most_common(1)[0][1] / len(golds))
        if len(set(golds)) == 1:
            return not_applicable(of, "all held-out questions have the same right answer")
    (most, times), *_ = Counter(found.after[n].text.strip() for n in places).most_common(1)
    share = times / len(places)
    reason = f"the most frequent answer comes {times} times of {len(places)}: {shorten(most)!r}"
    return Part(of, status_of(share <= allowed), share, allowed, len(places), reason)


def shorten(text: str) -> str:
    """An answer as a reason shows it."""
    return text if len(text) <= TOLD else f"{text[: TOLD - 3]}..."
