"""Answers before and after each stage, for people to read: verify/answers.json.

A few held-out prompts of each stage are answered by the model as the stage began and by its saved
result, greedily. `hone verify` writes them at its end and the report shows them; no verdict depends
on them.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hone.architecture import first_line
from hone.files import write_json
from hone.records import Sample, Task
from hone.rewards.scores import Score, total
from hone.sampling import Artifact
from hone.seeds import shuffle
from hone.stages.data import StageData
from hone.stages.tasks import Tasks
from hone.verify.subject import StageResult, Subject

RESULT = Path("verify", "answers.json")
SHOWN = 6  # prompts of a stage
LONGEST_OPENING = 32  # tokens of a text that is to be continued


class Asked(NamedTuple):
    """A prompt, and what is known of its answers: as ids, or of a task as text."""

    prompt_ids: list[int]
    expected: list[int] | str
    rejected: list[int] | None = None
    task: Task | None = None


def write_answers(subject: Subject) -> None:
    """Answer some held-out prompts of each stage, and write answers.json: {"stages": [{"stage":
    "2-sft", "rows": [{"prompt", "expected", "before", "after", "score_before", "score_after"}]}]}.

    A row of a pair has "rejected" too. Scores: the weighted sum of an environment's rewards, null
    where there is none. A stage whose answers cannot
    be made has "failure" instead: verdicts are not to depend on it. Prompts are chosen by the run's
    seed.
    """
    stages = []
    for stage in subject.stages:
        subject.told(f"answers of {stage.name}")
        try:
            found: dict[str, Any] = {"rows": list(_rows(subject, stage))}
        except Exception as error:  # told in the file and on the page
            found = {"rows": [], "failure": f"{type(error).__name__}: {first_line(error)}"}
        if found["rows"] or "failure" in found:
            stages.append({"stage": stage.name, **found})
    path = subject.run.path / RESULT
    path.parent.mkdir(exist_ok=True)
    write_json(path, {"stages": stages})


def _rows(subject: Subject, stage: StageResult) -> Iterator[dict[str, Any]]:
    material = subject.material(stage)
    asked = _choose(material, subject.recipe.seed, stage.index)
    if not asked:
        return
    start, result = subject.start(stage), subject.result(stage)
    longest = subject.settings.completion_tokens
    prompts = [each.prompt_ids for each in asked]
    before, after = (artifact.generate(prompts, longest) for artifact in (start, result))
    for each, old, new in zip(asked, before, after, strict=True):
        texts = [_text(result, answer) for answer in (each.expected, old, new)]
        row = dict(zip(("expected", "before", "after"), texts, strict=True))
        yield {
            "prompt": result.renderer.tokenizer.decode(each.prompt_ids),
            **row,
            **({"rejected": _text(result, each.rejected)} if each.rejected is not None else {}),
            "score_before": _score(material, each, texts[1]),
            "score_after": _score(material, each, texts[2]),
        }


def _choose(material: StageData | Tasks, seed: int, stage: int) -> list[Asked]:
    """Up to `SHOWN` held-out prompts."""

    def places(count: int) -> list[int]:
        return [int(place) for place in shuffle(count, seed, "answers", stage)[:SHOWN]]

    if isinstance(material, Tasks):
        questions = material.held_out.questions
        chosen = [questions[place] for place in places(len(questions))]
        return [Asked(q.ids, q.task.gold or _known_answer(q.task), task=q.task) for q in chosen]
    samples = material.held_out
    return [_asked(samples[place]) for place in places(len(samples))]


def _asked(sample: Sample) -> Asked:
    """What a sample asks: a prompt with its answers hung on it, a conversation up to its last
    answer, or the opening of a text.
    """
    first = sample.segments[0]
    if len(sample.segments) > 1:
        prompt, *answers = (segment.tokens.tolist() for segment in sample.segments)
        if len(answers) == 2:
            return Asked(prompt, answers[0], answers[1])
        wanted = sample.segments[1].constants["label"].all()
        return Asked(prompt, answers[0] if wanted else [], None if wanted else answers[0])
    tokens = first.tokens.tolist()
    untrained = np.flatnonzero(~first.trained)
    if len(untrained) < 2:  # a text: at most a beginning token is not trained
        opening = max(1, min(LONGEST_OPENING, len(tokens) // 2))
        return Asked(tokens[:opening], tokens[opening:])
    last = int(np.flatnonzero(first.trained)[-1])
    begin = int(untrained[untrained < last][-1]) + 1
    return Asked(tokens[:begin], tokens[begin : last + 1])


def _known_answer(task: Task) -> str:
    """The column `answer` of a task, where there is one."""
    return str(task.columns.get("answer", ""))


def _text(artifact: Artifact, answer: list[int] | str) -> str:
    if isinstance(answer, str):
        return answer
    text: str = artifact.renderer.tokenizer.decode(answer, skip_special_tokens=True)
    return text.strip()


def _score(material: StageData | Tasks, asked: Asked, answer: str) -> float | None:
    """What an environment gives for an answer."""
    if not isinstance(material, Tasks) or material.environment is None or asked.task is None:
        return None
    settings = material.settings.environment
    rewards = Score(dict(material.environment.score(asked.task, answer)))
    found = total(rewards, settings.weights if settings else {})
    return None if math.isnan(found) else found
