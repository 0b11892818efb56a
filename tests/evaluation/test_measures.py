"""Measures of texts: what is known by hand, and second computations."""

import random
import string
from itertools import combinations

import pytest

from hone.environments import make_environment
from hone.errors import UserError
from hone.evaluation.measures import MEASURES, best, find_measure, make_regex, rouge_l, rouge_n
from hone.recipe.rewards import Answers
from hone.records import Task

pytestmark = pytest.mark.quick

TEXT = "the cat sat on a mat and an old dog_2 saw it. It was: 3,5 o'clock; Zürich — naïve"
WORDS = TEXT.split()


@pytest.mark.parametrize(
    ("name", "answer", "expected", "worth"),
    [
        ("exact", " New \n York\t", "New York", 1),
        ("exact", "new york", "New York", 0),
        ("exact", "New York.", "New York", 0),
        ("exact", "NewYork", "New York", 0),
        ("exact", "", " ", 1),
        ("contains", "It is new  york, I think", "New York.", 1),
        ("contains", "It is 185.", "85", 0),
        ("contains", "It is 85.", "85", 1),
        ("contains", "anything", "", 0),
        ("contains", "C++ (of course)", "c++", 1),
        ("numeric", "3 + 4 = 7.0", "7", 1),
        ("numeric", "7 and not 8", "7", 0),
        ("numeric", "seven", "7", 0),
        ("numeric", "seven", "seven", 0),
        ("numeric", "It costs 1,000 francs", "#### 1000", 1),
        ("f1", "The cat!", "a cat", 1),
        ("f1", "the cat sat", "cat", 2 / 3),
        ("f1", "cat cat", "cat", 2 / 3),
        ("f1", "dog", "cat", 0),
        ("f1", "the", "a", 1),
        ("f1", "", "cat", 0),
        # Lin 2004, section 3: of two candidates with the same pairs of words, the one in order.
        ("rouge_l", "police kill the gunman", "police killed the gunman", 3 / 4),
        ("rouge_l", "the gunman kill police", "police killed the gunman", 1 / 2),
        ("rouge_2", "police kill the gunman", "police killed the gunman", 1 / 3),
        ("rouge_2", "the gunman kill police", "police killed the gunman", 1 / 3),
        ("rouge_1", "the gunman, police", "police killed the gunman", 6 / 7),
        ("rouge_1", "", "police", 0),
        ("rouge_l", "", "", 0),
        ("rouge_2", "police", "police", 0),
        ("rouge_1", "ÜBER Zürich", "über Zürich", 1),
    ],
)
def test_what_answers_are_worth(name: str, answer: str, expected: str, worth: float) -> None:
    assert MEASURES[name](answer, expected) == pytest.approx(worth, abs=1e-12)


def test_every_measure_is_between_0_and_1_and_full_for_the_expected_text_itself() -> None:
    draw = random.Random(0)
    for _ in range(200):
        answer, expected = (" ".join(draw.choices(WORDS, k=draw.randint(4, 9))) for _ in "ab")
        for name, measure in MEASURES.items():
            assert 0 <= measure(answer, expected) <= 1, (name, answer, expected)
            has_number = any(character in string.digits for character in expected)
            if name != "numeric" or has_number:
                assert measure(expected, expected) == 1, (name, expected)


def test_rouge_is_that_of_the_slow_computation() -> None:
    """Every subsequence is tried, and runs of words are crossed out one at a time."""
    draw = random.Random(1)
    for _ in range(100):
        said, wanted = ([draw.choice("abcd") for _ in range(draw.randint(1, 8))] for _ in "xy")
        texts = " ".join(said), " ".join(wanted)
        longest = max(
            length
            for length in range(len(said) + 1)
            for chosen in combinations(said, length)
            if chosen in set(combinations(wanted, length))
        )
        assert rouge_l(*texts) == pytest.approx(by_division(longest, len(said), len(wanted)))
        for n in (1, 2, 3):
            runs, left = ([x[i : i + n] for i in range(len(x) - n + 1)] for x in (said, wanted))
            total, shared = len(left), 0
            for run in runs:
                if run in left:
                    left.remove(run)
                    shared += 1
            assert rouge_n(*texts, n) == pytest.approx(by_division(shared, len(runs), total))


def test_rouge_is_that_of_the_package_that_the_field_uses() -> None:
    """It knows no letters but those of ASCII, so only such texts are compared."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
    names = {"rouge1": "rouge_1", "rouge2": "rouge_2", "rougeL": "rouge_l"}
    draw = random.Random(4)
    words = [word for word in WORDS if word.isascii()]
    for _ in range(300):
        answer, expected = (" ".join(draw.choices(words, k=draw.randint(0, 12))) for _ in "ab")
        for theirs, found in scorer.score(expected, answer).items():
            ours = MEASURES[names[theirs]](answer, expected)
            assert ours == pytest.approx(found.fmeasure, abs=1e-12), (theirs, answer, expected)


def by_division(shared: int, said: int, wanted: int) -> float:
    """The F-measure from precision and recall."""
    if not shared:
        return 0.0
    precision, recall = shared / said, shared / wanted
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize("name", ["contains", "numeric"])
def test_measures_say_what_the_environment_says(name: str) -> None:
    settings = Answers(data={"path": "unused.jsonl"}, match=name)
    environment = make_environment(settings)
    draw = random.Random(2)
    seen = set()
    for _ in range(300):
        expected = " ".join([*draw.choices(WORDS, k=draw.randint(0, 1)), str(draw.randint(1, 3))])
        answer = " ".join(draw.choices([*WORDS, expected, "1", "2."], k=draw.randint(1, 4)))
        reward = environment.score(Task(0, "?", {"answer": expected}), answer)["correct"]
        assert MEASURES[name](answer, expected) == reward, (answer, expected)
        seen.add(reward)
    assert seen == {0.0, 1.0}


def test_a_pattern_is_found_or_says_something() -> None:
    found = make_regex(r"####\s*\d+")
    assert (found("so\n#### 12", "whatever"), found("#### x", "whatever")) == (1, 0)
    said = make_regex(r"####\s*(?P<answer>.+)")
    assert (said("so\n#### 12 \n", "12"), said("#### 13", "12"), said("12", "12")) == (1, 0, 0)
    optional = make_regex(r"x(?P<answer>\d)?")
    assert (optional("x", "1"), optional("x1", "1")) == (0, 1)


def test_what_is_no_measure_is_named_with_the_nearest() -> None:
    assert find_measure("f1") is MEASURES["f1"]
    assert find_measure("regex", "a+")("baa", "") == 1
    with pytest.raises(UserError, match=r"no measure `exakt`.*did you mean `exact`"):
        find_measure("exakt")
    with pytest.raises(UserError, match=r"`regex` needs a pattern") as fault:
        find_measure("regex")
    assert "--pattern" in (fault.value.hint or "")
    with pytest.raises(UserError, match=r"`\(` is no regular expression: missing \)"):
        find_measure("regex", "(")


def test_the_best_of_several_right_answers_counts() -> None:
    assert best(MEASURES["f1"], "red car", ["blue", "a red bus", "the red car"]) == 1
    assert best(MEASURES["exact"], "red", ["blue", "green"]) == 0
