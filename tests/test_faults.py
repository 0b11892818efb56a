"""Faults, each caused for real under the real command, each with its one outcome.

Here: a full disk, memory that runs out, numbers that are not finite. Signals and kills are in
test_exact.py and test_signals.py, broken checkpoints in test_exact.py.
"""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hone.checkpoints import find_fault, list_checkpoints
from hone.data.tokenizer_training import train_tokenizer
from hone.metrics import canonical_metrics, latest_row, read_metrics
from hone.quarantine import read_quarantine
from tests.workbench import NEW_MODEL, fill, fingerprint, hone, kill, start, write_data

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

# --- A full disk ---------------------------------------------------------------------------------

DISK_RECIPE = (
    NEW_MODEL
    + """
stages:
  - pretrain:
      data: text.jsonl
      batch: {samples: 4}
      steps: 150
      checkpoint: {every: 5, keep: KEEP}
"""
)


def disk_folder(tmp_path: Path, keep: int, steps: int = 150) -> Path:
    """A folder with the recipe, and what it ends in when nothing happens, in `uninterrupted`."""
    write_data(tmp_path)
    recipe = DISK_RECIPE.replace("KEEP", str(keep)).replace("150", str(steps))
    (tmp_path / "recipe.yaml").write_text(recipe)
    hone(tmp_path, "run", "recipe.yaml", "--name", "first", "--runs", "uninterrupted")
    return tmp_path


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Until the row of `step` is written; the process must not have ended by then."""
    deadline = time.monotonic() + 120
    while (row := latest_row(run / "stages/1-pretrain/metrics.jsonl")) is None or row[
        "step"
    ] < step:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the step never came"
        time.sleep(0.002)


def test_disk_full_to_the_end_and_resumed(tmp_path: Path, small_disk: Path) -> None:
    """Training goes on, no whole checkpoint is lost, nothing half-written stays; with room again
    the run ends in the bytes of one that always had it.
    """
    folder = disk_folder(tmp_path, keep=2)
    run = small_disk / "first"
    process = start(folder, "run", "recipe.yaml", "--name", "first", "--runs", str(small_disk))
    wait_for_step(run, 20, process)
    while process.poll() is None:  # whatever is freed is taken at once
        filler = fill(small_disk, leave=0)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 1, printed
    assert "the disk is full, no checkpoint could be saved; training goes on" in printed
    assert "the result could not be saved" in printed and "hone resume" in printed
    assert "Traceback" not in printed
    (kept,) = list_checkpoints(run / "stages/1-pretrain/checkpoints")
    assert find_fault(kept) is None
    assert not list(run.rglob(".*.tmp")) and not list(run.rglob("*.new"))
    filler.unlink()
    hone(folder, "resume", str(run))
    assert fingerprint(run) == fingerprint(folder / "uninterrupted/first")


def until(lines: Iterable[str], words: str) -> Iterator[str]:
    """The lines up to the one that has the words."""
    for line in lines:
        yield line
        if words in line:
            return


def test_disk_full_for_a_while(tmp_path: Path, small_disk: Path) -> None:
    """Rows of metrics wait for room; a run that can be saved at the end ends well."""
    folder = disk_folder(tmp_path, keep=1, steps=400)
    run = small_disk / "first"
    process = start(folder, "run", "recipe.yaml", "--name", "first", "--runs", str(small_disk))
    wait_for_step(run, 20, process)
    filler = fill(small_disk, leave=0)
    assert process.stdout
    said = "".join(until(process.stdout, "no checkpoint could be saved"))
    filler.unlink()
    printed = said + process.communicate(timeout=120)[0]
    assert process.returncode == 0, printed
    assert "the disk is full" in printed and "there is room again" in printed
    assert fingerprint(run) == fingerprint(folder / "uninterrupted/first")


def test_old_checkpoints_make_room(tmp_path: Path, small_disk: Path) -> None:
    """Where pruning helps, nothing else is lost and nobody is bothered."""
    folder = disk_folder(tmp_path, keep=3)
    run = small_disk / "first"
    process = start(folder, "run", "recipe.yaml", "--name", "first", "--runs", str(small_disk))
    wait_for_step(run, 40, process)
    size = sum(
        p.stat().st_size
        for p in list_checkpoints(run / "stages/1-pretrain/checkpoints")[0].iterdir()
    )
    fill(small_disk, leave=size // 2)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0, printed
    assert "no checkpoint could be saved" not in printed
    assert fingerprint(run) == fingerprint(folder / "uninterrupted/first")


def test_disk_need_is_known_before_step_1(tmp_path: Path, small_disk: Path) -> None:
    folder = disk_folder(tmp_path, keep=2)
    fill(small_disk, leave=300_000)
    printed = hone(
        folder, "run", "recipe.yaml", "--name", "first", "--runs", str(small_disk), expect=1
    )
    assert "have no room" in printed and "--runs FOLDER" in printed
    assert read_metrics(small_disk / "first/stages/1-pretrain/metrics.jsonl") == []


# --- Out of memory -------------------------------------------------------------------------------

MEMORY_RECIPE = """
model:
  architecture: llama
  config: {hidden_size: 128, num_hidden_layers: 4, num_attention_heads: 4, intermediate_size: 512,
    max_position_embeddings: 8192}
  tokenizer: {train_on: long.jsonl, vocabulary: 320}
