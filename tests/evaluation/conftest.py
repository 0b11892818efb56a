"""A small run that is evaluated."""

import pytest

from hone.recipe.load import load_recipe
from hone.runs import Run, create_run
from tests.workbench import work, write_bench


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of three steps on chats, with the loss on all of chat.jsonl in its metrics."""
    folder = tmp_path_factory.mktemp("bench")
    write_bench(folder)
    overrides = ["sft.steps=3", "sft.evaluation.samples=null", "sft.precision=fp32"]
    overrides += ["sft.learning_rate=0.05", "sft.evaluation.data=chat.jsonl"]
    made = create_run(load_recipe(folder / "recipe.yaml", overrides), "first", folder / "runs")
    work(made)
    return made
