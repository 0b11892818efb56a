"""`hone compare`: two runs answer the same questions, and everything is shown beside each other.

Called by `cli/compare.py`. The results are loaded from their folders, one after the other, and
answer greedily; curves, recipes and locks are those of the run folders. `hone/comparison.py`
compares the bytes of two runs; what their surroundings differ in is asked of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from hone.choosing import SamplingSettings
from hone.comparison import Difference, compare_surroundings
from hone.device import count_cores, use_threads
from hone.evaluation.answered import Answered, Evaluated, summarise
from hone.evaluation.evaluate import evaluate, make_wanted
from hone.evaluation.examples import choose
from hone.recipe.data import Data
from hone.runs import Run
from hone.sampling import Artifact
from hone.side_by_side.paired import PairedSet, pair
from hone.side_by_side.questions import QuestionSet, questions_from, shared_questions
from hone.verify.subject import Subject


@dataclass(frozen=True)
class Asking:
    """What is asked and how. data: a file's questions; None for what both runs have held out.

    measures: left out, those that fit the questions. samples: at most so many of each source.
    """

    data: Data | None = None
    measures: Sequence[str] = ()
    samples: int = 100
    max_tokens: int = 64
    seed: int = 0


@dataclass(frozen=True)
class SideBySide:
    """Two runs beside each other. surroundings: differences of recipe and lock."""

    first: Run
    second: Run
    sets: list[PairedSet]
    surroundings: list[Difference]

    @property
    def better(self) -> int:
        """Questions that the second run answers better."""
        return sum(len(each.better) for each in self.sets)

    @property
    def worse(self) -> int:
        """Questions that it answers worse."""
        return sum(len(each.worse) for each in self.sets)

    @property
    def count(self) -> int:
        """All questions."""
        return sum(len(each.rows) for each in self.sets)

    def as_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "schema": 1,
            "runs": [str(self.first.path), str(self.second.path)],
            "questions": self.count,
            "better": self.better,
            "worse": self.worse,
            "sets": [each.as_json() for each in self.sets],
            "surroundings": [asdict(each) for each in self.surroundings],
        }


def compare_side_by_side(
    first: Run, second: Run, asking: Asking, told: Callable[[str], None] = lambda text: None
) -> SideBySide:
    """Ask both runs and compare. Raises UserError for a run without its results, and where there is
    nothing to ask.
    """
    use_threads(count_cores())
    told("reading the questions")
    subjects = Subject(first), Subject(second)
    sets = find_sets(*subjects, asking)
    answered: list[list[Evaluated]] = []
    for subject in subjects:
        told(f"{subject.run.name}: loading the result")
        artifact = subject.result(subject.stages[-1])
        answered.append([])
        for number, asked in enumerate(sets, 1):
            told(f"{subject.run.name}: {asked.name}, {number} of {len(sets)}")
            answered[-1].append(answer(artifact, asked, asking))
        subject.release()
        del artifact
    paired = [
        pair(asked.name, one, other, remark=asked.remark)
        for asked, one, other in zip(sets, *answered, strict=True)
    ]
    return SideBySide(first, second, paired, compare_surroundings(first, second))


def find_sets(first: Subject, second: Subject, asking: Asking) -> list[QuestionSet]:
    """What both are asked, at most `samples` of each source."""
    if asking.data is not None:
        sets = [questions_from(asking.data, asking.measures)]
    else:
        sets = shared_questions(first, second)
        if asking.measures:
            sets = [replace(each, measures=list(asking.measures)) for each in sets]
    return [
        replace(each, questions=choose(each.questions, asking.samples, asking.seed))
        for each in sets
    ]


def answer(artifact: Artifact, asked: QuestionSet, asking: Asking) -> Evaluated:
    """One result's answers, scored; where nothing can be measured, the answers alone."""
    settings = SamplingSettings(asking.max_tokens, temperature=0.0)
    if asked.measures:
        wanted = make_wanted(asked.measures, rewards=asked.rewards)
        return evaluate(artifact, asked.questions, wanted, settings, seed=asking.seed)
    prompts = [question.prompt for question in asked.questions if question.prompt is not None]
    texts = artifact.generate_text(prompts, max_new_tokens=asking.max_tokens)
    return summarise(
        [
            Answered(question.index, question.place, question.prompt, question.expected, text)
            for question, text in zip(asked.questions, texts, strict=True)
        ]
    )
