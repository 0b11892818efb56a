"""What a run forgot: the numbers, and when the check turns red."""

from pathlib import Path

import pytest

from hone.runs import Run
from hone.verify.forgetting import check_forgetting, wanted_part
from hone.verify.verdicts import FAILED, NOT_APPLICABLE, PASSED, NotApplicableError
from tests.preferences import random_judged, random_pairs
from tests.tiny import random_samples
from tests.verify.short import (
    load_plainly,
    logprobs_of,
    part_of,
    run_stage,
    short_run,
    with_settings,
)


def test_losses_and_accuracies_are_those_of_one_sample_at_a_time(green: Run) -> None:
    """Of what the first stages held out, under their results and the final one."""
    subject = with_settings(green, samples=8)
    found = check_forgetting(subject)
    assert [part.of for part in found.parts] == ["base", "1-sft held out", "2-dpo held out"]
    for index, segment in ((0, 0), (1, 1)):
        samples = list(subject.material(subject.stages[index]).held_out[:8])
        part = found.parts[index + 1]
        models = [load_plainly(str(subject.stages[n].model)) for n in (index, 2)]
        told = [[p for s in samples for p in logprobs_of(m, s, segment)] for m in models]
        before, after = (-sum(each) / len(each) for each in told)
        assert part.details["loss_before"] == pytest.approx(before, abs=1e-4)
        assert part.details["loss_after"] == pytest.approx(after, abs=1e-4)
        assert part.value == pytest.approx(after - before, abs=2e-4)
        assert part.details["low"] < part.value < part.details["high"]
        assert part.details["tokens"] == len(told[0]) and part.n == 8


def test_a_stage_that_destroys_the_base_turns_it_red(workshop: Path) -> None:
    """A gentle one is its green twin; the samples that lost most are shown, the worst one first."""
    sets = {"forgetting": [str(workshop / "talk-held.jsonl")]}
    (gentle,) = check_forgetting(
        with_settings(short_run(workshop, "gentle", steps=3, learning_rate=1e-4), **sets)
    ).parts
    assert gentle.status == PASSED and gentle.value < 0.1 and gentle.n == 40
    (broken,) = check_forgetting(
        with_settings(
            short_run(workshop, "broken", steps=12, learning_rate=0.05, adapter="full"), **sets
        )
    ).parts
    assert broken.status == FAILED and broken.value > broken.threshold == 1.0
    assert broken.details["accuracy_after"] < broken.details["accuracy_before"]
    assert broken.details["loss_before"] == gentle.details["loss_before"]
    worst = broken.details["worst"]
    rises = [each["after"] - each["before"] for each in worst]
    assert len(worst) == 3 and rises == sorted(rises, reverse=True) and rises[0] > broken.value
    assert all("user" in each["text"] for each in worst)


def test_a_new_model_has_nothing_to_forget(workshop: Path) -> None:
    new = {
        "architecture": "llama",
        "config": {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
        },
        "tokenizer": {"train_on": "text.jsonl", "vocabulary": 300},
    }
    run = run_stage(workshop, "new", {"pretrain": {"data": "text.jsonl", "steps": 1}}, new)
    sets = with_settings(run, forgetting=[str(workshop / "text.jsonl")])
    with pytest.raises(NotApplicableError, match="has nothing to forget"):
        check_forgetting(sets)


def test_without_sets_it_says_what_to_write(green: Run) -> None:
    part = part_of(check_forgetting(with_settings(green, samples=2)).parts, "base")
    assert part.status == NOT_APPLICABLE and "put `verify: {forgetting: [" in part.reason


@pytest.mark.quick
def test_of_preferences_only_wanted_answers_are_known() -> None:
    for pair in random_pairs(3):
        known = wanted_part(pair)
        assert known is not None and known.segments == pair.segments[:2]
    labels = [bool(sample.segments[1].constants["label"].any()) for sample in random_judged(6)]
    assert [wanted_part(each) is not None for each in random_judged(6)] == labels
    (text,) = random_samples(1)
    assert wanted_part(text) is text
