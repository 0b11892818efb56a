"""`hone remove` and `hone run --clean`: asked first, and nothing is lost to a mistake."""

import os
import pty
import subprocess
import sys
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
    """A run with one trained step."""
    made = create_run(load_recipe(recipe), "first", tmp_path / "runs")
    stage = made.stage_folder(0, "sft")
    stage.mkdir(parents=True)
    (stage / "metrics.jsonl").write_text('{"step": 7, "loss": 1.0}\n')
    return made


def hone_at_a_terminal(answer: bytes, *words: str) -> tuple[int, str]:
    """Run the command with a terminal as its stdin and type an answer."""
    ours, theirs = pty.openpty()
    os.write(ours, answer)
    command = [sys.executable, "-m", "hone", *words]
    done = subprocess.run(command, stdin=theirs, capture_output=True, text=True, timeout=60)
    os.close(ours)
    os.close(theirs)
    return done.returncode, done.stderr


def test_removing_asks_and_takes_no_for_an_answer(run: Run) -> None:
    words = ("remove", "first", "--runs", str(run.path.parent))
    code, printed = hone_at_a_terminal(b"n\n", *words)
    assert code == 1
    assert "first: created at step 7 of 1-sft" in printed
    assert "kB" in printed or "bytes" in printed
    assert "ago" in printed and str(run.path) in printed
    assert "nothing was done" in printed
    assert run.path.exists()
    assert hone_at_a_terminal(b"y\n", *words)[0] == 0
    assert not run.path.exists()


def test_without_a_terminal_nothing_is_removed(
    run: Run, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(run.path.parent)
    create_run(load_recipe(recipe), "second", run.path.parent)
    assert invoke(["remove", "first", "second", "--runs", folder]) == 2
    assert "--yes" in capsys.readouterr().err
    assert run.path.exists()
    assert invoke(["remove", "first", "frist", "--yes", "--runs", folder]) == 2
    assert "did you mean `first`" in capsys.readouterr().err
    assert run.path.exists()
    assert invoke(["remove", "first", "second", "first", "--yes", "--runs", folder]) == 0
    assert capsys.readouterr().out == "removed first\nremoved second\n"
    assert list(run.path.parent.iterdir()) == []


def test_a_taken_name_is_refused_with_three_ways_on(
    run: Run, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", str(recipe), "--name", "first", "--runs", str(run.path.parent)]
    assert invoke(words) == 2
    told = capsys.readouterr().err
    for way in ("hone resume", "--name first-1", "--clean, which asks"):
        assert way in told
    (run.stage_folder(0, "sft") / "metrics.jsonl").unlink()
    assert invoke(words) == 2
    told = capsys.readouterr().err
    assert "has trained no step yet" in told
    assert "--clean, which needs no question" in told


def test_a_faulty_recipe_does_not_cost_a_run(
    run: Run, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", str(recipe), "--name", "first", "--runs", str(run.path.parent)]
    assert invoke([*words, "--clean", "--yes", "sft.stepz=3"]) == 2
    assert "stepz" in capsys.readouterr().err
    assert invoke([*words, "--clean", "--yes"]) == 2  # no such model is on this machine
    assert "acme/tiny" in (told := capsys.readouterr().err)
    assert "nothing was deleted" in told
    model = run.stage_folder(0, "sft") / "model"
    model.mkdir()
    assert invoke([*words, "--clean", "--yes", f"model={model}"]) == 2
    assert "the recipe uses files of the run `first`" in capsys.readouterr().err
    assert (run.stage_folder(0, "sft") / "metrics.jsonl").exists()


def test_clean_reaches_no_run_elsewhere(
    run: Run, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", str(recipe), "--clean", "--yes", "--runs", str(tmp_path / "others")]
    assert invoke([*words, "--name", "../runs/first"]) == 2
    assert "cannot be the name" in capsys.readouterr().err
    assert run.path.exists()


def test_clean_is_for_a_name(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["run", str(recipe), "--clean"]) == 2
    assert "--name" in capsys.readouterr().err
