"""A profile in a real run: its warm-up is cut and said, and a changed file changes nothing."""

import io
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from hone.recipe.load import load_recipe
from hone.runs import Run, create_run
from hone.stages.run import check_recipe, run_recipe
from tests.workbench import NEW_MODEL, fingerprint, write_data

STAGE = """
stages:
  - sft: {data: chat.jsonl, profile: own.yaml, steps: 4, checkpoint: {every: 1}}
"""
PROFILE = "adapter: {rank: 2}\nlearning_rate: 0.01\nwarmup: {steps: 100, at_most: 0.25}\n"
CUT = "warm-up: 1 step, 25 % of the stage's 4, instead of 100"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    write_data(tmp_path)
    (tmp_path / "own.yaml").write_text(PROFILE)
    (tmp_path / "recipe.yaml").write_text(NEW_MODEL + STAGE)
    return tmp_path / "recipe.yaml"


def work_on(run: Run) -> str:
    """One attempt at a run; returns what was said."""
    console = Console(file=io.StringIO(), width=200)
    with run.attempt():
        run_recipe(run, console=console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_cut_warmup_is_said(recipe: Path) -> None:
    loaded = load_recipe(recipe)
    assert f"stage 1 sft: {CUT}" in [note.message for note in check_recipe(loaded)]
    assert f"1 sft: {CUT}\n" in work_on(create_run(loaded, "run", recipe.parent / "runs"))
    notes = check_recipe(load_recipe(recipe, ["sft.warmup=1"]))
    assert not any("warm-up" in note.message for note in notes)


def test_a_run_goes_on_as_it_began_when_its_profile_changes(recipe: Path) -> None:
    runs, found = recipe.parent / "runs", []
    for changed in (PROFILE, "adapter: {rank: 3}\nnonsense: 1\n"):
        made = create_run(load_recipe(recipe), "run", runs)
        (recipe.parent / "own.yaml").write_text(changed)
        work_on(Run(made.path))
        found.append(fingerprint(made.path))
        (recipe.parent / "own.yaml").write_text(PROFILE)
        shutil.rmtree(runs)
    assert found[0] == found[1]
