"""What has changed since a run began: refused by name, or accepted and remembered for ever."""

import json
import os
import shutil
from pathlib import Path

import pytest

from hone.cli.commands import invoke
from hone.recipe.load import load_recipe
from hone.runs import Run, create_run, open_run
from tests.workbench import fingerprint, results, work, write_bench

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, data in two files, a recipe, and what the whole run ends in."""
    folder = tmp_path_factory.mktemp("changes")
    write_bench(folder)
    return folder


@pytest.fixture(scope="module")
def whole(bench: Path) -> dict[str, str]:
    """The fingerprint of a run that nothing happens to."""
    run = create_run(load_recipe(bench / "recipe.yaml"), "whole", bench / "elsewhere")
    work(run)
    return fingerprint(run.path)


@pytest.fixture
def run(bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run that was stopped after step 3, in a folder of its own that has copies of the files."""
    copy = tmp_path / "bench"
    shutil.copytree(bench, copy, ignore=shutil.ignore_patterns("made", "elsewhere"))
    monkeypatch.chdir(copy)
    made = create_run(load_recipe(copy / "recipe.yaml"), "first", copy / "runs")
    work(made, until=(1, 3))
    assert made.status()["state"] == "stopped"
    return made


def change(path: Path) -> None:
    """Another digit, the same size."""
    text = path.read_text()
    path.write_text(text.replace("1", "2", 1))
    assert path.read_text() != text


def told(capsys: pytest.CaptureFixture[str], *words: str, expect: int = 0) -> str:
    code = invoke(words)
    captured = capsys.readouterr()
    assert code == expect, captured.err
    return " ".join((captured.out + captured.err).split())


def test_changed_data_are_named_and_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    change(Path("shards/b.jsonl"))
    before = {name: (run.path / name).read_bytes() for name in ("status.json", "lock.json")}
    printed = told(capsys, "resume", "first", expect=2)
    assert f"data of stage 1: `{Path('shards/b.jsonl').absolute()}` was" in printed
    assert "a.jsonl" not in printed
    assert "SHA-256" in printed and "hone resume first --accept-changed-data" in printed
    assert before == {name: (run.path / name).read_bytes() for name in before}


def test_changed_data_can_be_accepted_and_stay_known(
    run: Run, whole: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    old = run.read_lock_json()["stages"]["1"]["data"]
    change(Path("shards/b.jsonl"))
    printed = told(capsys, "resume", "first", "--accept-changed-data")
    assert "accepted: data of stage 1" in printed
    lock = run.read_lock_json()
    (entry,) = lock["data_changes"]
    assert (entry["attempt"], entry["stage"], entry["step"]) == (2, 1, 3)
    assert entry["key"] == old["key"] != lock["stages"]["1"]["data"]["key"]
    (file,) = entry["files"]
    assert file["before"]["sha256"] == old["sources"][1]["sha256"] != file["after"]["sha256"]
    assert lock["stages"]["1"]["data"]["sources"][1]["sha256"] == file["after"]["sha256"]
    assert run.status()["attempt"] == 2 and run.done
    assert "data_changed" in {event["event"] for event in run.events()}
    assert fingerprint(run.path) != whole
    shown = told(capsys, "show", "first")
    assert "not exact: stage 1, from step 3 (attempt 2): data" in shown
    printed = told(capsys, "reproduce", "first", expect=2)
    assert "cannot be made again: its data changed on the way" in printed
    assert not (run.path.parent / "first-reproduced-1").exists()


def test_accepting_what_has_not_changed_changes_nothing(
    run: Run, whole: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no data have changed" in told(capsys, "resume", "first", "--accept-changed-data")
    assert "data_changes" not in run.read_lock_json()
    assert results(fingerprint(run.path)) == results(whole)


def test_changed_evaluation_data_are_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    change(Path("pairs.jsonl"))
    printed = told(capsys, "resume", "first", expect=2)
    assert "evaluation of stage 1" in printed and "pairs.jsonl" in printed


def test_a_new_time_stamp_and_an_empty_cache_change_nothing(
    run: Run, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (*Path("shards").iterdir(), *Path("base").iterdir(), Path("pairs.jsonl")):
        os.utime(path)
    monkeypatch.setenv("HONE_CACHE", str(tmp_path / "empty"))
    key = run.read_lock_json()["stages"]["1"]["data"]["key"]
    assert invoke(["resume", "first"]) == 0
    assert run.read_lock_json()["stages"]["1"]["data"]["key"] == key
    assert (tmp_path / "empty" / "data" / key).is_dir()
    assert results(fingerprint(run.path)) == results(whole)


def test_data_that_are_gone_are_not_needed_while_the_cache_has_them(
    run: Run, whole: dict[str, str]
) -> None:
    shutil.rmtree("shards")
    Path("pairs.jsonl").unlink()
    assert invoke(["resume", "first"]) == 0
    assert results(fingerprint(run.path)) == results(whole)


def test_data_that_are_gone_everywhere_are_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("shards/a.jsonl").unlink()
    monkeypatch.setenv("HONE_CACHE", str(tmp_path / "empty"))
    printed = told(capsys, "resume", "first", expect=2)
    assert "a.jsonl` is gone, and so are the tokens" in printed
    assert run.status()["state"] == "stopped"


def test_a_changed_base_model_is_refused_and_named(
    run: Run, whole: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    weights = Path("base/model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    printed = told(capsys, "resume", "first", expect=2)
    assert "the base model has changed" in printed and "model.safetensors` was" in printed
    assert "tokenizer.json" not in printed
    (model,) = run.read_lock_json()["base"]["models"]
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {
        Path(file["path"]).name for file in model["files"]
    }
    content[-1] ^= 1
    weights.write_bytes(content)
    assert told(capsys, "resume", "first")
    assert results(fingerprint(run.path)) == results(whole)


def test_what_the_run_was_made_with_is_locked(run: Run) -> None:
    lock = json.loads((run.path / "lock.json").read_text())
    assert lock["device"]["kind"] == "cpu" and lock["device"]["name"]
    assert (lock["seed"], lock["threads"]) == (0, 1)
    assert len(lock["date"]) == 10
    assert lock["stages"]["1"]["precision"] in ("bf16", "fp32")
    assert open_run("first", run.path.parent).read_lock_json() == lock
