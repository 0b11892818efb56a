"""Which held-out prompts improved: the numbers, and when the check turns red."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from hone.intervals import sign_test
from hone.recipe.verify import MeasureName
from hone.runs import Run
from hone.verify.answered import scored
from hone.verify.learning import Scores, check_learning, check_stage, choose_measure, question_of
from hone.verify.subject import StageResult, Subject
from hone.verify.verdicts import FAILED, PASSED, NotApplicableError, Part
from tests.tiny import random_samples
from tests.verify.ground import read_rows, write_rows
from tests.verify.short import load_plainly, logprobs_of, mix_answers, short_run, with_settings


def part(run: Run, name: str, **settings: Any) -> Part:
    subject = with_settings(run, **settings)
    (stage,) = [stage for stage in subject.stages if stage.name == name]
    return check_stage(subject, stage)


def test_every_stage_of_the_green_run_learned(green: Run) -> None:
    subject = Subject(green)
    found = check_learning(subject)
    assert found.passed and found.threshold == 0.3
    assert [each.status for each in found.parts] == [PASSED] * 3
    for each, measure in zip(found.parts, ("loss", "loss", "reward"), strict=True):
        assert each.details["measure"] == measure and each.n == 60
        shares = [each.details[name] for name in ("improved", "worse", "equal")]
        assert sum(shares) == pytest.approx(1) and each.value == shares[0] > 0.3
        assert each.details["p"] == sign_test(round(60 * shares[0]), round(60 * shares[1])) < 0.05
    pairs = scored(subject, subject.stages[2]).pairs
    assert found.parts[2].value == sum(after > before for before, after in pairs) / 60


def test_prompts_improve_by_the_losses_of_one_sample_at_a_time(green: Run) -> None:
    subject = Subject(green)
    samples = list(subject.material(subject.stages[0]).held_out[:12])
    models = [load_plainly(subject.sources[place]) for place in (0, 1)]
    losses = [[-np.mean(logprobs_of(model, s)) for s in samples] for model in models]
    found = part(green, "1-sft", samples=12)
    better = sum(after < before for before, after in zip(*losses, strict=True))
    assert found.n == 12 and found.value == better / 12
    means = [-found.details[name]["mean"] for name in ("score_before", "score_after")]
    assert means == pytest.approx([np.mean(each) for each in losses], abs=1e-4)


def test_prompts_improve_by_margins_of_pairs(green: Run) -> None:
    subject = Subject(green)
    samples = list(subject.material(subject.stages[1]).held_out[:10])
    models = [load_plainly(subject.sources[place]) for place in (1, 2)]
    margins = [
        [sum(logprobs_of(m, s, 1)) - sum(logprobs_of(m, s, 2)) for s in samples] for m in models
    ]
    found = part(green, "2-dpo", samples=10, measure="preference")
    assert found.details["measure"] == "preference"
    assert found.value == np.mean(np.array(margins[1]) > np.array(margins[0]))
    means = [found.details[name]["mean"] for name in ("score_before", "score_after")]
    assert means == pytest.approx([np.mean(each) for each in margins], abs=1e-4)


@pytest.mark.parametrize("measure", ["exact", "contains"])
def test_prompts_improve_by_greedy_answers(green: Run, measure: MeasureName) -> None:
    """Drawn by transformers' own `generate`, one prompt after the other."""
    subject = Subject(green)
    stage = subject.stages[0]
    tokenizer = subject.result(stage).renderer.tokenizer
    samples = list(subject.material(stage).held_out[:10])
    marks = []
    for place in (0, 1):
        model, of_model = cast(Any, load_plainly(subject.sources[place])), []
        for sample in samples:
            prompt, expected = question_of(sample)
            drawn = model.generate(
                torch.tensor([prompt]),
                do_sample=False,
                max_new_tokens=8,
                eos_token_id=subject.result(stage).rendering.end_token_ids,
                pad_token_id=tokenizer.pad_token_id,
            )[0, len(prompt) :]
            answer, wanted = (
                tokenizer.decode(ids, skip_special_tokens=True) for ids in (drawn, expected)
            )
            of_model.append(wanted == answer if measure == "exact" else wanted.strip(".") in answer)
        marks.append(of_model)
    found = part(green, "1-sft", samples=10, completion_tokens=8, measure=measure)
    assert found.details["measure"] == measure and found.n == 10
    assert [found.details[f"score_{when}"]["mean"] for when in ("before", "after")] == [
        np.mean(each) for each in marks
    ]
    assert found.value == np.mean(np.array(marks[1], float) > np.array(marks[0], float)) > 0
    assert found.details["full_marks_before"] == np.mean(marks[0])


