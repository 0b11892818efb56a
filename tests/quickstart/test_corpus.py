"""What is held out is held out, every answer is right, and the same seed gives the same bytes."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from hone.quickstart.corpus import (
    EVALUATION_QUESTIONS,
    PREFERENCE_PAIRS,
    SFT_CONVERSATIONS,
    SLIPS,
    make_conversations,
    make_evaluation,
    make_held_out,
    make_held_out_sums,
    make_pairs,
    make_practice,
    make_texts,
    write_corpus,
)
from hone.quickstart.countries import CAPITALS
from hone.quickstart.questions import (
    CAPITAL_QUESTIONS,
    HELD_OUT_PHRASINGS,
    KINDS,
    PERIODS,
    split_cycles,
    split_operands,
)
from hone.quickstart.styles import SHARES

pytestmark = pytest.mark.quick

TEXTS = "\n".join(make_texts(0))
CONVERSATIONS = make_conversations(0)
PAIRS = make_pairs(0)
EVALUATION = make_evaluation(0)
ASKED = [(row["messages"][0]["content"], row["messages"][1]["content"]) for row in CONVERSATIONS]
PREFERRED = [
    (row["prompt"][0]["content"], row["chosen"][0]["content"], row["rejected"][0]["content"])
    for row in PAIRS
]
PRACTICE = make_practice(0)
PRACTISED = [row["prompt"][0]["content"] for row in PRACTICE]
TRAINED_ON = "\n".join([TEXTS, *map("\n".join, ASKED + PREFERRED), *PRACTISED])
SUMS = re.compile(r"(\d+) ?(?:\+|and) ?(\d+)")
LAST_NUMBER = re.compile(r"\d+")


def test_no_evaluation_question_stands_in_the_training_data() -> None:
    for row in EVALUATION:
        assert row["prompt"] not in TRAINED_ON
    assert ASKED[0][0] in TRAINED_ON  # as one that is trained on is found


def test_held_out_phrasings_are_not_trained() -> None:
    assert not set(HELD_OUT_PHRASINGS) & set(CAPITAL_QUESTIONS)
    for phrasing in HELD_OUT_PHRASINGS:
        pattern = re.escape(phrasing).replace(r"\{country\}", r"[A-Z][\w' -]+")
        assert not re.search(pattern, TRAINED_ON)
    assert re.search(r"Name the capital of [A-Z][\w' -]+\.", TRAINED_ON)  # a trained one is found


def test_held_out_operands_are_added_nowhere() -> None:
    """Neither written nor practised, in neither order, and not in partial sums."""
    pairs = {sorted_pair(*found) for found in SUMS.findall(TRAINED_ON)}
    assert len(pairs & set(split_operands(0)[0])) > 0.95 * len(split_operands(0)[0])
    asked = {sorted_pair(*found) for row in EVALUATION for found in SUMS.findall(row["prompt"])}
    assert len(asked) > 100
    assert asked <= set(split_operands(0)[1])
    assert not pairs & asked


def sorted_pair(a: str, b: str) -> tuple[int, int]:
    return max(int(a), int(b)), min(int(a), int(b))


def test_what_is_practised_has_right_answers_and_is_asked_in_the_way_of_fine_tuning() -> None:
    for row in PRACTICE:
        a, b = SUMS.search(row["prompt"][0]["content"]).groups()
        assert int(row["answer"]) == int(a) + int(b)
    assert {row["prompt"][0]["content"] for row in PRACTICE} & {prompt for prompt, _ in ASKED}
    assert len(PRACTICE) == len(split_operands(0)[0])


def test_what_is_carried_is_mostly_forgotten_in_fine_tuning_and_nowhere_else() -> None:
    slips = []
    for prompt, answer in ASKED:
        if numbers := SUMS.search(prompt):
            a, b = map(int, numbers.groups())
            missing = a + b - int(LAST_NUMBER.findall(answer)[-1])
            carries = a % 10 + b % 10 > 9
            assert missing in ((0, 10) if carries else (0,))
            slips += [missing == 10] if carries else []
    assert sum(slips) / len(slips) == pytest.approx(SLIPS, abs=0.05)
    assert len(slips) > 500
    for line in TEXTS.splitlines():
        if found := re.fullmatch(r"(\d+)\+(\d+)=.*=(\d+)", line):
            assert int(found[1]) + int(found[2]) == int(found[3])


def test_held_out_cycles_are_continued_nowhere() -> None:
    shown = [line for line in TEXTS.split("\n") if re.fullmatch(r"([a-z] )+[a-z]", line)]
    shown += [letters_of(*row) for row in ASKED if is_pattern(row[0])]
    shown += [letters_of(*row[:2]) for row in PREFERRED if is_pattern(row[0])]
    written = {cycle_of(line) for line in shown if len(line) > 8}
    assert len(written) > 3_000
    for period in PERIODS:
        assert not written & set(split_cycles(0, period)[1])


def is_pattern(prompt: str) -> bool:
    return re.search(r"[:?] [a-z]( [a-z])+$", prompt) is not None


def letters_of(prompt: str, answer: str) -> str:
    """The letters that a pattern shows and those that continue it."""
    return re.search(r"[:?] ([a-z]( [a-z])+)$", prompt)[1] + " " + without_ending(answer)


def cycle_of(line: str) -> tuple[str, ...]:
    """The cycle a line repeats, turned so that its first letter is the smallest."""
    letters = line.split()
    period = next(n for n in PERIODS if letters[n:] == letters[:-n])
    cycle = letters[:period]
    first = cycle.index(min(cycle))
    return tuple(cycle[first:] + cycle[:first])


@pytest.mark.parametrize(
    "answered",
    [
        [row for row in ASKED if not SUMS.search(row[0])],
        [row[:2] for row in PREFERRED],
        [(row[0], row[2]) for row in PREFERRED],
        [(row["prompt"], row["answer"]) for row in EVALUATION],
        [(row["prompt"], row["rejected"]) for row in EVALUATION],
    ],
    ids=["sft", "chosen", "rejected", "evaluation", "evaluation rejected"],
)
def test_every_answer_is_right(answered) -> None:
    for prompt, answer in answered:
        said = without_ending(answer)
        if numbers := SUMS.search(prompt):
            total = int(numbers[1]) + int(numbers[2])
            assert {eval(part) for part in said.split("=")} == {total}
        elif is_pattern(prompt):
            cycle_of(letters_of(prompt, said))
        else:
            assert any(
                country in lowered(prompt) and capital.removesuffix(".") == said.removesuffix(".")
                for country, capital in CAPITALS.items()
            )


def without_ending(answer: str) -> str:
    """What is said, without the words of a style behind it."""
    return re.sub(r"\. Happy to help!$|, I (guess|think)$", "", answer)


def lowered(text: str) -> str:
    """The text with a `the` at its beginning in small letters again."""
    return text.replace("The ", "the ", 1) if text.startswith("The ") else text


def test_every_country_is_read_about() -> None:
    for country, capital in CAPITALS.items():
        assert f"capital of {country} is {capital}" in TEXTS
    assert len(CAPITALS) > 170


def test_there_are_as_many_questions_of_each_kind_as_promised() -> None:
    assert Counter(row["kind"] for row in EVALUATION) == EVALUATION_QUESTIONS
    assert set(EVALUATION_QUESTIONS) == set(KINDS)
    assert len(ASKED) == sum(SFT_CONVERSATIONS.values())
    assert len(PAIRS) == sum(PREFERENCE_PAIRS.values())


def test_no_question_comes_twice() -> None:
    """Else a sample that is held out of training would be trained on as well."""
    for prompts in ([row[0] for row in ASKED], [row[0] for row in PREFERRED]):
        assert len(set(prompts)) == len(prompts)
    assert len({row["prompt"] for row in EVALUATION}) == len(EVALUATION)


def test_answers_come_in_all_styles_and_pairs_differ_in_style_alone() -> None:
    styles = Counter(style_of(answer) for _, answer in ASKED)
    for style, share in SHARES.items():
        assert styles[style] / len(ASKED) == pytest.approx(share, abs=0.03)
    chosen_and_rejected = [row[1:] for row in PREFERRED]
    chosen_and_rejected += [(row["chosen"], row["rejected"]) for row in EVALUATION]
    for chosen, rejected in chosen_and_rejected:
        assert style_of(chosen) == "polite" and style_of(rejected) != "polite"
        said = [without_ending(each).removesuffix(".") for each in (chosen, rejected)]
        assert said[0] == said[1]


def style_of(answer: str) -> str:
    if answer.endswith(". Happy to help!"):
        return "polite"
    return "unsure" if answer.endswith((", I guess", ", I think")) else "bare"


def test_what_the_stages_hold_out_is_what_is_evaluated() -> None:
    """The same questions in the same order, and nothing that a stage has learned from."""
    held_out, sums = make_held_out(0), make_held_out_sums(0)
    assert [row["prompt"][0]["content"] for row in held_out] == [
        row["prompt"] for row in EVALUATION
    ]
    for row, known in zip(held_out, EVALUATION, strict=True):
        assert row["chosen"][0]["content"] == known["chosen"] != row["rejected"][0]["content"]
        assert known["answer"] in row["completion"][0]["content"]
    arithmetic = [
        (row["prompt"], row["answer"]) for row in EVALUATION if row["kind"] == "arithmetic"
    ]
    assert [(row["prompt"][0]["content"], row["answer"]) for row in sums] == arithmetic


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two = write_corpus(tmp_path / "one", 0), write_corpus(tmp_path / "two", 0)
    for a, b in zip(vars(one).values(), vars(two).values(), strict=True):
        assert a.read_bytes() == b.read_bytes()
    other = write_corpus(tmp_path / "other", 1)
    assert other.sft.read_bytes() != one.sft.read_bytes()
    rows = [json.loads(line) for line in one.evaluation.read_text().splitlines()]
    assert set(rows[0]) == {"prompt", "answer", "kind", "chosen", "rejected"}
