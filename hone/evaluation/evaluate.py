"""Questions put to a model and judged, a batch after the other.

Called by `hone evaluate` and by whoever has an `Artifact` and questions. Each batch is a function
of its questions and of the settings, so that an evaluation that goes on after a batch finds what it
would have found; answers at a temperature are drawn from the seed and the question's place.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from hone.choosing import SamplingSettings
from hone.data.rows import RowError
from hone.environments.numbers import last_number
from hone.errors import UserError
from hone.evaluation.answered import LOSS, PERPLEXITY, Answered, Evaluated, summarise
from hone.evaluation.examples import Question, placed, values_of
from hone.evaluation.likelihood import losses, side_logprobs
from hone.evaluation.measures import MEASURES, REGEX, Measuring, best, find_measure, unknown_measure
from hone.rewards.lane import RewardSource
from hone.rewards.pool import Scorer
from hone.rewards.scores import Group, total
from hone.sampling import Artifact

CHOICE, PREFERENCE, REWARD = "choice", "preference", "reward"
NAMES = (*MEASURES, REGEX, PERPLEXITY, CHOICE, PREFERENCE, REWARD)
GREEDY = SamplingSettings(256, temperature=0.0)
ANSWERED_TOGETHER = 32


@dataclass(frozen=True)
class Wanted:
    """What is measured. texts: measures of the answers, by the names they get. rewards: what scores
    the answers. The others compare given texts by their log-probabilities.
    """

    texts: Mapping[str, Measuring] = field(default_factory=dict)
    rewards: tuple[RewardSource, ...] = ()
    perplexity: bool = False
    choice: bool = False
    preference: bool = False

    @property
    def answers(self) -> bool:
        """True where the model has to answer."""
        return bool(self.texts or self.rewards)


def make_wanted(
    names: Sequence[str], pattern: str | None = None, rewards: Sequence[RewardSource] = ()
) -> Wanted:
    """What the names of measures ask for. Raises UserError for a name that there is not, and for
    `regex` and `reward` without what they need.
    """
    for name in names:
        if name not in NAMES:
            raise unknown_measure(name, NAMES)
    if REWARD in names and not rewards:
        raise UserError(
            "the measure `reward` needs something that scores answers",
            hint="--reward reward.py:function, --environment arithmetic, or a run whose recipe has "
            "one",
            exit_code=2,
        )
    texts = {name: find_measure(name, pattern) for name in names if name in (*MEASURES, REGEX)}
    return Wanted(
        texts,
        tuple(rewards) if REWARD in names else (),
        **{name: name in names for name in (PERPLEXITY, CHOICE, PREFERENCE)},
    )


def usual_measures(questions: Sequence[Question]) -> list[str]:
    """What is measured where nobody says: the choice, the preference, the perplexity of plain text,
    else exact answers.
    """
    first = questions[0]
    if first.sides:
        return [PREFERENCE if first.pair else CHOICE]
    return [PERPLEXITY if first.prompt is None else "exact"]


def check_questions(questions: Sequence[Question], wanted: Wanted, by: Sequence[str] = ()) -> None:
    """Raises UserError for the first question that cannot be judged as wanted, or has no value in
    one of the columns `by`.
    """
    for column in by:
        values_of(questions, column)
    for question in questions:
        missing = _missing(question, wanted)
        if missing:
            raise UserError(f"{question.place}: {missing}", exit_code=2)


def evaluate(
    artifact: Artifact,
    questions: Sequence[Question],
    wanted: Wanted,
    settings: SamplingSettings = GREEDY,
    *,
    seed: int = 0,
    batch: int = ANSWERED_TOGETHER,
    by: Sequence[str] = (),
    done: Sequence[Answered] = (),
    keep: Callable[[list[Answered]], None] = lambda rows: None,
) -> Evaluated:
    """Ask and judge all questions, `batch` at a time; the rows have the order of the questions.

    by: columns whose values the measures are also shown for. done: rows of the first questions that
    are known already, whole batches of them. keep: is given the rows of each batch. Raises
    UserError for a question that cannot be judged.
    """
    check_questions(questions, wanted)
    groups = [dict(zip(by, values, strict=True)) for values in _groups(questions, by)]
    rows = list(done)
    with ExitStack() as stack:
        scorer = None
        if wanted.rewards and len(rows) < len(questions):
            scorer = stack.enter_context(Scorer(wanted.rewards, seed=seed))
        for begin in range(len(rows), len(questions), batch):
            part = questions[begin : begin + batch]
            found = _judge(artifact, part, wanted, settings, scorer, (seed, begin))
            answered = [
                _row(question, one, group)
                for question, one, group in zip(part, found, groups[begin:], strict=False)
            ]
            keep(answered)
            rows += answered
    return summarise(rows)


@dataclass
class _Found:
    """What was found of a question, while it is judged."""

    answer: str | None = None
    ids: list[int] = field(default_factory=list)
    scores: dict[str, float | None] = field(default_factory=dict)
    tokens: int | None = None
    logprobs: tuple[float, ...] = ()
    failure: str | None = None


def _judge(
    artifact: Artifact,
    questions: Sequence[Question],
    wanted: Wanted,
    settings: SamplingSettings,
    scorer: Scorer | None,
    drawn: tuple[int, int],
) -> list[_Found]:
    """What is found of a batch. drawn: the seed, and the place of the first question."""
    found = [_Found() for _ in questions]
    if wanted.answers:
        _answer(artifact, questions, found, settings, drawn)
    for name, measure in wanted.texts.items():
        for question, one in zip(questions, found, strict=True):
            one.scores[name] = best(measure, one.answer or "", question.expected)
    if scorer is not None:
        _reward(scorer, questions, found)
    if wanted.choice or wanted.preference:
        for question, one, logprobs in zip(
            questions, found, side_logprobs(artifact, questions), strict=True
        ):
            one.logprobs = tuple(logprobs)
            one.scores |= _compared(question, logprobs)
    if wanted.perplexity:
        for one, (loss, count) in zip(found, losses(artifact, questions), strict=True):
            one.tokens = count
            one.scores[LOSS] = loss / count
    return found


def _answer(
    artifact: Artifact,
    questions: Sequence[Question],
    found: list[_Found],
    settings: SamplingSettings,
    drawn: tuple[int, int],
) -> None:
    """Have the model answer."""
    prompts = []
    for question in questions:
        assert question.prompt is not None, "checked before"
        with placed(question):
            ids = artifact.prompt_ids(question.prompt, question.tools)
            if not ids:
                raise RowError("the prompt is empty; expected a token at least")
        prompts.append(ids)
    seed, first = drawn
    answers = artifact.generate(
        prompts, seed=seed, first=first, at_once=len(prompts), **vars(settings)
    )
    for one, ids in zip(found, answers, strict=True):
        one.ids, one.answer = ids, artifact.text(ids, settings.stop).strip()


def _reward(scorer: Scorer, questions: Sequence[Question], found: list[_Found]) -> None:
    """Have the answers scored, in processes of their own."""
    waiting = [
        scorer.submit(Group(question.task(), [one.answer or ""], [one.ids]))
        for question, one in zip(questions, found, strict=True)
    ]
    for one, future in zip(found, waiting, strict=True):
        (score,) = future.result()
        one.failure = score.failure
        one.scores[REWARD] = None if score.failure else total(score, scorer.weights)
        one.scores |= {f"{REWARD}/{name}": value for name, value in score.rewards.items()}


def _compared(question: Question, logprobs: Sequence[float]) -> dict[str, float]:
    """Scores of sides by their log-probabilities; of equal ones the first is taken."""
    if question.pair:
        return {PREFERENCE: float(logprobs[0] > logprobs[1])}
    lengths = [len(choice) for choice in question.choices]
    normalised = np.divide(logprobs, lengths)
    return {
        CHOICE: float(int(np.argmax(logprobs)) == question.right),
        f"{CHOICE}_normalised": float(int(np.argmax(normalised)) == question.right),
    }


def _row(question: Question, found: _Found, by: Mapping[str, str]) -> Answered:
    return Answered(
        question.index,
        question.place,
        question.prompt,
        question.expected,
        found.answer,
        found.scores,
        found.tokens,
        question.choices if found.logprobs else (),
        found.logprobs,
        found.failure,
        by,
    )


def _groups(questions: Sequence[Question], by: Sequence[str]) -> list[tuple[str, ...]]:
    columns = [values_of(questions, column) for column in by]
    return list(zip(*columns, strict=True)) if columns else [()] * len(questions)


def _missing(question: Question, wanted: Wanted) -> str | None:
    """What a question lacks for what is wanted, in words."""
    if wanted.answers and question.prompt is None:
        return "plain text has no prompt to answer; expected a prompt, or --measure perplexity"
    if wanted.texts and not question.expected:
        return "the row has no right answer; expected a completion, an answer or a last turn"
    if wanted.texts and not any(text.strip() for text in question.expected):
        return "the right answer is blank; expected text"
    if "numeric" in wanted.texts and not any(
        last_number(text) is not None for text in question.expected
    ):
        return f"the right answer is `{question.expected[0]}`; expected a number in it"
    if wanted.choice and (question.pair or not question.sides):
        return "the row has no choices; expected a list of them in the column `choices`"
    if wanted.preference and not question.pair:
        return "the row is no pair; expected the columns `chosen` and `rejected`"
    if wanted.perplexity and question.trained is None:
        return "the row has no text whose perplexity could be taken; expected a completion"
    return None
