"""What two runs are asked: a file's rows, or the held-out samples that they have in common.

Called by `compare.py`. Held-out rows are read again from their source, as texts, so that both runs
may render and tokenise them in their own way.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from hone.data.formats import PlainText
from hone.environments.numbers import last_number
from hone.errors import UserError
from hone.evaluation.answered import PERPLEXITY
from hone.evaluation.evaluate import CHOICE, PREFERENCE, REWARD
from hone.evaluation.examples import Question, read_questions
from hone.recipe.data import Data
from hone.recipe.policy import Grpo
from hone.recipe.training import DataStage
from hone.rehearsal.slices import held_out_places, write_rows
from hone.rewards.lane import RewardSource
from hone.stages.data import StageData
from hone.stages.tasks import Tasks
from hone.verify.subject import StageResult, Subject


@dataclass(frozen=True)
class QuestionSet:
    """Questions of one source. measures: what is measured, the headline first. rewards: what scores
    the answers. remark: what could not be measured, and why.
    """

    name: str
    questions: list[Question]
    measures: list[str] = field(default_factory=list)
    rewards: list[RewardSource] = field(default_factory=list)
    remark: str = ""


def questions_from(data: Data, measures: Sequence[str] = ()) -> QuestionSet:
    """All rows of a file; `measures` left out: those that fit them."""
    questions = read_questions(data, bare=True)
    return QuestionSet(data.path, questions, list(measures) or usual_measures(questions))


def shared_questions(first: Subject, second: Subject) -> list[QuestionSet]:
    """For each stage that both runs have, the held-out questions that are in both, in the order of
    the first run. Raises UserError where there are none.
    """
    found = []
    for one, other in zip(first.stages, second.stages, strict=False):
        theirs = {key_of(question) for question in held_out_questions(second, other)}
        shared = [q for q in held_out_questions(first, one) if key_of(q) in theirs]
        if not shared:
            continue
        name = one.name if one.name == other.name else f"{one.name} and {other.name}"
        rewards, remark = shared_rewards(one, other)
        measures = [REWARD] if rewards else usual_measures(shared)
        found.append(QuestionSet(name, shared, measures, rewards, remark))
    if not found:
        names = f"`{first.run.name}` and `{second.run.name}`"
        raise UserError(
            f"the runs {names} have no held-out samples in common, stage by stage",
            hint="name what they are asked: "
            f"hone compare {first.run.reference} {second.run.reference} --on questions.jsonl",
            exit_code=2,
        )
    return found


def held_out_questions(subject: Subject, stage: StageResult) -> list[Question]:
    """What a stage held out; [] where it held out nothing, or answers that may be wrong."""
    if stage.settings.evaluation is None:
        return []
    if isinstance(stage.settings, DataStage) and stage.settings.sample_kind == "unpaired":
        return []
    material = subject.material(stage)
    if isinstance(material, Tasks):
        return [
            Question(
                asked.task.index,
                asked.task.place or f"task {asked.task.index}",
                asked.task.prompt,
                expected=() if asked.task.gold is None else (asked.task.gold,),
                columns=asked.task.columns,
            )
            for asked in material.held_out.questions
        ]
    return _read_held_out(material)


def _read_held_out(material: StageData) -> list[Question]:
    """The rows of the held-out samples, read again from their sources."""
    settings, found = material.settings, []
    assert settings.evaluation is not None, "asked before"
    sources = settings.evaluation.data_sets or settings.data_sets
    joined = material.held_out.prepared
    chosen = held_out_places(joined, material.held_out.indices)
    with TemporaryDirectory(prefix="hone-compare-") as folder:
        path = Path(folder) / "rows.jsonl"
        for source, prepared, places in zip(sources, joined.sets, chosen, strict=True):
            if not places:
                continue
            write_rows(source.path, source.split, places, path)
            rows = read_questions(source.model_copy(update={"path": str(path), "split": None}))
            files = [entry.get("name", entry["path"]) for entry in prepared.sources]
            named = [f"{files[file]}:{number}" for file, number in sorted(places)]
            found += [replace(q, place=place) for q, place in zip(rows, named, strict=True)]
    return found


def key_of(question: Question) -> str:
    """What makes two questions the same: what is asked, and what is right."""
    text = question.trained.text if isinstance(question.trained, PlainText) else None
    return json.dumps([question.prompt, question.expected, question.choices, text], default=str)


def shared_rewards(one: StageResult, other: StageResult) -> tuple[list[RewardSource], str]:
    """What scores answers in both runs; none, with the reason, where these are not the same."""
    both = [stage.settings for stage in (one, other)]
    sources: list[list[RewardSource]] = [
        [*([each.environment] if each.environment else []), *each.rewards]
        for each in both
        if isinstance(each, Grpo)
    ]
    if len(sources) < len(both):
        return [], "the stages are of different methods" if sources else ""
    if sources[0] != sources[1]:
        return [], "the rewards of the runs are not the same, so answers are not scored by them"
    return sources[0], ""


def usual_measures(questions: Sequence[Question]) -> list[str]:
    """What fits all these questions, the one that says most first; [] where nothing is right."""
    if all(question.prompt is None for question in questions):
        return [PERPLEXITY]
    if all(question.choices and not question.pair for question in questions):
        return [CHOICE]
    found = [PREFERENCE] if all(question.pair for question in questions) else []
    rights = [text for question in questions for text in question.expected]
    answered = all(question.prompt is not None and question.expected for question in questions)
    if answered and all(text.strip() for text in rights):
        numeric = all(last_number(text) is not None for text in rights)
        found += ["f1", "exact", "numeric"] if numeric else ["f1", "exact"]
    if all(question.trained is not None for question in questions):
        found.append(PERPLEXITY)
    return found
