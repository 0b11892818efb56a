"""`hone check --rehearse`: every stage is played for real on a slice, and nothing stays behind."""

import csv
import gzip
import json
import os
import signal
import tempfile
import time
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file

from hone.cli.commands import invoke
from hone.data.sources import open_source
from hone.models import load_tokenizer
from hone.recipe.load import LoadedRecipe, load_recipe
from hone.recipe.training import BatchSize
from hone.rehearsal.outlook import (
    Outlook,
    count_evaluations,
    data_outlook,
    forecast_s,
    tasks_outlook,
)
from hone.rehearsal.play import Played
from hone.rehearsal.rehearse import find_material, rehearse
from hone.rehearsal.slices import first_and_longest, slice_recipe, write_rows
from hone.runs import create_run
from hone.stages.run import prepare_base, stage_tasks
from tests.workbench import NEW_MODEL, start, write_data

STAGES = """
stages:
  - pretrain: {data: text.jsonl, epochs: 3, batch: {tokens: 256}, warmup: 0.1}
  - sft:
      data: [{path: chat.jsonl, weight: 3}, {path: pairs.csv, weight: 1}]
      evaluation: {share: 0.1, every: 5}
      batch: {samples: 8}
      steps: 20
      precision: bf16
  - dpo: {data: preferences.jsonl, evaluation: {share: 0.1}, batch: {samples: 4}, steps: 5}
  - grpo:
      data: pairs.jsonl
      rewards: ["reward.py:judge"]
      evaluation: {share: 0.1, every: 3}
      batch: {samples: 2}
      group: 4
      completion_tokens: 8
      steps: 9
"""
GRPO = "stages:" + STAGES[STAGES.index("\n  - grpo") :]
REWARD = (
    "def judge(completions, **columns):\n    return [len(text) / 100 for text in completions]\n"
)
LONG = 120  # the row with the longest text


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Data of every kind, a reward, and a place for temporary files that is empty."""
    write_data(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "text.jsonl").read_text().splitlines()]
    rows[LONG]["text"] *= 9
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "completion"])
        writer.writeheader()
        writer.writerows(pairs)
    preferences = [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": " no"} for row in pairs
    ]
    lines = "".join(json.dumps(row) + "\n" for row in preferences)
    (tmp_path / "preferences.jsonl").write_text(lines)
    (tmp_path / "reward.py").write_text(REWARD)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("HONE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def load(folder: Path, stages: str = STAGES, model: str = NEW_MODEL) -> LoadedRecipe:
    (folder / "recipe.yaml").write_text(model + stages)
    return load_recipe(folder / "recipe.yaml")


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "temporary").iterdir())


def test_every_stage_is_played_and_nothing_stays(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(folder)
    recipe = str(folder / "recipe.yaml")
    assert invoke(["check", recipe]) == 0
    cached = sorted((folder / "cache").rglob("*"))
    capsys.readouterr()

    assert invoke(["check", recipe, "--rehearse", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    stages = found["rehearsal"]["stages"]
    assert [stage["method"] for stage in stages] == ["pretrain", "sft", "dpo", "grpo"]
    for stage in stages:
        assert stage["step_s"] > 0
        assert stage["peak_memory_bytes"] > 10**7
        assert stage["forecast_s"] > 0
        assert "is answered with" in stage["trials"]["answer"]
    assert [stage["held_out"] is None for stage in stages] == [True, False, False, False]
    assert stages[1]["held_out"][0] != stages[1]["held_out"][1]
    assert stages[3]["sampled_tokens_per_s"] > 0
    assert found["ok"]
    assert sum("all 20 steps" in finding["message"] for finding in found["findings"]) == 1
    assert left_behind(folder) == []
    assert sorted((folder / "cache").rglob("*")) == cached
    assert not (folder / "runs").exists()


def test_a_reward_that_raises_on_the_answers_is_found(folder: Path) -> None:
    raising = "def judge(completions, **columns):\n    return [1 / 0 for text in completions]\n"
    (folder / "reward.py").write_text(raising)
    (error,) = errors_of(load(folder, GRPO))
    assert error.startswith("rehearsal, stage 1 grpo, before step 1")
    assert "ZeroDivisionError" in error
    assert left_behind(folder) == []


def test_a_model_that_is_not_finite_in_bf16_is_found(folder: Path) -> None:
    """A number whose square is infinite, in the row of a token that the data have."""
    made = create_run(load(folder, "stages:\n  - pretrain: {data: text.jsonl}\n"), "m", folder)
    prepare_base(made, made.loaded_recipe().recipe, Console(quiet=True))
    base = made.path / "base"
    stages = "stages:\n  - sft: {data: chat.jsonl, batch: {samples: 2}, precision: bf16}\n"
    recipe = load(folder, stages, f"model: {base}\n")
    weights = load_file(base / "model.safetensors")
    (token,) = load_tokenizer(str(base))("?", add_special_tokens=False)["input_ids"]
    weights["model.embed_tokens.weight"][token, 0] = 3e38
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    (error,) = errors_of(recipe)
    assert error.startswith("rehearsal, stage 1 sft, after step ")
    assert "not finite" in error


def errors_of(recipe: LoadedRecipe) -> list[str]:
    return [each.message for each in rehearse(recipe).findings if each.severity == "error"]


def test_what_check_finds_is_not_rehearsed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fails = (
        "{% for m in messages %}{% if '97' in m.content %}{{ raise_exception('97') }}{% endif %}"
    )
    (folder / "fails.jinja").write_text(
        fails + "{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"
    )
    load(folder, "stages:\n  - sft: {data: {path: chat.jsonl, template: fails.jinja}, steps: 3}\n")
    assert invoke(["check", str(folder / "recipe.yaml"), "--rehearse", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["rehearsal"] is None
    assert "chat.jsonl:" in found["findings"][-1]["message"]
    assert left_behind(folder) == []


def test_ctrl_c_leaves_neither_files_nor_processes(folder: Path) -> None:
    load(folder)
    process = start(folder, "check", "recipe.yaml", "--rehearse")
    while not (made := list((folder / "temporary").glob("*/runs/rehearsal/stages"))):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    playing = processes_of(made[0].parents[2])
    assert playing
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert left_behind(folder) == []
    assert processes_of(made[0].parents[2]) == []


def processes_of(folder: Path) -> list[int]:
    """The processes whose command line names the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


