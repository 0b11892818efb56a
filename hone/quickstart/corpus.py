"""The quickstart's data, made from a seed: texts to pretrain on, conversations to fine-tune on,
questions to evaluate.

Called by `story.py`; pure Python. Three kinds of content, each with one right answer:

* capitals: every fact stands in the pretraining texts. Fine-tuning asks with some phrasings, the
evaluation with others that occur nowhere else. * arithmetic: a number below 100 plus a digit. The
pairs of the evaluation occur nowhere else. * patterns: letters that repeat. The cycles of the
evaluation occur nowhere else.

The texts teach nothing else: the model knows capitals, small sums and patterns.
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
PRETRAIN_TEXTS = {"capitals": 3000, "arithmetic": 7000, "patterns": 3500, "dialogues": 2500}
LINES_PER_TEXT = {"capitals": 8, "arithmetic": 14, "patterns": 3, "dialogues": 3}
SFT_CONVERSATIONS = {"capitals": 1600, "arithmetic": 1600, "patterns": 1600}
EVALUATION_QUESTIONS = {"capitals": 80, "arithmetic": 80, "patterns": 80}
HELD_OUT_SHARE = 0.1  # of the operand pairs and cycles

STATEMENTS = [
    "The capital of {country} is {capital}.",
    "{country} has its capital in {capital}.",
    "The government of {country} sits in {capital}.",
    "{country} is governed from {capital}.",
    "In {country} the capital is {capital}.",
    "Question: what is the capital of {country}? Answer: {capital}",
    "Question: which city is the capital of {country}? Answer: {capital}",
]
CAPITAL_QUESTIONS = [
    "What is the capital of {country}?",
    "Which city is the capital of {country}?",
    "Name the capital of {country}.",
    "I would like to know the capital of {country}.",
    "Where does the government of {country} sit?",
    "{country} has which capital?",
]
HELD_OUT_PHRASINGS = [
    "Tell me the capital of {country}.",
    "Can you name the capital city of {country}?",
    "Please give me the capital of {country}.",
    "Which capital does {country} have?",
]
SUMS = [
    "{a} + {b} = {sum}",
    "{a} plus {b} is {sum}",
    "Question: what is {a} + {b}? Answer: {sum}",
]
SUM_QUESTIONS = ["What is {a} + {b}?", "How much is {a} + {b}?", "Add {a} and {b}."]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PERIODS = (2, 3, 4)
SHOWN = range(8, 12)  # letters of a pattern that a question shows
ANSWERED = 3  # letters that the answer has
WRITTEN = 40  # letters of a pattern in a pretraining text
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
    }
    texts = []
    for kind, line in lines.items():
        draw = random.Random(f"{seed} pretrain {kind}")
        for _ in range(PRETRAIN_TEXTS[kind]):
            texts.append("\n".join(line(draw, seed) for _ in range(LINES_PER_TEXT[kind])))
    random.Random(f"{seed} pretrain order").shuffle(texts)
    return texts


def make_sft_questions(seed: int) -> list[Question]:
    """The questions of fine-tuning, none of which is asked in the evaluation, in a mixed order."""
    questions = []
    for kind, ask in ASK.items():
        draw = random.Random(f"{seed} sft {kind}")
        questions += [ask(draw, seed, False) for _ in range(SFT_CONVERSATIONS[kind])]
    random.Random(f"{seed} sft order").shuffle(questions)
    return questions


def make_evaluation_questions(seed: int) -> list[Question]:
    """The held-out questions, all different, kind after kind."""
    questions: list[Question] = []
    for kind, ask in ASK.items():
        draw = random.Random(f"{seed} evaluation {kind}")
        found: dict[str, Question] = {}
        while len(found) < EVALUATION_QUESTIONS[kind]:
            question = ask(draw, seed, True)
            found.setdefault(question.prompt, question)
        questions += found.values()
    return questions


@functools.cache
def split_operands(seed: int) -> tuple[list[Pair], list[Pair]]:
    """(training, held-out) pairs of a number below 100 and a digit from 1 to 9.

    Sums of two digits are all for training: longer ones are made of them.
    """
    digits = [(a, b) for a in range(10) for b in range(1, 10)]
    longer = [(a, b) for a in range(10, 100) for b in range(1, 10)]
    training, held_out = _split(longer, f"{seed} operands")
    return digits + training, held_out


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
    phrasing = draw.choice(HELD_OUT_PHRASINGS if held_out else CAPITAL_QUESTIONS)
    return Question(_sentence(phrasing, country=country), CAPITALS[country], "capitals")


def _sentence(form: str, **names: str) -> str:
    text = form.format(**names)
    return text[0].upper() + text[1:]


def _sum(draw: random.Random, seed: int) -> str:
    a, b = draw.choice(split_operands(seed)[0])
    return draw.choice(SUMS).format(a=a, b=b, sum=a + b)


def _ask_sum(draw: random.Random, seed: int, held_out: bool) -> Question:
    a, b = draw.choice(split_operands(seed)[held_out])
    return Question(draw.choice(SUM_QUESTIONS).format(a=a, b=b), str(a + b), "arithmetic")


def _pattern(draw: random.Random, seed: int) -> str:
    return " ".join(_letters(draw, seed, WRITTEN, held_out=False))


def _ask_pattern(draw: random.Random, seed: int, held_out: bool) -> Question:
    letters = _letters(draw, seed, draw.choice(SHOWN) + ANSWERED, held_out)
    shown, answer = " ".join(letters[:-ANSWERED]), " ".join(letters[-ANSWERED:])
    return Question(draw.choice(PATTERN_QUESTIONS).format(shown=shown), answer, "patterns")


def _dialogue(draw: random.Random, seed: int) -> str:
    """The user names something and the assistant repeats it."""
    things = [draw.choice(list(CAPITALS)), str(draw.randrange(110))]
    things.append(" ".join(draw.choice(LETTERS) for _ in range(draw.randint(2, 12))))
    thing = draw.choice(things)
    asked = draw.choice(["Say {thing}.", "Repeat: {thing}", "What did I say? {thing}"])
    return (
        f"<|im_start|>user\n{asked.format(thing=thing)}<|im_end|>\n"
        f"<|im_start|>assistant\n{thing}<|im_end|>"
    )


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
