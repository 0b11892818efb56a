"""How well a saved result answers held-out questions: accuracy, format, preference and reward.

`python -m hone.evaluate RUN --stage N --questions FILE --criteria JSON` loads the result in this
fresh process and prints JSON; `ask_in_fresh_process` starts it. Rows of the file: {"prompt",
"answer", "kind"}, and for preference {"chosen", "rejected"}, two answers of which the first should
be the likelier one. Answers are greedy. Left out: every other measure.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hone.intervals import Measure, bootstrap
from hone.records import Task
from hone.rewards.scores import Score, total

if TYPE_CHECKING:
    from hone.recipe.rewards import Environment as Settings
    from hone.recipe.schema import Recipe
    from hone.sampling import Artifact

ANSWERS_AT_ONCE = 64


@dataclass(frozen=True)
class Criteria:
    """How answers are judged.

    said: a regular expression that an answer is matched with from end to end; its group `answer` is
    what the answer says. format: what a well-formed answer fits from end to end. rewarded: the kind
    of question that an environment scores.
    """

    said: str
    format: str
    rewarded: str


@dataclass(frozen=True)
class Evaluation:
    """The answers to all questions, in their order, and the measures by name.

    Names: `accuracy/KIND` for each kind of question, `accuracy`, `format`, `preference`, `reward`.
    """

    answers: list[str]
    measures: dict[str, Measure]


def is_right(answer: str, expected: str, said: str) -> bool:
    """True where what an answer says is the expected text, white space and a full stop behind it
    aside.
    """
    found = re.fullmatch(said, answer.strip(), re.DOTALL)
    return found is not None and _bare(found["answer"]) == _bare(expected)


def _bare(text: str) -> str:
    return text.strip().removesuffix(".")


def is_well_formed(answer: str, format: str) -> bool:
    """True where an answer fits the format from end to end."""
    return re.fullmatch(format, answer.strip(), re.DOTALL) is not None


def measure_answers(
    rows: Sequence[dict[str, Any]], answers: Sequence[str], criteria: Criteria
) -> dict[str, Measure]:
    """Accuracy of each kind of question and of all, and format adherence."""
    right: dict[str, list[float]] = {}
    for row, answer in zip(rows, answers, strict=True):
        marks = right.setdefault(f"accuracy/{row['kind']}", [])
        marks.append(float(is_right(answer, row["answer"], criteria.said)))
    right["accuracy"] = [one for marks in right.values() for one in marks]
    right["format"] = [float(is_well_formed(answer, criteria.format)) for answer in answers]
    return {name: bootstrap(marks) for name, marks in right.items()}


def measure_preference(artifact: "Artifact", rows: Sequence[dict[str, Any]]) -> dict[str, Measure]:
    """The share of rows whose chosen answer is likelier than the rejected one.

    What is compared is the whole answer's log-probability, its end included: summed, not per token,
    and without a reference. It says which of the two the model would rather give.
    """
    sides = [
        answer_logprobs(artifact, [(row["prompt"], row[side]) for row in rows])
        for side in ("chosen", "rejected")
    ]
    return {"preference": bootstrap([float(a > b) for a, b in zip(*sides, strict=True)])}


def answer_logprobs(artifact: "Artifact", answered: Sequence[tuple[str, str]]) -> list[float]:
    """The log-probability of each answer behind its prompt, in nats, rendered as for training."""
    import torch

    tokens = [artifact.tokens(prompt, answer) for prompt, answer in answered]
    sums: list[float] = []
    for begin in range(0, len(tokens), ANSWERS_AT_ONCE):
        batch = tokens[begin : begin + ANSWERS_AT_ONCE]
        length = max(len(ids) for ids, _ in batch)
        # B answers, L tokens; what is behind the end is masked and changes nothing before it.
        ids_BL = np.stack([np.pad(ids, (0, length - len(ids))) for ids, _ in batch])
        trained_BL = np.stack([np.pad(mask, (0, length - len(mask))) for _, mask in batch])
        real_BL = np.stack([np.arange(length) < len(ids) for ids, _ in batch])
        inputs = (torch.from_numpy(each.astype(np.int64)) for each in (ids_BL, real_BL))
        device = next(artifact.module.parameters()).device
        ids, real = (each.to(device) for each in inputs)
        with torch.no_grad():
            logits = artifact.module(input_ids=ids, attention_mask=real).logits
            logprobs = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        trained = torch.from_numpy(trained_BL[:, 1:]).to(device)
        sums += logprobs.masked_fill(~trained, 0.0).double().sum(-1).tolist()
    return sums


def measure_reward(
    settings: "Settings", rows: Sequence[dict[str, Any]], answers: Sequence[str], rewarded: str
) -> dict[str, Measure]:
    """The mean of an environment's rewards, weighted and summed, over one kind of question. Rows
    have the columns that its tasks have.
    """
    from hone.environments import make_environment

    environment = make_environment(settings)
    totals = [
        total(Score(dict(environment.score(Task(n, row["prompt"], row), answer))), settings.weights)
        for n, (row, answer) in enumerate(zip(rows, answers, strict=True))
        if row["kind"] == rewarded
    ]
    return {"reward": bootstrap(totals)}


def find_environment(recipe: "Recipe") -> "Settings | None":
    """The environment of the recipe's first stage that has one."""
    found = (getattr(stage.settings, "environment", None) for stage in recipe.stages)
    return next((settings for settings in found if settings is not None), None)


def most_reward(settings: "Settings") -> float:
    """What an answer with full marks is given."""
    from hone.environments import make_environment

    return total(Score(dict(make_environment(settings).full_marks)), settings.weights)


def ask_in_fresh_process(
    run: Path, stage: int, questions: Path, criteria: Criteria, max_new_tokens: int = 32
) -> Evaluation:
    """Load the result of a run's stage (from 0) in a process of its own, and ask it everything."""
    words = [str(run), "--stage", str(stage), "--questions", str(questions)]
    words += ["--criteria", json.dumps(asdict(criteria)), "--max-tokens", str(max_new_tokens)]
    command = [sys.executable, "-m", "hone.evaluate", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    measures = {name: Measure(**measure) for name, measure in found["measures"].items()}
    return Evaluation(found["answers"], measures)


def main() -> None:
    """Answer the questions and print the evaluation as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--stage", type=int, required=True)
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--criteria", type=json.loads, required=True)
    parser.add_argument("--max-tokens", type=int, default=32)
    given = parser.parse_args()
    from hone.device import use_threads
    from hone.runs import Run
    from hone.stages.run import load_result

    run, criteria = Run(given.run.resolve()), Criteria(**given.criteria)
    use_threads(run.read_lock_json()["threads"])
    rows = [json.loads(line) for line in given.questions.read_text().splitlines()]
    artifact = load_result(run, given.stage)
    prompts = [row["prompt"] for row in rows]
    answers = artifact.generate_text(prompts, max_new_tokens=given.max_tokens)
    measures = measure_answers(rows, answers, criteria) | measure_preference(artifact, rows)
    environment = find_environment(run.loaded_recipe().recipe)
    if environment is not None:
        measures |= measure_reward(environment, rows, answers, criteria.rewarded)
    found = {name: asdict(measure) for name, measure in measures.items()}
    print(json.dumps({"answers": answers, "measures": found}))


if __name__ == "__main__":
    main()
