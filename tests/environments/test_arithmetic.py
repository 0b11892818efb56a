"""Arithmetic tasks: a function of the seed, none both held out and trained on, scored right."""

import re
from typing import Any

import pytest

from hone.environments import SPLITS, check_gold, make_environment
from hone.errors import UserError
from hone.recipe.rewards import Arithmetic
from hone.records import Task

pytestmark = pytest.mark.quick

ALL = ["add", "subtract", "multiply", "divide"]


def tasks(split: str, **settings: Any) -> list[Task]:
    return list(make_environment(Arithmetic(**settings)).tasks(split))


def value(expression: str) -> float:
    """Computed from the text alone, as a person would."""
    a, sign, b = expression.split()
    x, y = int(a), int(b)
    return x / y if sign == "/" else {"+": x + y, "-": x - y, "*": x * y}[sign]


def operands(expression: str) -> tuple[str, frozenset[int]]:
    """The sign, and the two numbers that were drawn, in no order."""
    a, sign, b = expression.split()
    first = int(a) // int(b) if sign == "/" else int(a)
    return sign, frozenset((first, int(b)))


@pytest.mark.parametrize("operations", [["add"], ["divide"], ALL])
@pytest.mark.parametrize("digits", [1, 2, 5])
def test_answers_are_right_and_splits_do_not_overlap(operations: list[str], digits: int) -> None:
    settings = {
        "operations": operations,
        "digits": digits,
        "train_tasks": 30,
        "evaluation_tasks": 3,
    }
    made = {split: tasks(split, **settings) for split in SPLITS}
    assert [len(made[split]) for split in SPLITS] == [30, 3]
    for task in [*made["train"], *made["evaluation"]]:
        assert value(task.columns["expression"]) == int(task.columns["answer"]) >= 0
    trained = {operands(task.columns["expression"]) for task in made["train"]}
    assert trained.isdisjoint(operands(task.columns["expression"]) for task in made["evaluation"])
    every = [task.columns["expression"] for split in SPLITS for task in made[split]]
    assert len(set(every)) == len(every)


def test_operations_come_about_as_often() -> None:
    signs = [task.columns["expression"].split()[1] for task in tasks("train", operations=ALL)]
    assert all(200 < signs.count(sign) < 300 for sign in "+-*/")


def test_the_tasks_are_a_function_of_the_seed() -> None:
    assert tasks("train") == tasks("train")
    assert tasks("evaluation") == tasks("evaluation")
    assert tasks("train") != tasks("train", seed=1)
    assert [task.index for task in tasks("evaluation")] == list(range(100))


def test_more_tasks_than_there_are() -> None:
    with pytest.raises(UserError, match="for `evaluation`; expected 100") as caught:
        tasks("evaluation", digits=1)
    assert caught.value.hint == "environment: {type: arithmetic, digits: 2, ...}"


def test_prompts_are_messages_or_text() -> None:
    (task,) = tasks("train", train_tasks=1)
    assert isinstance(task.prompt, list)
    (message,) = task.prompt
    assert message["role"] == "user"
    assert re.fullmatch(r"What is \d\d \+ \d\d\?", message["content"])
    (plain,) = tasks("train", train_tasks=1, messages=False, question="{expression} =")
    assert plain.prompt == f"{task.columns['expression']} ="


@pytest.mark.parametrize("marker", [None, "####"])
def test_gold_scores_full_marks(marker: str | None) -> None:
    environment = make_environment(Arithmetic(operations=ALL, marker=marker))
    check_gold(environment, environment.tasks("evaluation"))


@pytest.mark.parametrize(
    ("completion", "correct", "well_formed"),
    [
        ("85", 1, 1),
        ("47 + 38 = 85.", 1, 1),
        ("40+30=70, 7+8=15, so 70+15=85", 1, 1),
        ("85 it is", 1, 0),
        ("84", 0, 1),
        ("-85", 0, 1),
        ("85 or 86", 0, 1),
        ("no idea", 0, 0),
        ("", 0, 0),
    ],
)
def test_the_last_number_counts(completion: str, correct: int, well_formed: int) -> None:
    task = Task(0, "", {"answer": "85"})
    rewards = make_environment(Arithmetic()).score(task, completion)
    assert rewards == {"correct": correct, "format": well_formed}


@pytest.mark.parametrize(
    ("completion", "correct", "well_formed"),
    [
        ("47 and 38 is #### 85", 1, 1),
        ("#### 85.", 1, 1),
        ("#### 85 or so", 1, 0),
        ("#### 84 #### 85", 1, 0),
        ("85", 0, 0),
        ("85 ####", 0, 0),
        ("#### is 85", 1, 0),
    ],
)
def test_the_number_behind_the_marker_counts(
    completion: str, correct: int, well_formed: int
) -> None:
    task = Task(0, "", {"answer": "85"})
    rewards = make_environment(Arithmetic(marker="####")).score(task, completion)
    assert rewards == {"correct": correct, "format": well_formed}