seed: 5
threads: 1
stages:
  - pretrain:
      data: long.jsonl
      batch: {samples: 8}
      steps: 3
      max_tokens: 8192
      precision: fp32
      token_budget: 8192
      evaluation: {share: 0.25, every: 2}
      checkpoint: {every: 1}
"""
ROOM = 235  # MB above the least limit: some 2,500 tokens at once, so that 3,200 fail and 2,048 fit


def memory_folder(tmp_path: Path, words: int) -> tuple[Path, str]:
    """Data of long samples, and a limit that most of a step does not fit into."""
    rows = [{"text": " ".join(f"{n * k % 97}" for k in range(words + n))} for n in range(16)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(MEMORY_RECIPE)
    printed = hone(tmp_path, "check", "recipe.yaml", "memory=1MB", expect=1)
    least = re.search(r"at least memory: \{limit: (\d+)MB\}", printed)
    assert least, printed
    return tmp_path, f"memory={int(least[1]) + ROOM}MB"


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run / "stages/1-pretrain/metrics.jsonl")]


def test_out_of_memory_halves_the_micro_batch(tmp_path: Path) -> None:
    """The same step in smaller pieces, kept in the lock; killed and resumed it is the same."""
    folder, limit = memory_folder(tmp_path, words=300)
    hone(folder, "run", "recipe.yaml", "--name", "whole")
    printed = hone(folder, "run", "recipe.yaml", limit, "--name", "small")
    assert "do not fit into the memory; from here on" in printed
    whole, small = losses(folder / "runs/whole"), losses(folder / "runs/small")
    assert small == pytest.approx(whole, rel=1e-6)
    lock = json.loads((folder / "runs/small/lock.json").read_text())
    steps = lock["stages"]["1"]["smaller_budgets"]
    assert steps and all(tokens < 8192 for _, tokens in steps)
    # Killed after the first step: the resumed run uses the budgets of the lock, without a failure.
    process = start(folder, "run", "recipe.yaml", limit, "--name", "again")
    wait_for_step(folder / "runs/again", 1, process)
    kill(process)
    if process.returncode:
        hone(folder, "resume", "again")
    expected = fingerprint(folder / "runs/small")
    assert fingerprint(folder / "runs/again") == expected


def test_a_sample_that_cannot_fit_is_named(tmp_path: Path) -> None:
    folder, limit = memory_folder(tmp_path, words=3000)
    printed = hone(folder, "run", "recipe.yaml", limit, "--name", "first", expect=1)
    assert re.search(r"step \d: \S*long.jsonl:\d+, [\d,]+ tokens long, does not fit", printed), (
        printed
    )
    assert "Traceback" not in printed


# --- Numbers that are not finite -----------------------------------------------------------------

POISON_RECIPE = """
model: poisoned
seed: 5
threads: 1
stages:
  - sft:
      data: {path: rows.jsonl, format: prompt_completion}
      batch: {samples: 1}
      epochs: 1
      learning_rate: 0.01
      precision: fp32
      checkpoint: {every: 1}
