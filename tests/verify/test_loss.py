"""Held-out loss of a run's results: the numbers, and when the check turns red."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from hone.device import Precision
from hone.metrics import read_metrics
from hone.models import join_model
from hone.recipe.data import Data
from hone.recipe.preference import LOSS_FACTS, Dpo
from hone.runs import Run
from hone.sampling import Artifact
from hone.verify.loss import _pair_losses, _unpaired_losses, check_loss, stage_losses
from hone.verify.subject import Subject
from hone.verify.verdicts import NOT_APPLICABLE, PASSED, NotApplicableError
from tests.preferences import random_judged, random_pairs
from tests.tiny import make_model
from tests.verify.ground import read_rows, write_rows
from tests.verify.short import (
    load_plainly,
    logprobs_of,
    mix_answers,
    part_of,
    run_stage,
    short_run,
    with_settings,
)


def test_both_losses_are_those_of_one_sample_at_a_time(green: Run) -> None:
    """By transformers and PEFT alone; and what training saw in its last evaluation."""
    subject = Subject(green)
    found = check_loss(with_settings(green, samples=12))
    for name, before, after in (("1-sft", 0, 1), ("2-dpo", 1, 2)):
        part = part_of(found.parts, name)
        stage = subject.stages[before]
        samples = list(subject.material(stage).held_out[:12])
        models = [load_plainly(subject.sources[place]) for place in (before, after)]
        if name == "1-sft":
            told = [[p for s in samples for p in logprobs_of(model, s)] for model in models]
            expected = [-sum(each) / len(each) for each in told]
        else:
            margins = [
                [sum(logprobs_of(m, s, 1)) - sum(logprobs_of(m, s, 2)) for s in samples]
                for m in models
            ]
            gains = [after - before for before, after in zip(*margins, strict=True)]
            beta = subject.recipe.stages[1].settings.parameters_of("sigmoid")["beta"]
            losses = [math.log(1 + math.exp(-beta * gain)) for gain in gains]
            expected = [math.log(2), sum(losses) / len(losses)]
        assert [part.details[each] for each in ("before", "after")] == pytest.approx(
            expected, abs=1e-4
        )
        assert part.value == pytest.approx(1 - expected[1] / expected[0], abs=1e-4)
        assert part.details["low"] < part.value < part.details["high"] and part.n == 12


def test_the_loss_is_what_training_saw_at_its_end(green: Run) -> None:
    found = check_loss(Subject(green))
    for name in ("1-sft", "2-dpo"):
        rows = read_metrics(green.path / "stages" / name / "metrics.jsonl")
        seen = [row["loss"] for row in rows if row.get("split") == "evaluation"]
        details = part_of(found.parts, name).details
        assert [details["before"], details["after"]] == pytest.approx([seen[0], seen[-1]], abs=1e-3)


def test_a_stage_that_learned_passes_and_one_of_rewards_has_no_loss(green: Run) -> None:
    found = check_loss(with_settings(green, thresholds={"loss": 0.04}))
    assert found.passed and found.threshold == 0.04 and found.n == 60
    assert part_of(found.parts, "1-sft").status == PASSED
    rewarded = part_of(found.parts, "3-grpo")
    assert rewarded.status == NOT_APPLICABLE and "no measure of quality" in rewarded.reason
    strict = check_loss(with_settings(green, thresholds={"loss": 0.999}))
    assert not strict.passed and strict.reason.startswith("1-sft: held-out loss")


def test_a_learning_rate_of_zero_turns_it_red(workshop: Path) -> None:
    still = short_run(workshop, "still", learning_rate=0, steps=2)
    found = check_loss(Subject(still))
    assert not found.passed and found.value == pytest.approx(0, abs=1e-6)


def test_shuffled_labels_turn_it_red(workshop: Path, green: Run) -> None:
    """From a model that knows answers and their form, answers of other questions are learnt."""
    mix_answers(workshop)
    known = str(Subject(green).stages[0].model)
    found = check_loss(Subject(short_run(workshop, "shuffled", model=known, steps=16)))
    assert not found.passed and found.value is not None and found.value < 0


def test_a_stage_that_holds_nothing_out_says_what_to_write(workshop: Path) -> None:
    run = short_run(workshop, "all", evaluation=None, steps=1)
    with pytest.raises(NotApplicableError, match=r"put `evaluation: \{share: 0.05\}` into"):
        check_loss(Subject(run))


# --- Preferences, against sums by hand ------------------------------------------------------------


def artifacts() -> tuple[Artifact, Artifact]:
    """Two different models."""
    fp32 = Precision(torch.float32, torch.float32, "for the test")
    models = [join_model(make_model("llama", seed=seed), fp32) for seed in (0, 1)]
    for model in models:
        model.causal.set_attn_implementation("sdpa")
    start, result = (Artifact(model, None, None) for model in models)  # type: ignore[arg-type]
    return start, result


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -30 else math.exp(x)


@pytest.mark.quick
@pytest.mark.parametrize("name", [name for name, facts in LOSS_FACTS.items() if not facts.unpaired])
def test_every_preference_loss_begins_where_the_policy_is_its_reference(name: str) -> None:
    """Losses on ratios do not depend on the model there; of others the mean is that of the sums."""
    start, _ = artifacts()
    samples = random_pairs(5)
    settings = Dpo(data=Data(path="unused"), loss=name)  # type: ignore[arg-type]
    before, after = _pair_losses(settings, samples, start, start)
    assert before == pytest.approx(after) and len(before) == 5
    if settings.needs_reference:
        assert before == pytest.approx(np.full(5, before[0]), abs=1e-5)


@pytest.mark.quick
def test_losses_of_pairs_by_hand() -> None:
    start, result = artifacts()
    samples = random_pairs(5)
    settings = Dpo(data=Data(path="unused"), loss={"sigmoid": 1.0, "sft": 0.5}, beta=0.01)
    before, after = _pair_losses(settings, samples, start, result)
    tokens = sum(len(sample.segments[1].tokens) for sample in samples)
    for n, sample in enumerate(samples):
        (c0, r0), (c1, r1) = (
            [sum(logprobs_of(each.module, sample, side)) for side in (1, 2)]
            for each in (start, result)
        )
        gain = (c1 - c0) - (r1 - r0)
        assert before[n] == pytest.approx(math.log(2) - 0.5 * c0 * 5 / tokens, rel=1e-4)
        expected = -math.log(sigmoid(0.01 * gain)) - 0.5 * c1 * 5 / tokens
        assert after[n] == pytest.approx(expected, rel=1e-4)


@pytest.mark.quick
def test_losses_of_single_answers_by_hand() -> None:
    """KTO's reference point: each prompt with the completion of the next sample."""
    start, result = artifacts()
    samples = random_judged(4)
    settings = Dpo(
        data=Data(path="unused"), loss="kto", beta=0.005, desirable_weight=2.0, max_tokens=100
    )
    before, after = _unpaired_losses(settings, samples, start, result)

    def gain(prompt: int, answer: int) -> float:
        mixed = type(samples[0])(0, (samples[prompt].segments[0], samples[answer].segments[1]))
        told = [sum(logprobs_of(each.module, mixed, 1)) for each in (start, result)]
        return told[1] - told[0]

    point = max(0.0, sum(gain(n, (n + 1) % 4) for n in range(4)) / 4)
    for n in range(4):
        wanted = n % 3 > 0
        moved = gain(n, n) - point
        weight, sign = (2.0, 1) if wanted else (1.0, -1)
        assert before[n] == pytest.approx(weight / 2)
        assert after[n] == pytest.approx(weight * (1 - sigmoid(sign * 0.005 * moved)), rel=1e-3)


def test_a_stage_of_single_answers_is_checked_by_its_own_loss(workshop: Path) -> None:
    """Through the whole way: recipe, run, results."""
    for part in ("", "-held"):
        rows = [
            {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
            for n, row in enumerate(read_rows(workshop / f"dpo{part}.jsonl"))
            for side in (("chosen", "rejected")[n % 2],)
        ]
        write_rows(workshop / f"judged{part}.jsonl", rows)
    kto = {
        "data": "judged.jsonl",
        "loss": "kto",
        "precision": "fp32",
        "batch": {"samples": 8},
        "steps": 3,
        "learning_rate": 0.002,
        "evaluation": {"data": "judged-held.jsonl", "every": 3, "samples": 20},
    }
    run = run_stage(workshop, "kto", {"dpo": kto})
    subject = Subject(run)
    (stage,) = subject.stages
    losses = stage_losses(subject, stage)
    rows = read_metrics(stage.folder / "metrics.jsonl")
    seen = [row["loss"] for row in rows if row.get("split") == "evaluation"]
    assert [losses.before.mean(), losses.after.mean()] == pytest.approx(
        [seen[0], seen[-1]], abs=1e-4
    )
    assert part_of(check_loss(subject).parts, "1-dpo").details["loss"] == "kto"
