"""The check `rewards`: figures against a second computation, and each part made to fail."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hone.runs import Run
from hone.verify.answered import Answer, Scored, scored
from hone.verify.examine import CHECKS, make_check
from hone.verify.rewards import compare, judge_failures, judge_format, judge_variety
from hone.verify.subject import Subject
from hone.verify.verdicts import Part, Verdict
from tests.verify.ground import copy_of, read_rows, variant


@pytest.fixture(scope="module")
def subject(green: Run) -> Subject:
    return Subject(green)


def check(subject: Subject) -> Verdict:
    return make_check("rewards", CHECKS["rewards"], subject)


def statuses(verdict: Verdict) -> dict[str, str]:
    return {part.of.removeprefix("3-grpo "): part.status for part in verdict.parts}


def test_answers_and_scores_are_what_a_second_computation_gives(
    subject: Subject, ground: Path
) -> None:
    stage = subject.stages[2]
    found = scored(subject, stage)
    assert scored(subject, stage) is found  # computed once
    rows = read_rows(ground / "grpo-held.jsonl")
    table: dict[str, Any] = {}
    exec((ground / "reward.py").read_text(), table)
    for artifact, answers in (
        (subject.start(stage), found.before),
        (subject.result(stage), found.after),
    ):
        texts = artifact.generate_text([row["prompt"] for row in rows], max_new_tokens=16)
        assert [answer.text.strip() for answer in answers] == texts
        assert not any(answer.truncated for answer in answers)
        for row, answer in zip(rows, answers, strict=True):
            said = [[{"role": "assistant", "content": answer.text}]]
            rewards = {
                "agrees": table["agrees"](said, word=[row["word"]])[0],
                "format": table["format"](said)[0],
            }
            assert answer.rewards == rewards and answer.score == sum(rewards.values())


def test_every_part_passes_where_all_is_well(subject: Subject) -> None:
    verdict = check(subject)
    assert statuses(verdict) == {
        "reward": "passed",
        "format": "passed",
        "held-out failures": "passed",
        "constant answers": "passed",
        "recorded failures": "passed",
    }
    found = scored(subject, subject.stages[2])
    gain = np.mean([new.score for new in found.after]) - np.mean(
        [old.score for old in found.before]
    )
    assert verdict.value == pytest.approx(gain) and verdict.n == 60
    of = {part.of: part for part in verdict.parts}
    assert of["3-grpo recorded failures"].n == 10 * 64 + 2 * 60
    most = max(np.unique([each.text for each in found.after], return_counts=True)[1])
    assert of["3-grpo constant answers"].value == most / 60


def test_a_result_that_is_its_start_has_gained_nothing(green: Run, tmp_path: Path) -> None:
    copy = copy_of(green, tmp_path, samples=20)
    shutil.rmtree(copy.path / "stages/3-grpo/model")
    shutil.copytree(copy.path / "stages/2-dpo/model", copy.path / "stages/3-grpo/model")
    verdict = check(Subject(copy))
    assert [name for name, status in statuses(verdict).items() if status == "failed"] == ["reward"]
    assert verdict.value == 0.0 and verdict.n == 20


def test_failures_of_training_are_counted(green: Run, tmp_path: Path) -> None:
    copy = copy_of(green, tmp_path, samples=4)
    path = copy.path / "stages/3-grpo/rollouts/step_000003.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    failed = [row | {"failure": "the judge was away", "total": None} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in failed))
    (part,) = [part for part in check(Subject(copy)).parts if "recorded" in part.of]
    assert part.value == 64 / 760 and part.status == "passed"  # at most a tenth
    assert "64 times: the judge was away" in part.reason
    strict = copy_of(copy, tmp_path / "strict", samples=4, thresholds={"failures": 0.05})
    assert statuses(check(Subject(strict)))["recorded failures"] == "failed"


def test_rewards_that_fail_now_are_failures(workshop: Path) -> None:
    """The person's reward function has broken since."""
    run = variant(workshop, "one", sft__steps=1, dpo__steps=1, grpo__steps=1, verify={"samples": 8})
    text = (workshop / "reward.py").read_text()
    broken = text.replace(
        "    return [float(f", "    raise RuntimeError('gone')\n    return [float(f"
    )
    assert broken != text
    (workshop / "reward.py").write_text(broken)
    verdict = check(Subject(run))
    found = statuses(verdict)
    assert found["held-out failures"] == found["reward"] == "failed"
    assert "not one of 8 answers could be scored" in verdict.reason
    assert found["recorded failures"] == "passed"


