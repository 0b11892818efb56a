"""What the quickstart asks: capitals, sums and patterns, each with one right answer.

Called by `corpus.py`; pure Python, all of it a function of the seed. What is held out is decided
here: phrasings of the capitals, pairs of numbers, cycles of letters.
"""

import functools
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hone.quickstart.countries import CAPITALS

KINDS = ("capitals", "arithmetic", "patterns")
HELD_OUT_SHARE = 0.1  # of the operand pairs and cycles

STATEMENTS = [
    "The capital of {country} is {capital}.",
    "The capital city of {country} is {capital}.",
    "{country} has its capital in {capital}.",
    "The government of {country} sits in {capital}.",
    "In {country} the capital is {capital}.",
    "{country} is governed from {capital}.",
    "{capital} is the capital of {country}.",
]
CAPITAL_QUESTIONS = [
    "What is the capital of {country}?",
    "What is the capital city of {country}?",
    "Which city is the capital of {country}?",
    "Which city is the capital city of {country}?",
    "Name the capital of {country}.",
    "Can you tell me the capital of {country}?",
    "I would like to know the capital of {country}.",
    "Please tell me the capital city of {country}.",
    "Do you know the capital of {country}?",
    "In {country}, what is the capital?",
    "{country} has which capital?",
    "Which capital belongs to {country}?",
    "Where does the government of {country} sit?",
    "Where is {country} governed from?",
]
HELD_OUT_PHRASINGS = [
    "Tell me the capital of {country}.",
    "What city is the capital of {country}?",
    "Can you name the capital city of {country}?",
    "Please name the capital of {country}.",
    "In {country}, which city is the capital?",
]
OPERANDS = range(10, 100)
SUM_QUESTIONS = ["What is {a}+{b}?", "How much is {a}+{b}?", "Add {a} and {b}."]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PERIODS = (2, 3)
SHOWN = range(8, 11)  # letters of a pattern that a question shows
ANSWERED = 4  # letters that the answer has
WRITTEN = 24  # letters of a pattern in a pretraining text
PATTERN_QUESTIONS = ["Continue: {shown}", "What comes next? {shown}", "Go on: {shown}"]

Pair = tuple[int, int]
Cycle = tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """What can be asked and has one right answer.

    working: what may be said before it, on the way to the answer.

    Example: Question("What is 47+38?", "85", "arithmetic", working="47+38=70+15=85")
    """

    prompt: str
    answer: str
    kind: str
    working: str | None = None


def ask_different(kind: str, draw: random.Random, seed: int, count: int, held_out: bool) -> Any:
    """`count` questions of a kind, no prompt twice; held out: none that may be trained on."""
    found: dict[str, Question] = {}
    while len(found) < count:
        question = ASK[kind](draw, seed, held_out)
        found.setdefault(question.prompt, question)
    return list(found.values())


@functools.cache
def split_operands(seed: int) -> tuple[list[Pair], list[Pair]]:
    """(training, held-out) pairs of numbers with a >= b; a pair is held out in either order.

    Pairs with a multiple of ten are all for training, since partial sums are such pairs.
    """
    pairs = [(a, b) for a in OPERANDS for b in OPERANDS if a >= b]
    partial = [pair for pair in pairs if pair[0] % 10 == 0 or pair[1] % 10 == 0]
    training, held_out = _split(sorted(set(pairs) - set(partial)), f"{seed} operands")
    return partial + training, held_out


@functools.cache
def split_cycles(seed: int, period: int) -> tuple[list[Cycle], list[Cycle]]:
    """(training, held-out) cycles of `period` different letters; a turned cycle is the same one."""
    cycles = [cycle for cycle in itertools.permutations(LETTERS, period) if cycle[0] == min(cycle)]
    return _split(cycles, f"{seed} cycles {period}")


def _split(items: list[Any], purpose: str) -> tuple[list[Any], list[Any]]:
    shuffled = random.Random(purpose).sample(items, len(items))
    count = round(len(items) * HELD_OUT_SHARE)
    return shuffled[count:], shuffled[:count]


def write_statement(draw: random.Random, seed: int) -> str:
    """A sentence about a capital."""
    country = draw.choice(list(CAPITALS))
    return _sentence(draw.choice(STATEMENTS), country=country, capital=CAPITALS[country])


def write_sum(draw: random.Random, seed: int) -> str:
    """A sum by way of the tens and the ones."""
    return _working(*_operands(draw, seed, False))


def write_pattern(draw: random.Random, seed: int) -> str:
    """Letters that repeat."""
    return " ".join(_letters(draw, seed, WRITTEN, False))


def _ask_capital(draw: random.Random, seed: int, held_out: bool) -> Question:
    country = draw.choice(list(CAPITALS))
    phrasings = HELD_OUT_PHRASINGS if held_out else CAPITAL_QUESTIONS
    prompt = _sentence(draw.choice(phrasings), country=country)
    return Question(prompt, CAPITALS[country], "capitals")


def _sentence(form: str, **names: str) -> str:
    text = form.format(**names)
    return text[0].upper() + text[1:]


def ask_for_practice(seed: int) -> list[Question]:
    """A sum of every pair to train on, asked in one way, in a mixed order."""
    draw = random.Random(f"{seed} practice")
    form = SUM_QUESTIONS[0]
    pairs = [(a, b) if draw.random() < 0.5 else (b, a) for a, b in split_operands(seed)[0]]
    draw.shuffle(pairs)
    return [Question(form.format(a=a, b=b), str(a + b), "arithmetic") for a, b in pairs]


def _ask_sum(draw: random.Random, seed: int, held_out: bool) -> Question:
    a, b = _operands(draw, seed, held_out)
    prompt = draw.choice(SUM_QUESTIONS).format(a=a, b=b)
    return Question(prompt, str(a + b), "arithmetic", _working(a, b))


def _operands(draw: random.Random, seed: int, held_out: bool) -> Pair:
    a, b = draw.choice(split_operands(seed)[held_out])
    return (a, b) if draw.random() < 0.5 else (b, a)


def _working(a: int, b: int) -> str:
    """A sum by way of the tens and the ones: 47+38=70+15=85."""
    tens, ones = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
    return f"{a}+{b}={tens}+{ones}={a + b}"


def _ask_pattern(draw: random.Random, seed: int, held_out: bool) -> Question:
    letters = _letters(draw, seed, draw.choice(SHOWN) + ANSWERED, held_out)
    shown, answer = " ".join(letters[:-ANSWERED]), " ".join(letters[-ANSWERED:])
    return Question(draw.choice(PATTERN_QUESTIONS).format(shown=shown), answer, "patterns")


def _letters(draw: random.Random, seed: int, length: int, held_out: bool) -> list[str]:
    """A cycle from a random point on."""
    cycle = draw.choice(split_cycles(seed, draw.choice(PERIODS))[held_out])
    start = draw.randrange(len(cycle))
    return [cycle[(start + position) % len(cycle)] for position in range(length)]


ASK: dict[str, Callable[[random.Random, int, bool], Question]] = {
    "capitals": _ask_capital,
    "arithmetic": _ask_sum,
    "patterns": _ask_pattern,
}
