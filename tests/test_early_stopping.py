"""Which evaluation is the best, when training ends, and that a stopped stage resumes exactly."""

import json
import random
import shutil
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from hone.checkpoints import CheckpointState, list_checkpoints, read_state
from hone.early_stopping import judge_evaluation
from hone.metrics import read_metrics
from hone.recipe.data import EarlyStopping
from tests.workbench import NEW_MODEL, fingerprint, hone, kill, start

RECIPE = (
    NEW_MODEL
    + """
stages:
  - pretrain:
      data: text.jsonl
      batch: {samples: 4}
      steps: 200
      learning_rate: 0.02
      schedule: constant
      precision: fp32
      evaluation: {data: other.jsonl, every: 2, early_stopping: {patience: 4}}
      checkpoint: {every: 3, keep: 1, keep_every: 9}
"""
)


def judged(values: list[float], rule: EarlyStopping | None) -> CheckpointState:
    """The state after evaluations at steps 1, 2, ... with these values, or after the last one that
    was made.
    """
    state = CheckpointState(step=0, evaluated=True)
    for step, value in enumerate(values, 1):
        state = judge_evaluation(state, {"step": step, "loss": value, "accuracy": value}, rule)
        if state.stopped_early:
            break
    return state


def slow_best(values: list[float], rule: EarlyStopping) -> tuple[int, int | None]:
    """(best step, step of the end) by looking at all values before, each time."""
    sign = 1 if rule.metric == "accuracy" else -1
    best = 1
    for step in range(2, len(values) + 1):
        if sign * (values[step - 1] - values[best - 1]) > rule.min_change:
            best = step
        elif step - best >= rule.patience:
            return best, step
    return best, None


@pytest.mark.quick
@pytest.mark.parametrize("metric", ["loss", "accuracy"])
@pytest.mark.parametrize("patience", [1, 2, 5])
@pytest.mark.parametrize("min_change", [0.0, 0.2])
def test_the_best_and_the_end_against_an_obvious_computation(metric, patience, min_change) -> None:
    rule = EarlyStopping(metric=metric, patience=patience, min_change=min_change)
    draw = random.Random(3)
    for _ in range(50):
        values = [draw.random() for _ in range(draw.randint(1, 12))]
        best, end = slow_best(values, rule)
        state = judged(values, rule)
        assert (state.best_step, state.stopped_early) == (best, end is not None)
        if end is not None:
            assert state.without_gain == end - best


@pytest.mark.quick
def test_without_a_rule_the_lowest_loss_is_the_best_and_nothing_ends() -> None:
    state = judged([3.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0], None)
    assert (state.best_step, state.best_value, state.stopped_early) == (2, 1.0, False)


@pytest.mark.quick
def test_the_evaluation_before_step_1_is_never_the_best() -> None:
    state = CheckpointState(step=0, evaluated=False)
    assert judge_evaluation(state, {"step": 0, "loss": 0.1}, EarlyStopping()) == state


def write_texts(folder: Path) -> None:
    """Training texts that can be learnt by heart, and others that then get worse."""
    draw = random.Random(0)
    for name, count in (("text", 8), ("other", 8)):
        rows = [{"text": " ".join(draw.choices("abcdefgh", k=12))} for _ in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(RECIPE)


@pytest.mark.e2e
def test_the_best_weights_are_the_result_and_resuming_ends_in_the_same_bytes(
    tmp_path: Path,
) -> None:
    write_texts(tmp_path)
    printed = hone(tmp_path, "run", "recipe.yaml", "--name", "first")
    stage = tmp_path / "runs/first/stages/1-pretrain"
    held_out = {
        row["step"]: row["loss"]
        for row in read_metrics(stage / "metrics.jsonl")
        if row.get("split") and row["step"]
    }
    best, last = min(held_out, key=lambda step: held_out[step]), max(held_out)
    assert last == best + 8 < 200, "four evaluations without a gain"
    assert f"the result has the weights of step {best}, the best" in printed
    assert f"ended at step {last} of 200" in printed
    kept = [read_state(path).step for path in list_checkpoints(stage / "checkpoints")]
    assert kept == sorted({best, last, *range(9, last + 1, 9)})
    result = load_file(stage / "model/model.safetensors")
    saved = load_file(stage / f"checkpoints/step_{best:06d}/model.safetensors")
    final = load_file(stage / f"checkpoints/step_{last:06d}/model.safetensors")
    assert all((result[name] == saved[name]).all() for name in result)
    assert any((result[name] != final[name]).any() for name in result)

    expected = fingerprint(tmp_path / "runs/first")
    shutil.rmtree(tmp_path / "runs")
    process = start(tmp_path, "run", "recipe.yaml", "--name", "first")
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if any(row["step"] > best for row in read_metrics(stage / "metrics.jsonl")):
            break
        time.sleep(0.002)
    kill(process)
    if process.returncode:
        hone(tmp_path, "resume", "first")
    assert fingerprint(tmp_path / "runs/first") == expected


@pytest.mark.e2e
def test_a_stage_that_has_ended_early_does_not_train_again(tmp_path: Path) -> None:
    """Killed between the last checkpoint and the result, it makes the result and nothing else."""
    write_texts(tmp_path)
    hone(tmp_path, "run", "recipe.yaml", "--name", "first")
    run = tmp_path / "runs/first"
    expected = fingerprint(run)
    (run / "DONE").unlink()
    shutil.rmtree(run / "stages/1-pretrain/model")
    hone(tmp_path, "resume", "first")
    assert fingerprint(run) == expected