# Slices


def test_a_slice_has_the_first_rows_and_the_longest_one(folder: Path, tmp_path: Path) -> None:
    data = find_material(load(folder), 0)
    assert data is not None
    (prepared,) = data.prepared.sets
    chosen = first_and_longest(prepared, BatchSize(samples=4), 1)
    assert chosen == {(0, LONG + 1)} | {(0, n) for n in range(1, 8)}
    by_tokens = first_and_longest(prepared, BatchSize(tokens=400), 1)
    numbers = {number for _, number in by_tokens}
    tokens = sum(int(prepared.lengths[number - 1]) for number in numbers)
    assert LONG + 1 in numbers
    assert 400 < tokens <= 600


def test_rows_of_a_slice_are_those_of_the_source(folder: Path) -> None:
    wanted = {(0, 3), (0, 5)}
    write_rows(str(folder / "pairs.csv"), None, wanted, folder / "slice.jsonl")
    rows = list(open_source(str(folder / "pairs.csv")).rows())
    expected = [row.values for row in rows if (row.source, row.number) in wanted]
    written = [json.loads(line) for line in (folder / "slice.jsonl").read_text().splitlines()]
    assert written == expected
    assert len(expected) == 2


def test_a_source_is_read_no_further_than_needed(folder: Path) -> None:
    """The rest of this file cannot be unpacked."""
    text = b"".join(
        b'{"text": "%d %s"}\n' % (n, os.urandom(3000).hex().encode()) for n in range(99)
    )
    packed = gzip.compress(text)
    (folder / "cut.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    write_rows(str(folder / "cut.jsonl.gz"), None, {(0, 2)}, folder / "slice.jsonl")
    (line,) = (folder / "slice.jsonl").read_text().splitlines()
    assert json.loads(line)["text"].startswith("1 ")


def test_the_sliced_recipe_keeps_the_batches(folder: Path) -> None:
    loaded = load(folder)
    material = [find_material(loaded, index) for index in range(4)]
    sliced = slice_recipe(loaded, material, folder / "data", folder).recipe
    for before, after in zip(loaded.recipe.stages, sliced.stages, strict=True):
        assert after.settings.steps == 2
        assert after.settings.batch == before.settings.batch
    sft = sliced.stages[1].sft
    assert sft is not None and sft.evaluation is not None
    assert sft.weights == [3, 1]
    assert [Path(each.path).name for each in sft.evaluation.data_sets] == [
        "evaluation-0.jsonl",
        "evaluation-1.jsonl",
    ]
    held_out = [Path(each.path).read_text() for each in sft.evaluation.data_sets]
    assert "".join(held_out).count("\n") == 8


# How long a run takes


def test_the_outlook_counts_what_a_run_computes(folder: Path) -> None:
    loaded = load(folder)
    for index in (0, 1, 2):
        data = find_material(loaded, index)
        assert data is not None
        outlook = data_outlook(data)
        trained = sum(
            sample.num_tokens
            for step in range(1, data.total_steps + 1)
            for sample in data.samples_of(step)
        )
        assert outlook.steps == data.total_steps
        assert outlook.tokens == pytest.approx(trained, rel=0.05)
    assert data_outlook(find_material(loaded, 0)).forward == 0  # type: ignore[arg-type]
    tasks, _ = stage_tasks(loaded, 3)
    assert tasks_outlook(tasks).batches == 9
    assert tasks_outlook(tasks).answers == 4 * len(tasks.held_out.questions)  # before, 3, 6, 9


@pytest.mark.parametrize(("steps", "every"), [(9, 3), (10, 3), (1, 50)])
def test_evaluations_are_counted_as_they_are_made(folder: Path, steps: int, every: int) -> None:
    evaluation = load(folder).recipe.stages[3].settings.evaluation
    assert evaluation is not None
    asked = evaluation.model_copy(update={"every": every})
    made = 1 + sum(step % every == 0 or step == steps for step in range(1, steps + 1))
    assert count_evaluations(asked, steps) == made


def test_the_forecast_goes_by_the_pace() -> None:
    """100 steps of 50 tokens and 600 tokens that are only read, at 100 tokens/s. Then 4 steps of
    3 s with 2 batches of rollouts, each 2 s of it, and 10 answers of 8 tokens at 40 tokens/s.
    """
    played = Played(1, "sft", 0.5, 100.0, 0, 0.0, 0.0, None, {})
    assert forecast_s(Outlook(100, 5000.0, 600.0), played) == pytest.approx(50 + 2)
    played = Played(1, "grpo", 3.0, 100.0, 0, 2.0, 40.0, None, {})
    sampled = Outlook(4, batches=2, answers=10, answer_tokens=8)
    assert forecast_s(sampled, played) == pytest.approx(4 * 1 + 2 * 2 + 2)
