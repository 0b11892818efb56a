"""Removing runs: only runs, only idle ones, whole or not at all."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hone.errors import UserError
from hone.recipe.load import LoadedRecipe, load_recipe
from hone.removal import find_holdings, remove_run, replace_run, sweep, uses
from hone.runs import Run, create_run, list_runs

pytestmark = pytest.mark.quick

# Is killed between taking the run away and making the new one.
KILLED = """
import os, signal, sys
from pathlib import Path
from hone.removal import replace_run
from hone.runs import Run
replace_run(Run(Path(sys.argv[1])), lambda: os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedRecipe:
    (tmp_path / "chat.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "recipe.yaml").write_text(
        "model: acme/tiny\nstages:\n  - sft: {data: chat.jsonl, steps: 3}\n"
    )
    return load_recipe(tmp_path / "recipe.yaml")


@pytest.fixture
def run(loaded: LoadedRecipe, tmp_path: Path) -> Run:
    return create_run(loaded, "first", tmp_path / "runs")


def test_what_a_run_holds_is_counted(run: Run) -> None:
    assert run.trained_nothing()
    before = find_holdings(run)
    assert (before.steps, before.checkpoints, before.results) == (0, 0, 0)
    stage = run.stage_folder(0, "sft")
    (stage / "checkpoints/step_000002").mkdir(parents=True)
    (stage / "checkpoints/step_000002/weights").write_bytes(b"x" * 1000)
    (stage / "metrics.jsonl").write_text('{"step": 2, "loss": 1.0}\n')
    found = find_holdings(run)
    assert (found.stage, found.steps, found.checkpoints, found.results) == ("1-sft", 2, 1, 0)
    assert found.size_bytes - before.size_bytes >= 1000
    assert not run.trained_nothing()


@pytest.mark.parametrize("left", ["checkpoints/step_000001/", "model/", "metrics.jsonl", "../DONE"])
def test_any_trace_of_training_counts(run: Run, left: str) -> None:
    stage = run.stage_folder(0, "sft")
    stage.mkdir(parents=True)
    (stage / "metrics.jsonl").touch()  # opened, but no row yet
    assert run.trained_nothing()
    if left == "../DONE":
        (run.path / "DONE").touch()
    elif left.endswith("/"):
        (stage / left).mkdir(parents=True)
    else:
        (stage / left).write_text('{"step": 1}\n')
    assert not run.trained_nothing()


def test_a_removed_run_is_gone(run: Run, tmp_path: Path) -> None:
    remove_run(run)
    assert list((tmp_path / "runs").iterdir()) == []
    with pytest.raises(FileNotFoundError), run.lock():
        raise AssertionError("a run that is gone was locked")


def test_a_run_at_work_is_not_removed(run: Run, loaded: LoadedRecipe) -> None:
    hold = (
        "import sys, time; from pathlib import Path; from hone.runs import Run\n"
        "with Run(Path(sys.argv[1])).lock(): print(flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", hold, str(run.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            with pytest.raises(UserError, match=f"process {process.pid} on host"):
                remove_run(run)
            with pytest.raises(UserError, match=f"process {process.pid} on host"):
                replace_run(run, lambda: create_run(loaded, "first", run.path.parent))
            assert (run.path / "recipe.yaml").exists()
        finally:
            process.kill()
    remove_run(run)
    assert not run.path.exists()


def test_what_is_no_run_is_not_removed(run: Run, tmp_path: Path) -> None:
    link = tmp_path / "runs" / "link"
    link.symlink_to(run.path)
    with pytest.raises(UserError, match="a link"):
        remove_run(Run(link))
    assert run.status()["state"] == "created"
    folder = tmp_path / "runs" / "thesis"
    folder.mkdir()
    (folder / "recipe.resolved.json").write_text("{}")
    with pytest.raises(UserError, match="no run"):
        remove_run(Run(folder))
    assert folder.exists()


def test_a_new_run_takes_the_place_or_the_old_one_stays(run: Run, loaded: LoadedRecipe) -> None:
    (run.path / "log.txt").write_text("kept")

    def fail() -> Run:
        assert not run.path.exists()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_run(run, fail)
    assert (run.path / "log.txt").read_text() == "kept"
    made = replace_run(run, lambda: create_run(loaded, "first", run.path.parent))
    assert made.path == run.path
    assert not (run.path / "log.txt").exists()
    assert [path.name for path in run.path.parent.iterdir()] == ["first"]


def test_a_kill_in_the_middle_leaves_nothing_visible(run: Run, loaded: LoadedRecipe) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(run.path)])
    assert done.returncode == -signal.SIGKILL
    folder = run.path.parent
    (hidden,) = folder.iterdir()
    assert list_runs(folder) == []
    mine = folder / ".mine.removed"
    mine.mkdir()
    remove_run(create_run(loaded, "first", folder))
    assert not hidden.exists()
    assert mine.exists()


def test_sweeping_needs_no_folder(tmp_path: Path) -> None:
    sweep(tmp_path / "nowhere")


def test_runs_that_stand_on_it_are_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run.stage_folder(0, "sft") / "model"
    result.mkdir(parents=True)
    monkeypatch.setenv("HONE_TEST_RUNS", str(run.path.parent))
    text = "model: ${HONE_TEST_RUNS}/first/stages/1-sft/model\nstages:\n  - sft: {data: chat.jsonl}"
    (tmp_path / "next.yaml").write_text(text)
    following = load_recipe(tmp_path / "next.yaml")
    create_run(following, "second", run.path.parent)
    assert find_holdings(run).needed_by == ["second"]
    assert uses(run, following.recipe.model_dump(mode="json"))
    assert not uses(run, load_recipe(tmp_path / "recipe.yaml").recipe.model_dump(mode="json"))
