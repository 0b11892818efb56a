"""The benchmark: its arithmetic on made-up outcomes, its lengths, and a tiny run as a whole."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.measure import Outcome, Request, Step
from benchmarks.report import (
    check_same_work,
    compute_curve_distance,
    compute_ratios,
    count_flops,
    make_lines,
    rotations,
    summarise,
)
from benchmarks.reward import even
from benchmarks.workload import LONGEST, ROWS, SHAPES, Workload, describe_lengths, draw_lengths

quick = pytest.mark.quick
ROOT = Path(__file__).parent.parent


def outcome(name="hone", number=1, seconds=1.0, losses=(3.0, 2.0, 1.0), memory=50) -> Outcome:
    """Steps of 8 samples and 80 tokens; the first one takes ten times as long."""
    steps = [
        Step(seconds * (10 if n == 0 else 1), samples=8, tokens=80, trained_tokens=40, loss=loss)
        for n, loss in enumerate(losses)
    ]
    pass_s = sum(step.seconds for step in steps)
    return Outcome(name, number, 2.0, 12.0, pass_s, 100, 100 + memory, steps=steps)


@quick
def test_rates_leave_the_first_step_out_and_the_pass_has_it():
    found = summarise([outcome(seconds=0.5)])
    assert found["samples_per_s"] == pytest.approx(16)
    assert found["tokens_per_s"] == pytest.approx(160)
    assert found["step_s"] == pytest.approx(0.5)
    assert found["pass_s"] == pytest.approx(6)
    assert found["trainer_to_first_step_s"] == pytest.approx(10)
    assert found["peak_memory_bytes"] == 50


@quick
def test_what_is_computed_before_is_charged_to_the_samples():
    plain = summarise([outcome()])
    found = summarise([replace(outcome(), before_s=48.0, before_samples=96)])
    assert plain["samples_per_s"] == pytest.approx(8)  # 16 in 2 s
    assert found["samples_per_s"] == pytest.approx(1.6)  # half a second more for each
    assert found["step_s"] == pytest.approx(5)


@quick
def test_medians_over_rounds_ignore_an_outlier():
    found = summarise([outcome(seconds=s) for s in (1.0, 100.0, 1.0)])
    assert found["samples_per_s"] == pytest.approx(8)


@quick
def test_other_work_is_refused():
    same = outcome("trl")
    assert check_same_work([outcome(), same])["samples"] == 24
    with pytest.raises(ValueError, match='"trl" did other work in round 1'):
        check_same_work([outcome(), outcome("trl", losses=(1.0, 1.0))])


@quick
def test_sampled_tokens_may_differ_a_little_and_samples_never():
    one, other = outcome(), outcome("trl")
    other.steps[0] = replace(other.steps[0], trained_tokens=41)
    assert check_same_work([one, other], tolerance=0.01)["trained_tokens"] == 120
    with pytest.raises(ValueError, match="other work"):
        check_same_work([one, other], tolerance=0.001)
    other.steps[0] = replace(other.steps[0], samples=9)
    with pytest.raises(ValueError, match="other work"):
        check_same_work([one, other], tolerance=0.5)


@quick
def test_the_ratio_is_against_the_fastest_rival():
    summaries = {
        "hone": summarise([outcome(memory=30)]),
        "trl": summarise([outcome(seconds=4.0, memory=60)]),
        "trl length-grouped": summarise([outcome(seconds=2.0, memory=120)]),
    }
    found = compute_ratios(summaries, list(summaries))
    assert found["trl_best"] == "trl length-grouped"
    assert found["samples_per_s"] == pytest.approx(2)
    assert found["memory"] == pytest.approx(0.25)
    assert found["memory_against_leanest"] == pytest.approx(0.5)
    assert compute_ratios({"hone": summaries["hone"]}, ["hone"]) == {}


@quick
def test_the_curve_is_outside_when_one_step_is():
    exact = [outcome(losses=(3.0, 2.0, 1.0))]
    near = compute_curve_distance([outcome(losses=(3.0, 2.01, 1.0))], exact)
    assert near["steps"] == pytest.approx(0.005)
    assert "(within 1%" in make_lines({}, near)[0]
    far = compute_curve_distance([outcome(losses=(3.0, 2.0, 1.02))], exact)
    assert far["steps"] == pytest.approx(0.02)
    assert "(OUTSIDE 1%" in make_lines({}, far)[0]


@quick
def test_every_round_begins_with_another_contender():
    assert rotations(["a", "b", "c"], 3) == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]]


@quick
def test_operations_are_counted_by_weight_and_token():
    workload = Workload(SHAPES["tiny"], 8, 8)
    layers = 2 * (4 * 64 * 64 + 3 * 64 * 176)
    assert count_flops(workload, 10, 3) == 4 * (layers * 10 + 64 * 512 * 3)


@quick
@pytest.mark.parametrize("count", [24, 320])
@pytest.mark.parametrize("method", ROWS)
def test_lengths_have_their_medians_and_fit(method, count):
    rows = ROWS[method]
    prompts, completions = draw_lengths(count, 0, rows)
    assert np.median(prompts) == rows.prompt
    assert completions.shape == (len(rows.columns), count)
    for lengths in completions:
        assert np.median(lengths) == rows.completion
        assert (prompts + lengths).max() <= LONGEST
        assert (prompts + lengths).max() > 2 * np.median(prompts + lengths)


@quick
def test_a_pair_counts_its_prompt_once():
    found = describe_lengths(Workload(SHAPES["tiny"], 160, 8, "dpo"))
    prompts, completions = draw_lengths(160, 0, ROWS["dpo"])
    assert found["tokens"] == prompts.sum() + completions[0].sum() + completions[1].sum()
    assert found["trained_tokens"] == completions.sum()


@quick
def test_requests_come_back_as_they_were(tmp_path):
    request = Request("hone", 1, tmp_path, tmp_path / "s", "cpu", 1, {"precision": "fp32"}, None)
    request.write(tmp_path / "request.json")
    assert Request.read(tmp_path / "request.json") == request


@quick
def test_the_default_model_has_about_40_million_weights():
    assert 38e6 < SHAPES["40m"].count_weights() < 44e6
    assert 0.45e9 < SHAPES["0.5b"].count_weights() < 0.55e9


def bench(method: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"benchmarks.{method}", "--threads", "1", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def run_quick(method: str, rival: str, path: Path) -> dict[str, Any]:
    """The tiny benchmark of Hone and one rival from end to end; what it has written."""
    wanted = [part for name in ("hone", rival) for part in ("--only", name)]
    done = bench(method, "--quick", "--json", str(path), *wanted)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(path.read_text())
    assert f"times the {RATES[method]}" in done.stdout
    assert set(document["summary"]) == {"hone", rival}
    assert document["ratios"]["trl_best"] == rival
    for found in document["summary"].values():
        assert found["samples_per_s"] > 0
        assert found["peak_memory_bytes"] > 0
        assert found["to_first_step_s"] > found["to_trainer_s"] > 0
    return document


RATES = {"sft": "samples a second", "dpo": "pairs a second", "grpo": "steps an hour"}


@pytest.mark.e2e
def test_a_tiny_benchmark_from_end_to_end(tmp_path):
    document = run_quick("sft", "trl length-grouped", tmp_path / "results.json")
    assert document["counts"]["samples"] == document["workload"]["samples"] == 24
    assert document["counts"]["tokens"] == document["lengths"]["tokens"]
    assert document["counts"]["trained_tokens"] == document["lengths"]["trained_tokens"]
    losses = [outcome["steps"][0]["loss"] for outcome in document["rounds"]]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)  # other samples, the same model


@pytest.mark.e2e
def test_the_same_of_pairs_with_the_references_that_are_computed_before(tmp_path):
    document = run_quick("dpo", "trl precomputed, length-grouped", tmp_path / "results.json")
    assert document["counts"]["tokens"] == document["lengths"]["tokens"]
    assert document["counts"]["trained_tokens"] == document["lengths"]["trained_tokens"]
    for outcome in document["rounds"]:
        assert outcome["before_s"] > 0
        assert outcome["before_samples"] == 24
        assert outcome["steps"][0]["loss"] == pytest.approx(math.log(2), rel=0.01)


@pytest.mark.e2e
def test_the_same_of_rewards_where_each_side_samples(tmp_path):
    document = run_quick("grpo", "trl 8x4", tmp_path / "results.json")
    assert document["counts"]["samples"] == 12
    for outcome in document["rounds"]:
        sampled = sum(step["trained_tokens"] for step in outcome["steps"])
        assert 0.9 * 12 * 8 * 64 < sampled <= 12 * 8 * 64
        assert sum(step["tokens"] for step in outcome["steps"]) == pytest.approx(
            document["lengths"]["tokens"] + sampled
        )


@pytest.mark.e2e
def test_an_unknown_contender_is_named_with_those_there_are():
    done = bench("dpo", "--only", "nobody")
    assert done.returncode == 2
    assert '"nobody"' in done.stderr
    assert "trl precomputed, length-grouped" in done.stderr


@quick
def test_the_reward_is_the_share_of_even_words():
    assert even(["w1 w2 w30", "", "<end>"], prompts=[]) == pytest.approx([2 / 3, 0, 0])
