"""Answers to held-out questions, by a stage's start and by its result, scored as in training.

Used by the checks `rewards` and `learning`. The questions are those that a `grpo` stage held out,
rendered as it asked them; answers are greedy, of the stage's `completion_tokens` at most. Scores
come from the stage's environment and reward functions in processes of their own. Left out: what is
made of it (rewards.py, learning.py).
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import cast
from weakref import WeakKeyDictionary

from hone.choosing import SamplingSettings
from hone.recipe.policy import Grpo
from hone.records import Task
from hone.rewards.pool import Scorer
from hone.rewards.scores import Group, Score, Scores, total
from hone.rollouts import STOP_POLL_S, Question
from hone.sampler import Completion, Request, make_sampler
from hone.sampling import Artifact
from hone.signals import check_stop
from hone.stages.tasks import Tasks
from hone.verify.subject import StageResult, Subject
from hone.verify.verdicts import NotApplicableError


@dataclass(frozen=True)
class Answer:
    """A greedy answer. text: special tokens left out; ids: the end token included.

    score: the weighted sum of its rewards, None where scoring failed; rewards: by name; failure:
    why there is no score. truncated: the length ended it, not the model.
    """

    text: str
    ids: list[int]
    score: float | None
    rewards: dict[str, float | None]
    failure: str | None
    truncated: bool


@dataclass(frozen=True)
class Scored:
    """The answers to all questions, in their order, by the stage's start and by its result."""

    questions: list[Question]
    before: list[Answer]
    after: list[Answer]

    @property
    def pairs(self) -> list[tuple[float, float]]:
        """(score before, score after) of the questions whose answers could both be scored."""
        both = zip(self.before, self.after, strict=True)
        found = ((old.score, new.score) for old, new in both)
        return [(old, new) for old, new in found if old is not None and new is not None]


_kept: WeakKeyDictionary[Subject, dict[int, Scored]] = WeakKeyDictionary()


def scored(subject: Subject, stage: StageResult) -> Scored:
    """The answers of a `grpo` stage's start and result, computed once for each subject.

    Raises NotApplicableError where the stage has no rewards or held nothing out, and UserError
    where its rewards cannot be loaded.
    """
    kept = _kept.setdefault(subject, {})
    if stage.index not in kept:
        kept[stage.index] = _score(subject, stage)
    return kept[stage.index]


def _score(subject: Subject, stage: StageResult) -> Scored:
    settings = stage.settings
    if not isinstance(settings, Grpo):
        raise NotApplicableError(f"a `{stage.method}` stage has no rewards")
    tasks = cast(Tasks, subject.material(stage))
    questions = tasks.held_out.questions[: subject.settings.samples]
    if not questions:
        raise NotApplicableError(
            "no questions were held out; to have this checked, put `evaluation` into the stage "
            "`grpo` of the recipe"
        )
    ends = tasks.rendering.end_token_ids
    drawn = [ask(subject.start(stage), questions, settings, ends)]
    drawn.append(ask(subject.result(stage), questions, settings, ends))
    decode = subject.result(stage).renderer.tokenizer.decode
    sources = [settings.environment] if settings.environment else []
    with Scorer([*sources, *settings.rewards], seed=subject.recipe.seed) as scorer:
        submitted = [
            [
                (each, text, scorer.submit(_alone(tasks, question.task, text, each.ids)))
                for question, each in zip(questions, completions, strict=True)
                for text in [decode(each.ids, skip_special_tokens=True)]
            ]
            for completions in drawn
        ]
        before, after = (
            [_answer(each, text, _await(future), scorer.weights) for each, text, future in side]
            for side in submitted
        )
    return Scored(list(questions), before, after)


def ask(
    artifact: Artifact, questions: Sequence[Question], settings: Grpo, end_token_ids: Sequence[int]
) -> list[Completion]:
    """Greedy answers in the order of the questions."""
    sampler = make_sampler(artifact.model, end_token_ids, artifact.renderer.tokenizer)
    sampling = SamplingSettings(settings.completion_tokens, 0.0, stop=tuple(settings.stop))
    requests = [Request(each.ids, [("verify", n)]) for n, each in enumerate(questions)]
    found: dict[int, Completion] = {}
    for number, (completion,) in sampler.sample(requests, sampling):
        found[number] = completion
        check_stop()
    return [found[number] for number in range(len(questions))]


def _alone(tasks: Tasks, task: Task, text: str, ids: list[int]) -> Group:
    """An answer as evaluation during training has it scored after the last step, a group of its
    own.
    """
    last = tasks.total_steps
    return Group(task, [text], [ids], last, last, tasks.epoch_of(last))


def _await(future: "Future[Scores]") -> Score:
    while True:
        try:
            (score,) = future.result(timeout=STOP_POLL_S)
        except TimeoutError:
            check_stop()
        else:
            return score


def _answer(
    completion: Completion, text: str, score: Score, weights: Mapping[str, float]
) -> Answer:
    summed = None if score.failure else total(score, weights)
    truncated = completion.finish == "length"
    return Answer(text, list(completion.ids), summed, score.rewards, score.failure, truncated)