"""


@pytest.fixture
def poisoned(tmp_path: Path) -> Path:
    """A model that gives no number for one token, and 12 rows of which two have that token."""
    tokenizer = train_tokenizer(["one two three four five six seven " * 20], 300)
    tokenizer.add_tokens(["<poison>"])
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids("<poison>")] = float(
            "nan"
        )
    model.save_pretrained(tmp_path / "poisoned")
    tokenizer.save_pretrained(tmp_path / "poisoned")
    rows = [{"prompt": f"one two {n}", "completion": " three"} for n in range(12)]
    for n in (4, 9):
        rows[n]["prompt"] += " <poison>"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(POISON_RECIPE)
    return tmp_path


def test_a_step_that_is_not_finite_makes_no_update(poisoned: Path) -> None:
    """The two bad samples are in quarantine, all others train; resuming gives the same."""
    hone(poisoned, "run", "recipe.yaml", "--name", "first")
    stage = poisoned / "runs/first/stages/1-sft"
    lines = read_quarantine(stage)
    assert sorted(line["suspects"] for line in lines) == [[4], [9]]
    assert {sample["place"].rpartition("/")[2] for line in lines for sample in line["samples"]} == {
        "rows.jsonl:5",
        "rows.jsonl:10",
    }
    rows = read_metrics(stage / "metrics.jsonl")
    assert len(rows) == 12
    assert [row["step"] for row in rows if row.get("skipped")] == [line["step"] for line in lines]
    assert all((row["loss"] is None) == ("skipped" in row) for row in rows)
    expected = fingerprint(poisoned / "runs/first"), lines
    shutil.rmtree(poisoned / "runs")
    process = start(poisoned, "run", "recipe.yaml", "--name", "first")
    deadline = time.monotonic() + 60
    while not read_quarantine(stage) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    kill(process)
    if process.returncode:
        hone(poisoned, "resume", "first")
    assert (fingerprint(poisoned / "runs/first"), read_quarantine(stage)) == expected


def test_the_skipped_update_is_as_if_the_step_were_not_there(poisoned: Path) -> None:
    """Nothing but bad samples: the weights that are saved are those of the start."""
    bad = [{"prompt": "one <poison>", "completion": " two"}] * 3
    (poisoned / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bad))
    hone(poisoned, "run", "recipe.yaml", "sft.adapter={type: full}", "--name", "first")
    before = LlamaForCausalLM.from_pretrained(poisoned / "poisoned").state_dict()
    after = LlamaForCausalLM.from_pretrained(poisoned / "runs/first/stages/1-sft/model")
    for name, tensor in after.state_dict().items():
        assert torch.equal(tensor.nan_to_num(7), before[name].nan_to_num(7)), name


def test_too_many_in_a_row_stop_and_say_what_was_seen(poisoned: Path) -> None:
    bad = [{"prompt": "one <poison>", "completion": " two"}] * 6
    (poisoned / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bad))
    printed = hone(
        poisoned, "run", "recipe.yaml", "sft.max_skipped_steps=1", "--name", "first", expect=1
    )
    assert "step 2: 2 steps in a row" in printed and "largest trained number is 0." in printed
    assert "quarantine.jsonl" in printed
    assert len(read_metrics(poisoned / "runs/first/stages/1-sft/metrics.jsonl")) == 2


def test_weights_that_are_not_finite_are_never_saved(poisoned: Path) -> None:
    """A learning rate that blows up: the checkpoint before it stays, and the cause is named."""
    good = [{"prompt": f"one {n}", "completion": " two"} for n in range(12)]
    (poisoned / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in good))
    overrides = ["sft.learning_rate=1e38", "sft.schedule=constant", "sft.adapter={type: full}"]
    overrides += ["sft.optimizer={type: sgd}", "sft.max_grad_norm=null"]
    printed = hone(poisoned, "run", "recipe.yaml", *overrides, "--name", "first", expect=1)
    assert "not finite" in printed and "lower `learning_rate`" in printed
    for checkpoint in list_checkpoints(poisoned / "runs/first/stages/1-sft/checkpoints"):
        saved = LlamaForCausalLM.from_pretrained(checkpoint).lm_head.weight
        assert torch.isfinite(saved).all()
    assert canonical_metrics(poisoned / "runs/first/stages/1-sft/metrics.jsonl")
