"""The quickstart's data, made from a seed: texts to pretrain on, conversations to fine-tune on,
questions to evaluate.

Called by `story.py`; pure Python. Three kinds of content, each with one right answer:

- capitals: every fact stands in the pretraining texts; the evaluation asks with phrasings that
occur nowhere else. - arithmetic: sums of two numbers of two digits, by way of the tens and the
ones. The pairs of the evaluation occur nowhere else, in either order. - patterns: letters that
repeat. The cycles of the evaluation occur nowhere else.

Some pretraining texts ask and answer in plain text. Others are chats in which the assistant repeats
what it is told: they give the chat tokens a meaning, which adapters beside frozen embeddings
cannot. The texts teach nothing else.
"""

import functools
import itertools
import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from hone.files import write_whole
from hone.quickstart.countries import CAPITALS

KINDS = ("capitals", "arithmetic", "patterns")
PRETRAIN_TEXTS = {
    "capitals": 4500,
    "arithmetic": 3000,
    "patterns": 2500,
    "dialogues": 11000,
    "echoes": 1500,
}
LINES_PER_TEXT = {"capitals": 5, "arithmetic": 4, "patterns": 3, "dialogues": 3, "echoes": 2}
SFT_CONVERSATIONS = {"capitals": 2000, "arithmetic": 2000, "patterns": 2000}
EVALUATION_QUESTIONS = {"capitals": 100, "arithmetic": 100, "patterns": 100}
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
PERIODS = (2, 3, 4)
SHOWN = range(8, 11)  # letters of a pattern that a question shows
ANSWERED = 4  # letters that the answer has
WRITTEN = 24  # letters of a pattern in a pretraining text
PATTERN_QUESTIONS = ["Continue: {shown}", "What comes next? {shown}", "Go on: {shown}"]

Pair = tuple[int, int]
Cycle = tuple[str, ...]


@dataclass(frozen=True)
class CorpusFiles:
    """Where `write_corpus` put what it made."""

    pretrain: Path
    sft: Path
    evaluation: Path
    recipe: Path


@dataclass(frozen=True)
class Question:
    """What can be asked and has one right answer.

    Example: Question(prompt="What is 14 + 5?", answer="19", kind="arithmetic")
    """

    prompt: str
    answer: str
    kind: str


