"""Rollouts on disk: an exact round trip, whole files and partial ones, and the facts of them."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hone.errors import UserError
from hone.recorded import (
    Rollout,
    append_scored,
    list_rollout_files,
    mark_stopped,
    partial_path,
    read_rollouts,
    read_scored,
    rollouts_path,
    summarise,
    write_rollouts,
)

pytestmark = pytest.mark.quick


def make(group: int, sample: int, total: float | None, **given: object) -> Rollout:
    """A rollout of three tokens with one reward."""
    rollout = Rollout(
        step=1,
        group=group,
        sample=sample,
        task=group + 10,
        place=f"rows.jsonl:{group}",
        prompt="2 + 3?",
        text="5\n",
        finish="end",
        prompt_ids=[4, 5],
        ids=[20, 21, 2],
        logprobs=np.array([-0.1, -2.5, -1e-7], dtype=np.float32),
        rewards={"correct": total},
        total=total,
    )
    return replace(rollout, **given)


def test_every_float_comes_back_as_it_was(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    bits = draw.integers(0, 2**32, 20_000, dtype=np.uint32).view(np.float32)
    logprobs = np.concatenate([bits[np.isfinite(bits)], np.float32([-0.0, -1e-45, -3.4e38])])
    path = rollouts_path(tmp_path, "step", 7)
    before = make(0, 0, 0.1 + 0.2, logprobs=logprobs, reference=logprobs[::-1], extra={"a": [1]})
    write_rollouts(path, [before])
    (after,) = read_rollouts(path) or []
    assert after.logprobs.dtype == np.float32 and after.logprobs.tobytes() == logprobs.tobytes()
    assert after.reference is not None
    assert after.reference.tobytes() == logprobs[::-1].tobytes()
    assert replace(after, logprobs=logprobs, reference=None) == replace(before, reference=None)


def test_a_file_is_whole_or_partial(tmp_path: Path) -> None:
    path = rollouts_path(tmp_path, "step", 1)
    assert read_rollouts(path) is None and read_scored(path) == {}
    append_scored(path, [make(1, 0, 1.0), make(1, 1, 0.0)])
    append_scored(path, [make(0, 0, 1.0)])
    with partial_path(path).open("a") as file:
        file.write('{"schema": 1, "step"')  # torn by a kill
    assert {group: len(each) for group, each in read_scored(path).items()} == {1: 2, 0: 1}
    append_scored(path, [make(2, 0, 1.0)])
    assert set(read_scored(path)) == {0, 1, 2}
    assert read_rollouts(path) is None
    write_rollouts(path, [make(0, 0, 1.0)])
    assert not partial_path(path).exists() and len(read_rollouts(path) or []) == 1


def test_groups_for_whose_failures_a_stage_has_stopped_are_scored_again(tmp_path: Path) -> None:
    path = rollouts_path(tmp_path, "step", 1)
    append_scored(path, [make(0, 0, None, failure="it hung"), make(0, 1, 1.0)])
    append_scored(path, [make(1, 0, 1.0)])
    assert set(read_scored(path)) == {0, 1}
    mark_stopped(path)
    assert set(read_scored(path)) == {1}
    append_scored(path, [make(0, 0, None, failure="it raised")])
    assert [rollout.failure for rollout in read_scored(path)[0]] == ["it raised"]


def test_a_file_that_was_changed_is_told(tmp_path: Path) -> None:
    path = rollouts_path(tmp_path, "step", 1)
    write_rollouts(path, [make(0, 0, 1.0)])
    table = json.loads(path.read_text())
    del table["ids"]
    path.write_text(json.dumps(table) + "\n")
    with pytest.raises(UserError, match=r"step_000001.jsonl` is no file of rollouts: KeyError"):
        read_rollouts(path)


def test_the_files_of_a_run_in_order(tmp_path: Path) -> None:
    stages = [tmp_path / "2-grpo", tmp_path / "10-grpo"]
    for stage in stages:
        for kind, step in (("step", 12), ("step", 3), ("evaluation", 3)):
            write_rollouts(rollouts_path(stage, kind, step), [make(0, 0, 1.0)])
    append_scored(rollouts_path(stages[1], "step", 13), [make(0, 0, 1.0)])
    mark_stopped(rollouts_path(stages[1], "step", 13))
    (stages[0] / "rollouts" / ".step_000013.jsonl.new").write_text("{")
    found = list_rollout_files(stages)
    assert [(file.stage, file.kind, file.step) for file in found] == [
        (stage, kind, step)
        for stage in ("2-grpo", "10-grpo")
        for kind, step in (
            ("evaluation", 3),
            ("step", 3),
            ("step", 12),
            *([("step", 13)] if stage == "10-grpo" else []),
        )
    ]
    assert [file.whole for file in found] == [True] * 6 + [False]
    assert all(len(file.read()) == 1 for file in found)


def test_what_the_metrics_say_by_hand() -> None:
    rollouts = [
        make(0, 0, 1.0),
        make(0, 1, 0.0, finish="length", ids=[1, 2, 3, 4, 5]),
        make(1, 0, 1.0, metrics={"depth": [1.0, 3.0]}),
        make(1, 1, 1.0, rewards={"correct": 1.0, "style": 0.5}),
        make(2, 0, None, rewards={"correct": None}, failure="it raised"),
        make(2, 1, 4.0, rewards={"correct": 0.0, "style": 0.25}, left_out="fewer than two"),
    ]
    row = summarise(rollouts, {"correct": 1.0})
    totals = [1.0, 0.0, 1.0, 1.0, 4.0]
    mean = sum(totals) / 5
    assert row["reward"] == pytest.approx(mean)
    spread = math.sqrt(sum((each - mean) ** 2 for each in totals) / 5)
    assert row["reward_spread"] == pytest.approx(spread)
    assert row["reward/correct"] == pytest.approx(0.6)  # 1 0 1 1 0
    assert row["reward/correct/at_top"] == pytest.approx(0.6)
    assert row["reward/correct/at_bottom"] == pytest.approx(0.4)
    assert row["reward/style"] == pytest.approx(0.375)  # where it applies
    assert row["reward/style/at_top"] == row["reward/style/at_bottom"] == 0.5
    assert row["no_spread_share"] == 0.5  # of the two groups with two survivors
    assert row["failed_share"] == pytest.approx(1 / 6)
    assert row["used_share"] == pytest.approx(4 / 6)
    assert row["truncated_share"] == pytest.approx(1 / 6)
    assert row["completion_tokens"] == pytest.approx(20 / 6) and row["completion_tokens_max"] == 5
    assert row["metric/depth"] == 2.0


def test_a_reward_that_is_never_at_its_limits() -> None:
    rollouts = [make(0, n, 0.5, rewards={"share": 0.5}) for n in range(3)]
    row = summarise(rollouts, {"share": 1.0})
    assert row["reward/share/at_top"] == row["reward/share/at_bottom"] == 0.0
    assert row["no_spread_share"] == 1.0


def test_nothing_survives() -> None:
    failed = [make(0, n, None, rewards={"correct": None}, failure="it hung") for n in range(2)]
    row = summarise(failed, {"correct": 1.0})
    assert row["failed_share"] == 1.0
    assert not {"reward", "reward/correct", "no_spread_share"} & set(row)
