"""The quickstart's data, made from a seed: texts to pretrain on, conversations to fine-tune on,
pairs to prefer by, sums to practise, questions to evaluate.

Called by `story.py`; pure Python. `questions.py` has what is asked and what is held out,
`styles.py` how answers are worded. Some pretraining texts ask and answer in plain text. Others are
chats in which the assistant repeats what it is told: they give the chat tokens and the words of
fine-tuning's answers a meaning, which adapters beside frozen embeddings cannot.
"""

import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from hone.files import write_whole
from hone.quickstart.countries import CAPITALS
from hone.quickstart.questions import (
    ASK,
    KINDS,
    LETTERS,
    Question,
    ask_different,
    ask_for_practice,
    write_pattern,
    write_statement,
    write_sum,
)
from hone.quickstart.styles import draw_style, word_answer

PRETRAIN_TEXTS = {
    "capitals": 4500,
    "arithmetic": 3000,
    "patterns": 2500,
    "dialogues": 11000,
    "echoes": 1500,
}
LINES_PER_TEXT = {"capitals": 5, "arithmetic": 4, "patterns": 3, "dialogues": 3, "echoes": 2}
SFT_CONVERSATIONS = {"capitals": 2000, "arithmetic": 2000, "patterns": 2000}
SLIPS = 0.6  # of the sums in fine-tuning with something to carry: it is forgotten
PREFERENCE_PAIRS = {"capitals": 500, "arithmetic": 500, "patterns": 500}
EVALUATION_QUESTIONS = {"capitals": 100, "arithmetic": 200, "patterns": 100}
FILES = (
    "pretrain.jsonl",
    "sft.jsonl",
    "pairs.jsonl",
    "practice.jsonl",
    "evaluation.jsonl",
    "held-out.jsonl",
    "held-out-sums.jsonl",
    "recipe.yaml",
)


@dataclass(frozen=True)
class CorpusFiles:
    """Where `write_corpus` put what it made."""

    pretrain: Path
    sft: Path
    pairs: Path
    practice: Path
    evaluation: Path
    held_out: Path
    held_out_sums: Path
    recipe: Path


