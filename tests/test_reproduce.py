"""`hone reproduce`: the same bytes again, and whatever is not the same is named."""

import json
import os
import shutil
from pathlib import Path

import pytest

from hone.cli.commands import invoke
from hone.comparison import compare_runs
from hone.recipe.load import load_recipe
from hone.runs import Run, create_run, open_run
from tests.workbench import work, write_bench

pytestmark = pytest.mark.e2e

WEIGHTS = "stages/1-sft/model/adapter_model.safetensors"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished run `first`."""
    folder = tmp_path_factory.mktemp("reproduce")
    write_bench(folder)
    work(create_run(load_recipe(folder / "recipe.yaml"), "first", folder / "runs"))
    return folder


@pytest.fixture
def first(bench: Path) -> Run:
    return open_run("first", bench / "runs")


def reproduce(
    run: Run, capsys: pytest.CaptureFixture[str], *words: str, expect: int = 0
) -> tuple[str, str]:
    """(stdout, stderr) of the command."""
    capsys.readouterr()
    code = invoke(["reproduce", run.name, "--runs", str(run.path.parent), *words])
    captured = capsys.readouterr()
    assert code == expect, captured.out + captured.err
    return captured.out, captured.err


def twin(run: Run, name: str) -> Run:
    """A copy of a run under another name: what is the same to the last byte."""
    path = run.path.parent / name
    shutil.copytree(run.path, path)
    for file in path.rglob("*.json"):
        file.write_text(file.read_text().replace(str(run.path), str(path)))
    return Run(path)


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    stat = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # a time stamp proves nothing


def test_a_run_made_again_has_the_same_bytes(
    first: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = reproduce(first, capsys)
    assert out.startswith("first-reproduced-1 is the same as first, byte for byte: 9 rows")
    again = open_run("first-reproduced-1", first.path.parent)
    kept = json.loads((again.path / "reproduction.json").read_text())
    assert (kept["same"], kept["rows"], kept["surroundings"]) == (True, 9, [])
    assert kept["num_files"] > 8
    lock, made = first.read_lock_json(), again.read_lock_json()
    assert made.pop("reproduces") == {"name": "first", "path": str(first.path)}
    for table in (lock, made):
        del table["recipe"]
    assert made == lock
    assert (again.path / WEIGHTS).read_bytes() == (first.path / WEIGHTS).read_bytes()


def test_its_beginning_is_enough_and_can_be_gone_on_with(
    first: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = reproduce(first, capsys, "--steps", "4", "--name", "part", "--json")
    found = json.loads(out)
    assert (found["same"], found["rows"], found["num_files"], found["steps"]) == (True, 6, 0, 4)
    part = open_run("part", first.path.parent)
    assert part.status()["state"] == "stopped"
    attempts = part.status()["attempt"]
    reproduce(first, capsys, "--steps", "2", "--name", "part")  # is there already
    assert part.status()["attempt"] == attempts
    out, _ = reproduce(first, capsys, "--name", "part")
    assert out.startswith("part is the same as first")
    assert part.done
    out, _ = reproduce(first, capsys, "--name", "part")  # compared again, not trained
    assert part.status()["attempt"] == attempts + 1
    _, err = reproduce(first, capsys, "--steps", "7", expect=2)
    assert "has 6 steps, fewer than 7" in err
    _, err = reproduce(part, capsys, "--name", "first", expect=2)
    assert "`first` exists already" in err


def test_a_run_that_is_not_finished_is_refused(
    bench: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = create_run(load_recipe(bench / "recipe.yaml"), "half", bench / "runs")
    work(half, until=(1, 3))
    _, err = reproduce(half, capsys, expect=2)
    assert "not finished: stopped" in err and "--steps" in err
    out, _ = reproduce(half, capsys, "--steps", "2")
    assert "half-reproduced-1 is the same as half" in out


@pytest.mark.parametrize("name", ["shards/a.jsonl", "pairs.jsonl", "base/model.safetensors"])
def test_one_changed_byte_of_what_goes_in_is_named(
    first: Run, bench: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = bench / name
    weights = path.suffix == ".safetensors"
    position = path.stat().st_size - 9 if weights else path.read_bytes().index(b"1")
    flip(path, position)
    try:
        _, err = reproduce(first, capsys, "--name", "refused", expect=2)
        assert f"`{path}` was" in err and "SHA-256" in err
        assert not (first.path.parent / "refused").exists()
        os.utime(path)  # what prepares data remembers hashes by it
        label = f"with-{path.stem}"
        out, err = reproduce(first, capsys, "--name", label, "--anyway", "--json", expect=1)
    finally:
        flip(path, position)
    found = json.loads(out)
    assert "stage 1-sft, " in found["first"]["where"]
    assert found["first"]["what"] in ("loss", "accuracy", "grad_norm")
    assert any(path.name in each["what"] for each in found["surroundings"])


def test_a_flipped_bit_of_the_result_is_named(first: Run) -> None:
    again = twin(first, "flipped")
    assert compare_runs(first, again).same
    flip(again.path / WEIGHTS, (again.path / WEIGHTS).stat().st_size - 4)
    found = compare_runs(first, again)
    assert found.files == [WEIGHTS]
    assert found.first is not None and found.first.where == WEIGHTS
    assert "tensor base_model" in found.first.what and "element" in found.first.what
    assert found.first.before != found.first.after


def test_a_rollout_that_differs_is_named(first: Run) -> None:
    """Of runs that practise, what was answered and scored counts as well as the weights."""
    again = twin(first, "rollouts")
    place = "rollouts/step_000001.jsonl"
    for run, reward in ((first, 1.0), (again, 0.0)):
        path = run.stage_folder(0, "sft") / place
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"reward": reward}) + "\n")
    found = compare_runs(first, again)
    shutil.rmtree(first.stage_folder(0, "sft") / "rollouts")
    assert any(file.endswith(place) for file in found.files)


def test_another_seed_is_named(first: Run, bench: Path) -> None:
    path = bench / "seed.yaml"
    path.write_text((bench / "recipe.yaml").read_text() + "seed: 1\n")
    other = create_run(load_recipe(path), "seed", bench / "runs")
    work(other, until=(1, 2))
    found = compare_runs(first, other, until=(1, 2))
    told = {each.what: (each.before, each.after) for each in found.surroundings}
    assert told["seed"] == told["recipe.seed"] == (0, 1)
    assert found.first is not None
    assert found.first.where == "stage 1-sft, step 1"


def test_another_thread_count_is_named(first: Run) -> None:
    again = twin(first, "threads")
    again.update_lock_json({"threads": 2, "stages": {"1": {"token_budget": 64}}})
    told = [each.in_words() for each in compare_runs(first, again).surroundings]
    assert "threads 1 -> 2" in told
    assert "stage 1 token_budget 1024 -> 64" in told


def test_a_row_that_differs_comes_before_what_follows_from_it(first: Run) -> None:
    again = twin(first, "row")
    metrics = again.path / "stages/1-sft/metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    row = next(row for row in rows if row["step"] == 3 and "split" not in row)
    old, row["grad_norm"] = row["grad_norm"], row["grad_norm"] + 1
    metrics.write_text("".join(json.dumps(each) + "\n" for each in rows))
    flip(again.path / WEIGHTS, (again.path / WEIGHTS).stat().st_size - 4)
    found = compare_runs(first, again)
    assert found.first is not None
    assert found.first.in_words() == (
        f"stage 1-sft, step 3: grad_norm {json.dumps(old)} -> {json.dumps(old + 1)}"
    )
    assert compare_runs(first, again, until=(1, 2)).same
    metrics.write_text("".join(json.dumps(each) + "\n" for each in rows[:2]))
    found = compare_runs(first, again)
    assert found.first is not None and found.first.after is None


def test_a_missing_result_and_other_versions_are_named(
    first: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    again = twin(first, "missing")
    (again.path / "stages/1-sft/model/tokenizer.json").unlink()
    shutil.rmtree(again.path / "stages/1-sft/checkpoints")
    again.update_lock_json({"versions": {"torch": "1.0"}})
    found = compare_runs(first, again)
    assert found.first is not None
    assert found.first.where == "stages/1-sft/model/tokenizer.json"
    assert found.first.after is None
    assert found.missing == ["1-sft: no checkpoint of the same step"]
    assert [each.what for each in found.surroundings] == ["versions.torch"]
    _, err = reproduce(again, capsys, "--steps", "1", "--name", "versions")
    assert "warning: the bytes may differ: torch 1.0 ->" in err
