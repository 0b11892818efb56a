"""Answers from a file: what counts as right, and rows that are none."""

import json
from pathlib import Path
from typing import Any

import pytest

from hone.environments import check_gold, make_environment
from hone.errors import UserError
from hone.recipe.rewards import AnswerColumns, Answers, TaskFile
from hone.records import Task

pytestmark = pytest.mark.quick


def environment(path: Path | str = "none.jsonl", **settings: Any) -> Any:
    return make_environment(Answers(data=TaskFile(path=str(path)), **settings))


def correct(completion: str, answer: Any, **settings: Any) -> float:
    scored: float = environment(**settings).score(Task(0, "", {"answer": answer}), completion)[
        "correct"
    ]
    return scored


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("completion", "answer", "right"),
    [
        ("Paris", "Paris", 1),
        ('  "paris". \n', "Paris", 1),
        ("New  York", "new york", 1),
        ("\N{FULLWIDTH DIGIT FOUR}", "4", 1),
        ("Paris, France", "Paris", 0),
        ("Pari", "Paris", 0),
        ("", "Paris", 0),
        ("b", ["a", "b"], 1),
        ("c", ["a", "b"], 0),
        ("4", 4, 1),
    ],
)
def test_exact(completion: str, answer: Any, right: int) -> None:
    assert correct(completion, answer) == right


@pytest.mark.parametrize(
    ("completion", "right"),
    [("It is Paris.", 1), ("PARIS", 1), ("Parisian", 0), ("London", 0), ("", 0)],
)
def test_contains(completion: str, right: int) -> None:
    assert correct(completion, "Paris", match="contains") == right


@pytest.mark.parametrize(
    ("completion", "answer", "settings", "right"),
    [
        ("so 0.50", "1 half is 0.5", {}, 1),
        ("1,200 dollars", 1200, {}, 1),
        ("3.1416", "3.14159", {}, 0),
        ("3.1416", "3.14159", {"tolerance": 0.001}, 1),
        ("3.2", "3.14159", {"tolerance": 0.001}, 0),
        ("none", "3", {}, 0),
        ("then 70 + 2 #### 72", "48/2 = 24\n#### 72", {"marker": "####"}, 1),
        ("72", "#### 72", {"marker": "####"}, 0),
    ],
)
def test_numeric(completion: str, answer: Any, settings: dict[str, Any], right: int) -> None:
    assert correct(completion, answer, match="numeric", **settings) == right


def test_a_marker_is_a_format() -> None:
    scored = environment(marker="Answer:").score(
        Task(0, "", {"answer": "b"}), "Thinking.\nAnswer: B"
    )
    assert scored == {"correct": 1.0, "format": 1.0}
    without = environment(marker="Answer:").score(Task(0, "", {"answer": "b"}), "B")
    assert without == {"correct": 0.0, "format": 0.0}


def test_rows_become_tasks_whose_gold_is_right(tmp_path: Path) -> None:
    rows = [{"q": f"{n} + 1?", "a": [n + 1, f"{n + 1}.0"], "level": n} for n in range(20)]
    path = write(tmp_path / "sums.jsonl", *rows)
    columns = AnswerColumns(prompt="q", answer="a")
    made = environment(path, columns=columns, match="numeric", marker="####")
    train, held_out = made.tasks("train"), made.tasks("evaluation")
    assert (len(train), len(held_out)) == (18, 2)
    check_gold(made, train)
    check_gold(made, held_out)
    assert {task.prompt for task in train}.isdisjoint(task.prompt for task in held_out)
    first = train[0]
    assert (first.index, first.place) == (0, f"{path}:1")
    assert first.columns == {"a": [1, "1.0"], "level": 0}
    assert first.gold == "#### 1"


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        ({"prompt": "a", "answr": "b"}, {}, "there is no column `answer`"),
        ({"prompt": None, "answer": "b"}, {}, "the column `prompt` is empty"),
        ({"prompt": "a", "answer": {}}, {}, "`answer` is an object; expected text or a number"),
        ({"prompt": "a", "answer": []}, {}, "`answer` is an empty list"),
        ({"prompt": "a", "answer": " . "}, {}, "`answer` is blank"),
        ({"prompt": "a", "answer": "b"}, {"match": "numeric"}, "`answer` is `b`; expected a numb"),
        ({"prompt": [], "answer": "b"}, {}, "`prompt` is a list without messages"),
        ({"prompt": [{"role": "x", "content": ""}], "answer": "b"}, {}, "has the role `x`"),
    ],
)
def test_a_row_that_is_no_task_is_named(
    tmp_path: Path, row: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "rows.jsonl", {"prompt": "1?", "answer": "1"}, row)
    with pytest.raises(UserError, match=message) as caught:
        environment(path, **settings).tasks("train")
    assert caught.value.message.startswith(f"{path}:2: ")