def test_a_measure_without_a_meaning_gives_way_to_the_stages_own(green: Run) -> None:
    found = part(green, "2-dpo", samples=8, measure="exact")
    assert found.details["measure"] == "loss" and found.status == PASSED
    assert "the measure `exact` has no meaning for this stage" in found.reason


@pytest.mark.quick
@pytest.mark.parametrize(
    ("method", "wished", "expected"),
    [
        ("sft", None, "loss"),
        ("sft", "numeric", "numeric"),
        ("sft", "preference", "loss"),
        ("pretrain", "exact", "loss"),
        ("dpo", "preference", "preference"),
        ("dpo", "loss", "loss"),
        ("dpo", "reward", "loss"),
        ("grpo", None, "reward"),
        ("grpo", "loss", "reward"),
    ],
)
def test_each_stage_has_its_measures(method: str, wished: MeasureName, expected: str) -> None:
    stage = StageResult(0, method, None, Path("1"))  # type: ignore[arg-type]
    measure, note = choose_measure(wished, stage, asked())
    assert measure == expected and bool(note) == (wished not in (None, expected))


def asked() -> list[Any]:
    """Samples with a prompt of three tokens."""
    samples = random_samples(2)
    for sample in samples:
        sample.segments[0].trained[:3], sample.segments[0].trained[3] = False, True
    return samples


@pytest.mark.quick
def test_text_without_prompts_has_no_answers_to_measure() -> None:
    samples = random_samples(2)
    for sample in samples:
        sample.segments[0].trained[1] = True
    stage = StageResult(0, "sft", None, Path("1"))  # type: ignore[arg-type]
    assert choose_measure("exact", stage, samples)[0] == "loss"


@pytest.mark.quick
def test_what_is_as_it_was_has_not_improved() -> None:
    scores = Scores(np.array([1.0, 1, 1, 0]), np.array([1.0, 1.00001, 0.5, 1]), noise=1e-4)
    assert (scores.improved, scores.worse) == (1, 1)


# --- What turns it red ----------------------------------------------------------------------------


def test_a_learning_rate_of_zero_turns_it_red(workshop: Path) -> None:
    found = check_learning(Subject(short_run(workshop, "still", learning_rate=0, steps=2)))
    assert not found.passed and found.value == 0
    assert found.parts[0].details["equal"] == 1 and found.parts[0].details["p"] == 1


def test_shuffled_labels_turn_it_red(workshop: Path, green: Run) -> None:
    """From a model that knows answers and their form, answers of other questions are learnt."""
    mix_answers(workshop)
    known = str(Subject(green).stages[0].model)
    found = check_learning(Subject(short_run(workshop, "shuffled", model=known, steps=16)))
    assert not found.passed and found.parts[0].details["worse"] > 0.5


def test_held_out_rows_copied_into_training_turn_it_red(workshop: Path) -> None:
    """Case and white space make no difference; the green run is the same without them."""
    held = read_rows(workshop / "sft-held.jsonl")
    copies = [held[4], held[9]]
    asked = copies[1]["messages"][0]
    asked["content"] = f"  {asked['content'].upper()}"
    other = {"role": "assistant", "content": "no idea."}
    copies[1] = {"messages": [asked, other]}
    write_rows(workshop / "sft.jsonl", [*read_rows(workshop / "sft.jsonl"), *copies])
    (found,) = check_learning(Subject(short_run(workshop, "copied", steps=24))).parts
    assert found.status == FAILED and found.value > 0.3 and found.details["p"] < 0.05
    assert found.details["leaked"] == 2
    first, second = found.details["leaked_examples"]
    assert first["held_out"].endswith("sft-held.jsonl:5")
    assert first["training"].endswith("sft.jsonl:301") and first["stage"] == "1-sft"
    assert found.details["leaked_in"] == {"1-sft": 2}
    assert second["text"] == f"user {asked['content'].lower().strip()} assistant"
    assert "2 of 60 held-out prompts stand word for word in the training data" in found.reason


def test_a_stage_that_holds_nothing_out_cannot_be_checked(workshop: Path) -> None:
    run = short_run(workshop, "all", evaluation=None, steps=1)
    with pytest.raises(NotApplicableError, match="nothing was held out"):
        check_learning(Subject(run))
