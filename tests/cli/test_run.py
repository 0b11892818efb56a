"""`hone run` and `hone resume`: what they refuse before any work, and how a finished run is met."""

import json
from pathlib import Path

import pytest

from hone.cli.commands import invoke
from hone.recipe.load import load_recipe
from hone.runs import Run, create_run

pytestmark = pytest.mark.quick


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "chat.jsonl").write_text("{}\n")
    path = tmp_path / "recipe.yaml"
    path.write_text("model: acme/tiny\nstages:\n  - sft: {data: chat.jsonl}\n")
    return path


@pytest.fixture
def run(recipe: Path, tmp_path: Path) -> Run:
    return create_run(load_recipe(recipe), "first", tmp_path / "runs")


def test_a_name_that_exists_is_refused_with_the_ways_on(
    run: Run, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", str(recipe), "--name", "first", "--runs", str(tmp_path / "runs")]
    assert invoke(arguments) == 2
    text = capsys.readouterr().err
    assert "`first` exists already" in text
    assert f"hone resume {run.reference}" in text
    assert "--name first-1" in text
    assert run.status()["state"] == "created"


def test_a_wrong_recipe_makes_no_run(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    assert invoke(["run", str(recipe), "sft.stepz=3", "--runs", str(runs)]) == 2
    assert "stepz" in capsys.readouterr().err
    assert not runs.exists()


def test_json_is_for_a_dry_run(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["run", str(recipe), "--json"]) == 2
    assert "--dry-run" in capsys.readouterr().err


def test_resuming_a_finished_run_does_nothing(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with run.attempt():
        pass
    events = run.events()
    assert invoke(["resume", "first", "--runs", str(tmp_path / "runs")]) == 0
    captured = capsys.readouterr()
    assert "run first is finished" in captured.err
    assert captured.out == ""
    assert run.events() == events


def test_check_tells_faults_as_json(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["check", str(recipe), "sft.stepz=3", "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"]
    assert "stepz" in found["findings"][0]["message"]


def test_a_stage_that_is_not_there_is_refused(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["data", "show", str(recipe), "--stage", "2"]) == 2
    assert "the recipe has 1 stage" in capsys.readouterr().err


def test_a_prompt_is_needed(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["generate", "first", "--runs", str(tmp_path / "runs")]) == 2
    assert "--prompt" in capsys.readouterr().err


def test_the_schema_is_json_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["recipe", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert {"model", "stages", "seed"} <= set(schema["properties"])
