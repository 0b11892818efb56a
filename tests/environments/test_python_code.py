"""Code from completions, run against the tests of its row."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from hone.environments import check_gold, make_environment
from hone.errors import UserError
from hone.recipe.rewards import CodeColumns, PythonCode, TaskFile
from hone.records import Task

pytestmark = [
    pytest.mark.quick,
    pytest.mark.skipif(sys.platform != "linux", reason="code is run on Linux only"),
]

TESTS = ["assert f(1) == 2", "assert f(2) == 3", "assert f(-1) == 0", "assert f(0) == 1"]
TASK = Task(0, "Add one.", {"tests": TESTS})
RIGHT = "def f(x): return x + 1"
HALF = "def f(x): return 2 if x == 1 else 3"


def environment(path: str = "none.jsonl", **settings: Any) -> Any:
    return make_environment(PythonCode(data=TaskFile(path=path), **settings))


@pytest.mark.parametrize(
    ("completion", "passed", "share", "fenced"),
    [
        (f"Like this:\n```python\n{RIGHT}\n```\nDone.", 1, 1, 1),
        (f"```\nno code\n```\nRather:\n```py\n{RIGHT}\n```", 1, 1, 1),
        (RIGHT, 1, 1, 0),
        (f"```python\n{HALF}\n```", 0, 0.5, 1),
        ("I cannot do that.", 0, 0, 0),
    ],
)
def test_scores(completion: str, passed: float, share: float, fenced: float) -> None:
    assert environment().score(TASK, completion) == {"passed": passed, "format": fenced}
    graded = environment(grade="share").score(TASK, completion)
    assert graded == {"passed": share, "format": fenced}


def test_rows_and_their_gold(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    rows = [
        {"text": "Add one.", "test_list": TESTS, "code": RIGHT},
        {"text": "Add 1.", "test_list": "\n".join(TESTS), "code": f"```python\n{RIGHT}\n```"},
        {"text": "One more.", "test_list": TESTS, "code": HALF},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = CodeColumns(prompt="text", tests="test_list", gold="code")
    made = environment(str(path), columns=columns, evaluation_share=0.0)
    tasks = made.tasks("train")
    check_gold(made, tasks[:2])
    with pytest.raises(UserError, match=re.escape(f"task 2 ({path}:3): its gold answer")):
        check_gold(made, tasks)


@pytest.mark.parametrize(
    ("tests", "message"),
    [(3, "`tests` is a number"), ([], "is an empty list"), (["a", " "], "`tests` is blank")],
)
def test_rows_without_tests(tmp_path: Path, tests: Any, message: str) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps({"prompt": "a", "tests": tests}) + "\n")
    with pytest.raises(UserError, match=message):
        environment(str(path), evaluation_share=0.0).tasks("train")