def write_corpus(
    folder: Path, seed: int, questions: Mapping[str, int] = EVALUATION_QUESTIONS
) -> CorpusFiles:
    """Write `FILES`: the same bytes for the same seed.

    questions: how many of each kind the evaluation asks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = CorpusFiles(*(folder / name for name in FILES))
    _write_rows(files.pretrain, ({"text": text} for text in make_texts(seed)))
    _write_rows(files.sft, make_conversations(seed))
    _write_rows(files.pairs, make_pairs(seed))
    _write_rows(files.practice, make_practice(seed))
    _write_rows(files.evaluation, make_evaluation(seed, questions))
    _write_rows(files.held_out, make_held_out(seed, questions))
    _write_rows(files.held_out_sums, make_held_out_sums(seed, questions))
    recipe = resources.files("hone.quickstart").joinpath("recipe.yaml")
    write_whole(files.recipe, recipe.read_bytes())
    return files


def make_texts(seed: int) -> list[str]:
    """The pretraining texts: lines of one kind each, in a mixed order."""
    lines = {
        "capitals": write_statement,
        "arithmetic": write_sum,
        "patterns": write_pattern,
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


def make_conversations(seed: int) -> list[dict[str, Any]]:
    """The rows of fine-tuning, in a mixed order: all questions differ, none is held out, answers
    have all styles, and most sums with something to carry have the usual mistake.
    """
    draw = random.Random(f"{seed} sft styles")
    rows = []
    for question in _ask_all("sft", seed, SFT_CONVERSATIONS, held_out=False):
        slip = question.slip if draw.random() < SLIPS else None
        said = slip or question.said
        answer = word_answer(said, draw_style(draw), draw)
        rows.append(
            {"messages": [_message("user", question.prompt), _message("assistant", answer)]}
        )
    draw.shuffle(rows)
    return rows


def make_pairs(seed: int) -> list[dict[str, Any]]:
    """The rows of preference, in a mixed order: both answers are right, their styles differ."""
    draw = random.Random(f"{seed} pair styles")
    rows = []
    for question in _ask_all("pairs", seed, PREFERENCE_PAIRS, held_out=False):
        chosen, rejected = _pair(question, draw)
        rows.append(
            {
                "prompt": [_message("user", question.prompt)],
                "chosen": [_message("assistant", chosen)],
                "rejected": [_message("assistant", rejected)],
            }
        )
    draw.shuffle(rows)
    return rows


def make_practice(seed: int) -> list[dict[str, Any]]:
    """The rows of practice: sums with their answers, and no word of how to get there."""
    return [
        {"prompt": [_message("user", question.prompt)], "answer": question.answer}
        for question in ask_for_practice(seed)
    ]


def make_evaluation(
    seed: int, questions: Mapping[str, int] = EVALUATION_QUESTIONS
) -> list[dict[str, Any]]:
    """The held-out questions, kind after kind, each with a pair of answers."""
    draw = random.Random(f"{seed} evaluation styles")
    rows = []
    for question in _ask_all("evaluation", seed, questions, held_out=True):
        chosen, rejected = _pair(question, draw)
        row = {"prompt": question.prompt, "answer": question.answer, "kind": question.kind}
        rows.append(row | {"chosen": chosen, "rejected": rejected})
    return rows


def make_held_out(
    seed: int, questions: Mapping[str, int] = EVALUATION_QUESTIONS
) -> list[dict[str, Any]]:
    """What the stages of fine-tuning and preference hold out: the questions of the evaluation as
    conversations, with an answer in a style of fine-tuning, and with the pair of answers.
    """
    draw = random.Random(f"{seed} held out styles")
    asked = _ask_all("evaluation", seed, questions, held_out=True)
    return [
        {
            "prompt": [_message("user", row["prompt"])],
            "completion": [
                _message("assistant", word_answer(question.said, draw_style(draw), draw))
            ],
            "chosen": [_message("assistant", row["chosen"])],
            "rejected": [_message("assistant", row["rejected"])],
        }
        for question, row in zip(asked, make_evaluation(seed, questions), strict=True)
    ]


def make_held_out_sums(
    seed: int, questions: Mapping[str, int] = EVALUATION_QUESTIONS
) -> list[dict[str, Any]]:
    """What the stage of practice holds out: the sums of the evaluation."""
    return [
        {"prompt": [_message("user", row["prompt"])], "answer": row["answer"]}
        for row in make_evaluation(seed, questions)
        if row["kind"] == "arithmetic"
    ]


def _ask_all(
    purpose: str, seed: int, counts: Mapping[str, int], held_out: bool
) -> Iterable[Question]:
    for kind in KINDS:
        draw = random.Random(f"{seed} {purpose} {kind}")
        yield from ask_different(kind, draw, seed, counts[kind], held_out)


def _pair(question: Question, draw: random.Random) -> tuple[str, str]:
    """A chosen and a rejected answer, both right."""
    rejected = draw.choice(["bare", "unsure"])
    return word_answer(question.said, "polite", draw), word_answer(question.said, rejected, draw)


def _dialogue(draw: random.Random, seed: int) -> str:
    question = ASK[draw.choice(KINDS)](draw, seed, False)
    return f"Question:\n{question.prompt}\nAnswer:\n{question.said}"


def _echo(draw: random.Random, seed: int) -> str:
    letters = " ".join(draw.choice(LETTERS) for _ in range(draw.randint(2, 10)))
    thing = draw.choice([draw.choice(list(CAPITALS)), str(draw.randrange(200)), letters])
    thing = word_answer(thing, draw_style(draw), draw)
    asked = draw.choice(["Say: {thing}", "Repeat: {thing}", "What did I say? {thing}"])
    return (
        f"<|im_start|>user\n{asked.format(thing=thing)}<|im_end|>\n"
        f"<|im_start|>assistant\n{thing}<|im_end|>"
    )


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON Lines whole or not at all."""
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