def write_corpus(folder: Path, seed: int) -> CorpusFiles:
    """Write pretrain.jsonl, sft.jsonl, evaluation.jsonl and recipe.yaml: the same bytes for the
    same seed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = ("pretrain.jsonl", "sft.jsonl", "evaluation.jsonl", "recipe.yaml")
    files = CorpusFiles(*(folder / name for name in names))
    _write_rows(files.pretrain, ({"text": text} for text in make_texts(seed)))
    _write_rows(files.sft, map(_conversation, make_sft_questions(seed)))
    _write_rows(files.evaluation, map(vars, make_evaluation_questions(seed)))
    recipe = resources.files("hone.quickstart").joinpath("recipe.yaml")
    write_whole(files.recipe, recipe.read_bytes())
    return files


def make_texts(seed: int) -> list[str]:
    """The pretraining texts: lines of one kind each, in a mixed order."""
    lines = {
        "capitals": _statement,
        "arithmetic": _sum,
        "patterns": _pattern,
        "dialogues": _dialogue,
        "echoes": _echo,
    }
    texts = []
    for kind, line in lines.items():
        draw = random.Random(f"{seed} pretrain {kind}")
        for _ in range(PRETRAIN_TEXTS[kind]):
            texts.append("\n".join(line(draw, seed) for _ in range(LINES_PER_TEXT[kind])))
    random.Random(f"{seed} pretrain order").shuffle(texts)
    return texts


def make_sft_questions(seed: int) -> list[Question]:
    """The questions of fine-tuning, all different, none of which is asked in the evaluation, in a
    mixed order.
    """
    questions = []
    for kind, ask in ASK.items():
        draw = random.Random(f"{seed} sft {kind}")
        questions += _different(functools.partial(ask, draw, seed, False), SFT_CONVERSATIONS[kind])
    random.Random(f"{seed} sft order").shuffle(questions)
    return questions


def make_evaluation_questions(seed: int) -> list[Question]:
    """The held-out questions, all different, kind after kind."""
    questions: list[Question] = []
    for kind, ask in ASK.items():
        draw = random.Random(f"{seed} evaluation {kind}")
        questions += _different(
            functools.partial(ask, draw, seed, True), EVALUATION_QUESTIONS[kind]
        )
    return questions


def _different(ask: Callable[[], Question], count: int) -> list[Question]:
    """`count` questions that `ask` draws, no prompt twice."""
    found: dict[str, Question] = {}
    while len(found) < count:
        question = ask()
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


def _statement(draw: random.Random, seed: int) -> str:
    country = draw.choice(list(CAPITALS))
    return _sentence(draw.choice(STATEMENTS), country=country, capital=CAPITALS[country])


def _ask_capital(draw: random.Random, seed: int, held_out: bool) -> Question:
    country = draw.choice(list(CAPITALS))
    phrasings = HELD_OUT_PHRASINGS if held_out else CAPITAL_QUESTIONS
    answer = _sentence(STATEMENTS[0], country=country, capital=CAPITALS[country])
    return Question(_sentence(draw.choice(phrasings), country=country), answer, "capitals")


def _sentence(form: str, **names: str) -> str:
    text = form.format(**names)
    return text[0].upper() + text[1:]


def _sum(draw: random.Random, seed: int) -> str:
    return _write_sum(*_operands(draw, seed, False))


def _ask_sum(draw: random.Random, seed: int, held_out: bool) -> Question:
    a, b = _operands(draw, seed, held_out)
    prompt = draw.choice(SUM_QUESTIONS).format(a=a, b=b)
    return Question(prompt, _write_sum(a, b), "arithmetic")


def _operands(draw: random.Random, seed: int, held_out: bool) -> Pair:
    a, b = draw.choice(split_operands(seed)[held_out])
    return (a, b) if draw.random() < 0.5 else (b, a)


def _write_sum(a: int, b: int) -> str:
    """A sum by way of the tens and the ones: 47+38=70+15=85."""
    tens, ones = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
    return f"{a}+{b}={tens}+{ones}={a + b}"


def _pattern(draw: random.Random, seed: int) -> str:
    return " ".join(_letters(draw, seed, WRITTEN, False))


def _ask_pattern(draw: random.Random, seed: int, held_out: bool) -> Question:
    letters = _letters(draw, seed, draw.choice(SHOWN) + ANSWERED, held_out)
    shown, answer = " ".join(letters[:-ANSWERED]), " ".join(letters[-ANSWERED:])
    return Question(draw.choice(PATTERN_QUESTIONS).format(shown=shown), answer, "patterns")


def _letters(draw: random.Random, seed: int, length: int, held_out: bool) -> list[str]:
    """A cycle from a random point on."""
    cycle = draw.choice(split_cycles(seed, draw.choice(PERIODS))[held_out])
    start = draw.randrange(len(cycle))
    return [cycle[(start + position) % len(cycle)] for position in range(length)]


def _dialogue(draw: random.Random, seed: int) -> str:
    question = draw.choice(list(ASK.values()))(draw, seed, False)
    return f"Question:\n{question.prompt}\nAnswer:\n{question.answer}"


def _echo(draw: random.Random, seed: int) -> str:
    letters = " ".join(draw.choice(LETTERS) for _ in range(draw.randint(2, 10)))
    thing = draw.choice([draw.choice(list(CAPITALS)), str(draw.randrange(200)), letters])
    asked = draw.choice(["Say: {thing}", "Repeat: {thing}", "What did I say? {thing}"])
    return (
        f"<|im_start|>user\n{asked.format(thing=thing)}<|im_end|>\n"
        f"<|im_start|>assistant\n{thing}<|im_end|>"
    )


ASK: dict[str, Callable[[random.Random, int, bool], Question]] = {
    "capitals": _ask_capital,
    "arithmetic": _ask_sum,
    "patterns": _ask_pattern,
}


def _conversation(question: Question) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": question.prompt},
            {"role": "assistant", "content": question.answer},
        ]
    }


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON Lines whole or not at all."""
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
