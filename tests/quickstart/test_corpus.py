"""What is held out is held out, every answer is right, and the same seed gives the same bytes."""

import json
import re
from pathlib import Path

import pytest

from hone.quickstart.corpus import (
    CAPITAL_QUESTIONS,
    EVALUATION_QUESTIONS,
    HELD_OUT_PHRASINGS,
    KINDS,
    PERIODS,
    make_evaluation_questions,
    make_sft_questions,
    make_texts,
    split_cycles,
    split_operands,
    write_corpus,
)
from hone.quickstart.countries import CAPITALS

pytestmark = pytest.mark.quick

TEXTS = "\n".join(make_texts(0))
SFT = make_sft_questions(0)
EVALUATION = make_evaluation_questions(0)


def test_no_evaluation_question_stands_in_the_training_data() -> None:
    asked = {question.prompt for question in SFT}
    for question in EVALUATION:
        assert question.prompt not in asked
        assert question.prompt not in TEXTS


def test_held_out_phrasings_are_not_trained() -> None:
    assert not set(HELD_OUT_PHRASINGS) & set(CAPITAL_QUESTIONS)
    for phrasing in HELD_OUT_PHRASINGS:
        pattern = re.escape(phrasing).replace(r"\{country\}", r"[A-Z][\w' -]+")
        assert not re.search(pattern, TEXTS)
    assert re.search(r"Name the capital of [A-Z][\w' -]+\.", TEXTS)  # as a trained one is found


def test_held_out_operands_are_added_nowhere() -> None:
    written = re.findall(r"(\d+)\+(\d+)", TEXTS + str(SFT))  # partial sums too
    written += re.findall(r"Add (\d+) and (\d+)", TEXTS + str(SFT))
    assert len(written) > 30_000
    pairs = {(max(int(a), int(b)), min(int(a), int(b))) for a, b in written}
    assert not pairs & set(split_operands(0)[1])
    assert len(pairs & set(split_operands(0)[0])) > 0.95 * len(split_operands(0)[0])


def test_held_out_cycles_are_continued_nowhere() -> None:
    shown = [line for line in TEXTS.split("\n") if re.fullmatch(r"([a-z] )+[a-z]", line)]
    shown += [q.prompt.partition(": ")[2] + " " + q.answer for q in SFT if q.kind == "patterns"]
    written = {cycle_of(line) for line in shown}
    assert len(written) > 5_000
    for period in PERIODS:
        assert not written & set(split_cycles(0, period)[1])


def cycle_of(line: str) -> tuple[str, ...]:
    """The cycle a line repeats, turned so that its first letter is the smallest."""
    letters = [word for word in line.split() if len(word) == 1]
    period = next(n for n in PERIODS if letters[n:] == letters[:-n])
    cycle = letters[:period]
    first = cycle.index(min(cycle))
    return tuple(cycle[first:] + cycle[:first])


@pytest.mark.parametrize("questions", [SFT, EVALUATION], ids=["sft", "evaluation"])
def test_every_answer_is_right(questions) -> None:
    for question in questions:
        numbers = [int(number) for number in re.findall(r"\d+", question.prompt)]
        if question.kind == "arithmetic":
            assert sum(numbers) == int(question.answer.rpartition("=")[2])
            assert all(eval(part) == sum(numbers) for part in question.answer.split("="))
        elif question.kind == "capitals":
            country, capital = re.fullmatch(
                r"The capital of (.+) is (.+)\.", question.answer
            ).groups()
            assert country in lowered(question.prompt)
            assert CAPITALS[country] == capital
        else:
            cycle_of(question.prompt.partition(": ")[2] + " " + question.answer)


def lowered(text: str) -> str:
    """The text with a `the` at its beginning in small letters again."""
    return text.replace("The ", "the ", 1) if text.startswith("The ") else text


def test_every_country_is_read_about() -> None:
    for country, capital in CAPITALS.items():
        assert f"capital of {country} is {capital}" in TEXTS
    assert len(CAPITALS) > 170


def test_there_are_as_many_questions_of_each_kind_as_promised() -> None:
    for kind in KINDS:
        found = [question for question in EVALUATION if question.kind == kind]
        assert len({question.prompt for question in found}) == EVALUATION_QUESTIONS[kind]


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two = write_corpus(tmp_path / "one", 0), write_corpus(tmp_path / "two", 0)
    for a, b in zip(vars(one).values(), vars(two).values(), strict=True):
        assert a.read_bytes() == b.read_bytes()
    other = write_corpus(tmp_path / "other", 1)
    assert other.sft.read_bytes() != one.sft.read_bytes()
    rows = [json.loads(line) for line in one.evaluation.read_text().splitlines()]
    assert set(rows[0]) == {"prompt", "answer", "kind"}


def test_no_question_of_fine_tuning_comes_twice() -> None:
    """Else a sample that is held out of training would be trained on as well."""
    assert len({question.prompt for question in SFT}) == len(SFT)