def test_where_nothing_is_rewarded_it_does_not_apply(workshop: Path) -> None:
    text = (workshop / "recipe.yaml").read_text()
    head, rest = text.split("  - dpo:")
    (workshop / "recipe.yaml").write_text(head + "verify: {}\n")
    verdict = check(Subject(variant(workshop, "sft", sft__steps=1)))
    assert (verdict.status, verdict.reason) == ("not_applicable", "the recipe has no `grpo` stage")
    held_out = "      evaluation: {data: grpo-held.jsonl, every: 10}\n"
    (workshop / "recipe.yaml").write_text(
        "model: base\nthreads: 1\nstages:\n  - grpo"
        + rest.split("  - grpo")[1].replace(held_out, "")
    )
    verdict = check(Subject(variant(workshop, "unseen", grpo__steps=1)))
    assert "no questions were held out" in verdict.parts[0].reason
    assert [part.status for part in verdict.parts] == ["not_applicable", "passed"]


# --- The parts, by themselves ---------------------------------------------------------------------


def said(text: str, score: float | None = 0.0, truncated: bool = False, **rewards: Any) -> Answer:
    failure = "no" if score is None else None
    return Answer(text, [1], score, rewards, failure, truncated)


def asked(after: list[Answer], golds: list[str | None]) -> Scored:
    from hone.records import Task
    from hone.rollouts import Question

    questions = [Question(Task(n, f"{n}?", gold=gold), [n]) for n, gold in enumerate(golds)]
    return Scored(questions, [said("")] * len(after), after)


def judged(part: Part) -> tuple[str, float | None, float | None, int | None]:
    return part.status, part.value, part.threshold, part.n


@pytest.mark.quick
def test_one_answer_to_everything_fails() -> None:
    other = [said(text) for text in "ababacadae"]
    unknown = asked(other, [None] * 10)
    assert judged(judge_variety("", unknown, 0.5)) == ("passed", 0.5, 0.5, 10)
    assert judge_variety("", unknown, 0.4).status == "failed"
    same = asked([said(f" yes{' ' * n}") for n in range(10)], [None] * 10)
    assert judged(judge_variety("", same, 0.5)) == ("failed", 1.0, 0.5, 10)


@pytest.mark.quick
def test_as_many_answers_may_be_the_same_as_right_ones() -> None:
    golds: list[str | None] = [*["yes"] * 8, "no", "no"]
    right = asked([said(str(gold)) for gold in golds], golds)
    assert judged(judge_variety("", right, 0.5)) == ("passed", 0.8, 0.8, 10)
    constant = asked([said("yes")] * 10, golds)
    assert judge_variety("", constant, 0.5).status == "failed"
    alike = asked([said("yes")] * 3, ["yes"] * 3)
    assert judge_variety("", alike, 0.5).status == "not_applicable"
    assert judge_variety("", asked([said("yes")], [None]), 0.5).status == "not_applicable"


@pytest.mark.quick
def test_a_question_that_stands_twice_counts_once() -> None:
    found = asked([said("a"), said("a"), said("b"), said("c")], [None] * 4)
    twice = Scored([found.questions[0], *found.questions[:3]], found.before, found.after)
    assert judged(judge_variety("", twice, 0.5)) == ("passed", 1 / 3, 0.5, 3)


@pytest.mark.quick
def test_the_reward_format_says_what_is_well_formed() -> None:
    answers = [said("", format=mark) for mark in (1.0, 0.5, 0.0, None)]
    assert judge_format("", answers, 1.0, 0.5).value == 0.25
    assert judge_format("", answers, None, 0.5).value == 0.5
    assert judge_format("", answers, 1.0, 0.5).status == "failed"
    assert judge_format("", answers, None, 0.5).status == "passed"
    cut = [said("", truncated=n < 3) for n in range(4)]
    assert judged(judge_format("", cut, None, 0.5)) == ("failed", 0.25, 0.5, 4)


@pytest.mark.quick
def test_a_gain_has_to_be_beyond_chance() -> None:
    def gain(old: list[float], new: list[float | None]) -> Part:
        found = asked([said("", score) for score in new], [None] * len(new))
        return compare("", Scored(found.questions, [said("", score) for score in old], found.after))

    assert gain([0.0] * 20, [1.0] * 10 + [0.0] * 10).status == "passed"
    assert gain([0.0] * 20, [1.0] + [0.0] * 19).status == "failed"
    assert gain([0.0] * 4, [1.0, 1.0, None, None]).n == 2
    assert judged(gain([0.0] * 2, [None, None])) == ("failed", None, 0.0, 0)
    assert gain([1.0] * 20, [1.0] * 10 + [0.0] * 10).value == -0.5


@pytest.mark.quick
def test_failures_are_counted_and_the_commonest_shown() -> None:
    part = judge_failures("", ["a", None, "b", "b", *[None] * 16], 0.2)
    assert judged(part) == ("passed", 0.15, 0.2, 20) and part.reason.endswith("2 times: b")
    assert judge_failures("", ["a", None], 0.4).status == "failed"
