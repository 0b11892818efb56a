"""The quickstart's held-out questions, put to the saved results in a fresh process.

`python -m hone.quickstart.asking RUN --questions FILE` loads one result after the other and prints
JSON; `ask_in_fresh_process` starts it. Rows of the file: {"prompt", "answer", "kind"}, two answers
{"chosen", "rejected"} of which the first should be the likelier one, and what the environment's
tasks have. Answers are greedy.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hone.intervals import Measure, bootstrap
from hone.quickstart.styles import FORMAT, SAID
from hone.recipe.data import Data
from hone.rewards.scores import Score, total

if TYPE_CHECKING:
    from hone.evaluation.examples import Question
    from hone.recipe.rewards import Environment as Settings
    from hone.recipe.schema import Recipe
    from hone.sampling import Artifact

REWARDED = "arithmetic"  # the kind of question that the environment scores
LONGEST_ANSWER = 32  # tokens
ANSWERED_TOGETHER = 64


@dataclass(frozen=True)
class Evaluation:
    """The answers to all questions, in their order, and the measures by name.

    Names: `accuracy/KIND` for each kind of question, `accuracy`, `format`, `preference`, `reward`.
    """

    answers: list[str]
    measures: dict[str, Measure]


def is_right(answer: str, expected: str) -> bool:
    """True where what an answer says is the expected text, white space and a full stop behind it
    aside.
    """
    found = re.fullmatch(SAID, answer.strip(), re.DOTALL)
    return found is not None and _bare(found["answer"]) == _bare(expected)


def _bare(text: str) -> str:
    return text.strip().removesuffix(".")


def is_well_formed(answer: str, expected: str = "") -> bool:
    """True where an answer fits the preferred form from end to end, whatever is expected."""
    return re.fullmatch(FORMAT, answer.strip(), re.DOTALL) is not None


def ask(artifact: "Artifact", questions: Path, environment: "Settings | None") -> Evaluation:
    """Put all questions of a file to a model."""
    from hone.choosing import SamplingSettings
    from hone.evaluation.evaluate import Wanted, evaluate
    from hone.evaluation.examples import read_questions

    asked = read_questions(Data(path=str(questions)))
    found = evaluate(
        artifact,
        asked,
        Wanted({"accuracy": is_right, "format": is_well_formed}, preference=True),
        SamplingSettings(LONGEST_ANSWER, temperature=0.0),
        batch=ANSWERED_TOGETHER,
        by=["kind"],
    )
    of_kinds = found.by["kind"].items()
    measures = {f"accuracy/{kind}": each["accuracy"] for kind, each in of_kinds} | found.measures
    answers = [answer or "" for answer in found.answers]
    if environment is not None:
        measures["reward"] = measure_reward(environment, asked, answers)
    return Evaluation(answers, measures)


def measure_reward(
    settings: "Settings", questions: "Sequence[Question]", answers: Sequence[str]
) -> Measure:
    """The mean of an environment's rewards, weighted and summed, over the questions it is for."""
    from hone.environments import make_environment

    environment = make_environment(settings)
    return bootstrap(
        [
            total(Score(dict(environment.score(question.task(), answer))), settings.weights)
            for question, answer in zip(questions, answers, strict=True)
            if question.columns["kind"] == REWARDED
        ]
    )


def find_environment(recipe: "Recipe") -> "Settings | None":
    """The environment of the recipe's first stage that has one."""
    found = (getattr(stage.settings, "environment", None) for stage in recipe.stages)
    return next((settings for settings in found if settings is not None), None)


def most_reward(settings: "Settings") -> float:
    """What an answer with full marks is given."""
    from hone.environments import make_environment

    return total(Score(dict(make_environment(settings).full_marks)), settings.weights)


def ask_in_fresh_process(run: Path, questions: Path) -> list[Evaluation]:
    """Load the results of a run, stage after stage, in a process of its own, and ask them all."""
    words = [str(run), "--questions", str(questions)]
    command = [sys.executable, "-m", "hone.quickstart.asking", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [
        Evaluation(
            found["answers"],
            {name: Measure(**measure) for name, measure in found["measures"].items()},
        )
        for found in json.loads(done.stdout)
    ]


def main() -> None:
    """Answer the questions and print the evaluations as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--questions", type=Path, required=True)
    given = parser.parse_args()
    from hone.device import use_threads
    from hone.runs import Run
    from hone.stages.run import load_result

    run = Run(given.run.resolve())
    use_threads(run.read_lock_json()["threads"])
    environment = find_environment(run.loaded_recipe().recipe)
    stages = range(len(run.stage_folders()))
    found = [ask(load_result(run, stage), given.questions, environment) for stage in stages]
    print(json.dumps([asdict(evaluation) for evaluation in found]))


if __name__ == "__main__":
    main()
