"""Which held-out samples stand in the training data, by a few of them in the open."""

from itertools import pairwise

import pytest

from hone.runs import Run
from hone.verify.overlap import (
    Overlap,
    Text,
    compare,
    find_overlap,
    find_seen,
    grams_of,
    read_texts,
)
from hone.verify.subject import Subject
from tests.verify.ground import read_rows

QUESTIONS = ["what is two and two", "where is france", "who are you"]


def texts(*prompts: str, answer: str = "yes") -> list[Text]:
    return [Text(prompt, f"{prompt} {answer}", f"place {n}") for n, prompt in enumerate(prompts)]


@pytest.mark.quick
def test_prompts_are_looked_for_in_the_training_data_of_every_stage() -> None:
    first, second = texts("a", QUESTIONS[1], "b"), texts("c", "d", QUESTIONS[0], QUESTIONS[1])
    held_out = texts(*QUESTIONS, answer="no")
    seen = {"1-sft": find_seen(held_out, first), "2-dpo": find_seen(held_out, second)}
    assert seen["2-dpo"].prompts == {QUESTIONS[0]: "place 2", QUESTIONS[1]: "place 3"}
    found = compare(held_out, seen)
    assert found.leaked == {"1-sft": 1, "2-dpo": 1} and found.count == 2 and found.total == 3
    assert found.examples == [
        {"text": QUESTIONS[0], "held_out": "place 0", "training": "place 2", "stage": "2-dpo"},
        {"text": QUESTIONS[1], "held_out": "place 1", "training": "place 1", "stage": "1-sft"},
    ]


@pytest.mark.quick
def test_a_prompt_of_most_samples_is_a_frame_and_the_whole_text_counts() -> None:
    frame = [*texts("be kind", "be kind", "who are you"), *texts("be kind", answer="so it is")]
    held_out = [*texts("be kind", answer="not so"), *texts("be kind", answer="so it is")]
    assert compare(held_out, {"1-sft": find_seen(held_out, frame)}).leaked == {"1-sft": 1}
    asked = texts("who are you", answer="not you")
    assert compare(asked, {"1-sft": find_seen(asked, frame)}).leaked == {"1-sft": 1}


@pytest.mark.quick
def test_text_without_a_prompt_counts_as_a_whole() -> None:
    training = [Text("", "so it is", "x"), Text("", "so it was", "y"), Text("", "and so on", "z")]
    held_out = [Text("", "so it was", "h"), Text("", "so it will be", "i")]
    found = compare(held_out, {"1-pretrain": find_seen(held_out, training)})
    assert found.leaked == {"1-pretrain": 1} and found.examples[0]["training"] == "y"
    task = [Text("be kind", "", "t")]  # a task has nothing but its prompt
    frames = {"1-grpo": find_seen(task, [*task, *task, Text("who", "", "u")])}
    assert compare(task, frames).leaked == {}


@pytest.mark.quick
def test_runs_of_words_are_counted_once_each() -> None:
    words = [f"w{n}" for n in range(12)]
    text = " ".join(words)
    assert len(list(grams_of(text))) == 5 and not list(grams_of(" ".join(words[:7])))
    assert all(a[1:] == b[:-1] for a, b in pairwise(grams_of(text)))
    training = [Text("", " ".join(words[2:10]) + " and more", "x")] * 2
    held_out = [Text(text, "", "y")]
    seen = {"1-sft": find_seen(held_out, training), "2-sft": find_seen(held_out, training)}
    assert compare(held_out, seen).grams == pytest.approx(1 / 5)
    assert compare([Text("too short", "", "y")], seen).grams is None


def test_texts_are_what_the_rows_say(green: Run) -> None:
    subject = Subject(green)
    for stage, part, name in (
        (0, "training", "sft"),
        (1, "held_out", "dpo-held"),
        (2, "training", "grpo"),
    ):
        rows = read_rows(green.path.parents[1] / f"{name}.jsonl")
        found = list(read_texts(subject, subject.stages[stage], part))
        asked = [(row.get("prompt") or row["messages"])[0]["content"].lower() for row in rows]
        assert sorted(text.prompt for text in found) == sorted(
            f"user {each} assistant" for each in asked
        )
        assert all(text.place.startswith(str(green.path.parents[1])) for text in found)
        for text in found:
            assert text.whole.startswith(text.prompt) or (name == "grpo" and not text.whole)


def test_nothing_of_the_ground_overlaps(green: Run) -> None:
    subject = Subject(green)
    for stage in subject.stages:
        assert find_overlap(subject, stage) == Overlap({}, 60, [], 0.0)
