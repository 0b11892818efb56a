"""Rows as tasks, and which of them are held out."""

import json
from pathlib import Path
from typing import Any

import pytest

from hone.environments.tasks import hold_out, read_tasks, tasks_of
from hone.errors import UserError
from hone.recipe.rewards import Answers, TaskFile
from hone.records import Task

pytestmark = pytest.mark.quick


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_prompts_with_their_columns(tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "Hello"}]
    rows = [{"prompt": "a", "n": 1}, {"prompt": asked, "n": None}]
    assert read_tasks(write(tmp_path / "p.jsonl", rows)) == [
        Task(0, "a", {"n": 1}, None, f"{tmp_path}/p.jsonl:1"),
        Task(1, asked, {"n": None}, None, f"{tmp_path}/p.jsonl:2"),
    ]


def test_a_broken_row_and_an_empty_file_are_told(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": \n')
    with pytest.raises(UserError, match=r"p\.jsonl:2: not valid JSON"):
        read_tasks(str(path))
    path.write_text("\n")
    with pytest.raises(UserError, match="has no rows"):
        read_tasks(str(path))


def test_held_out_prompts_are_never_trained_on() -> None:
    tasks = [Task(n, f"prompt {n % 40}", place=str(n)) for n in range(100)]
    train, held_out = hold_out(tasks, 0.1, seed=3)
    assert len({task.prompt for task in held_out}) == 4
    assert {task.prompt for task in train}.isdisjoint(task.prompt for task in held_out)
    assert sorted(int(task.place) for task in train + held_out) == list(range(100))
    assert [task.index for task in train] == list(range(len(train)))
    assert hold_out(tasks, 0.1, seed=3) == (train, held_out)
    assert hold_out(tasks, 0.1, seed=4) != (train, held_out)
    assert hold_out(tasks, 0.0, seed=3) == (tasks, [])


def test_too_few_prompts_to_hold_one_out() -> None:
    with pytest.raises(UserError, match="the tasks have 1 different prompts"):
        hold_out([Task(0, "a"), Task(1, "a")], 0.1, seed=0)


def test_held_out_tasks_of_their_own(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", [{"prompt": "a", "answer": "b"}])
    held_out = write(tmp_path / "held.jsonl", [{"prompt": "c", "answer": "d"}])
    settings = Answers(data=TaskFile(path=train), evaluation=TaskFile(path=held_out))
    found = [tasks_of(settings, split, [], lambda row: None) for split in ("train", "evaluation")]
    assert [[task.prompt for task in each] for each in found] == [["a"], ["c"]]
