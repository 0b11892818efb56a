"""Environments by their name, those of a person's own, and the check of gold answers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import pytest

from hone.environments import ENVIRONMENTS, check_gold, make_environment
from hone.errors import UserError
from hone.recipe.rewards import Arithmetic, Custom, Environment
from hone.records import Task

pytestmark = pytest.mark.quick

OWN = '''
class Echo:
    """Say it again."""

    full_marks = {"same": 2.0}

    def __init__(self, words=("a", "b")):
        self.words = list(words)

    def tasks(self, split):
        return []

    def score(self, task, completion):
        return {"same": 2.0 * (completion == task.prompt)}


class NoTasks:
    full_marks = {}
'''


class Odd:
    """What a gold answer gets is its own length, whatever it says."""

    full_marks: Mapping[str, float] = {"length": 3.0}

    def tasks(self, split: str) -> Sequence[Task]:
        return [Task(0, "a", gold="abc"), Task(1, "b"), Task(2, "c", gold="ab", place="rows:3")]

    def score(self, task: Task, completion: str) -> Mapping[str, float | None]:
        if completion == "boom":
            raise ValueError("no such thing")
        if completion == "n/a":
            return {"length": None}
        return {"length": float(len(completion))} if completion else {}


def test_every_type_of_the_recipe_has_its_environment() -> None:
    union = get_args(get_args(Environment)[0])
    types = {each.model_fields["type"].default for each in union}
    assert types == {*ENVIRONMENTS, "custom"}


def test_a_gold_answer_without_full_marks_is_named() -> None:
    with pytest.raises(UserError, match=r"task 2 \(rows:3\): its gold answer 'ab' gets 2.0 of"):
        check_gold(Odd(), Odd().tasks("train"))
    check_gold(Odd(), Odd().tasks("train")[:2])
    check_gold(Odd(), [Task(0, "", gold="n/a")])
    with pytest.raises(UserError, match=r"gets nothing of `length`; expected 3\.0"):
        check_gold(Odd(), [Task(0, "", gold="")])
    with pytest.raises(UserError, match="scoring its gold answer 'boom' raised ValueError: no su"):
        check_gold(Odd(), [Task(0, "", gold="boom")])


def test_an_environment_of_a_persons_own(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    code = f"{tmp_path}/own.py:Echo"
    made = make_environment(Custom(code=code, settings={"words": ["x"]}, weights={"same": 0.5}))
    assert made.score(Task(0, "x"), "x") == {"same": 2.0}
    with pytest.raises(UserError, match="cannot be made with the settings word: TypeError"):
        make_environment(Custom(code=code, settings={"word": 1}))
    with pytest.raises(UserError, match="has no tasks and no score"):
        make_environment(Custom(code=f"{tmp_path}/own.py:NoTasks"))


def test_a_weight_of_no_reward_is_refused() -> None:
    with pytest.raises(UserError, match="no reward `corect` among correct, format; did you mean"):
        make_environment(Arithmetic(weights={"corect": 2.0}))
