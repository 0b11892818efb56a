"""`hone run --clean` with a real model: a new run in the place of the old one."""

import shutil
from pathlib import Path

import pytest

from hone.cli.commands import invoke
from hone.runs import open_run
from tests.workbench import write_bench

pytestmark = pytest.mark.e2e


def test_a_run_is_made_anew_and_nothing_is_asked_where_nothing_was_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_bench(tmp_path)
    recipe, runs = str(tmp_path / "recipe.yaml"), tmp_path / "runs"
    words = ["run", recipe, "sft.steps=1", "--name", "first", "--runs", str(runs)]
    (tmp_path / "pairs.jsonl").rename(tmp_path / "away.jsonl")
    (tmp_path / "pairs.jsonl").write_text("no JSON\n")
    assert invoke(words) != 0  # found at work: the run stays, and holds nothing
    assert open_run("first", runs).status()["state"] == "failed"
    assert invoke(words) == 2
    assert "has trained no step yet" in capsys.readouterr().err
    shutil.copy(tmp_path / "away.jsonl", tmp_path / "pairs.jsonl")
    assert invoke([*words, "--clean"]) == 0
    old = open_run("first", runs)
    assert old.done
    assert invoke([*words, "--clean"]) == 2  # trained by now, and nobody there to ask
    assert "finished stages: 1" in (told := capsys.readouterr().err)
    assert "--yes" in told
    assert open_run("first", runs).done
    (old.path / "log.txt").write_text("of the old run")
    assert invoke([*words, "--clean", "--yes"]) == 0
    assert "removed the run first that was here before" in capsys.readouterr().err
    assert not (old.path / "log.txt").exists()
    assert open_run("first", runs).status()["attempt"] == 1
    assert [path.name for path in runs.iterdir()] == ["first"]
