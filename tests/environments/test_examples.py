"""The examples of docs/recipes.md: their files and settings are taken from the page and used."""

import os
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from ruamel.yaml import YAML

from hone.environments import SPLITS, check_gold, make_environment
from hone.recipe.rewards import Environment, Reward
from hone.records import Task
from hone.rewards.pool import Scorer
from hone.rewards.scores import Group, total

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
SECTION = PAGE.partition("\n## Rewards and environments\n")[2].partition("\n## ")[0]


def blocks() -> list[str]:
    """The indented blocks; what belongs to one Python file is one block."""
    found = re.findall(r"(?:^    .*\n|^\n(?=    ))+", SECTION, re.MULTILINE)
    parts: list[str] = []
    for block in found:
        for part in re.split(r"\n(?=# \w|environment:|rewards:)", textwrap.dedent(block).strip()):
            parts.append(part.strip() + "\n")
    return parts


def settings(key: str) -> list[Any]:
    texts = [block for block in blocks() if block.startswith(f"{key}:")]
    return [YAML(typ="safe", pure=True).load(text)[key] for text in texts]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The current folder with the files of the page."""
    for block in blocks():
        name = re.match(r"# (\w+\.\w+)\n", block)
        if name:
            (tmp_path / name[1]).write_text(block[name.end() :])
    before = Path.cwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)
    if str(tmp_path) in sys.path:
        sys.path.remove(str(tmp_path))


@pytest.mark.parametrize("number", range(5))
def test_environments(folder: Path, number: int) -> None:
    shown = settings("environment")
    assert len(shown) == 5
    environment = make_environment(TypeAdapter(Environment).validate_python(shown[number]))
    tasks = [task for split in SPLITS for task in environment.tasks(split)]
    assert all(task.gold for task in tasks)
    check_gold(environment, tasks)
    rewards = environment.score(tasks[0], "I am sorry, that is too hard for me.")
    assert rewards != environment.full_marks


def test_functions(folder: Path) -> None:
    (shown,) = settings("rewards")
    sources = TypeAdapter(list[Reward]).validate_python(shown)
    group = Group(Task(0, "Say something."), ["one one", ""], [[1], [2]])
    with Scorer(sources, workers=1) as scorer:
        scores = scorer.submit(group).result()
    assert [score.rewards for score in scores] == [
        {"distinct": 0.5, "short": 1.0},
        {"distinct": 0.0, "short": None},
    ]
    assert total(scores[0], scorer.weights) == 1.0
    assert scores.metrics == {"longest": [7.0]}
