"""Preferences for tests: random pairs and labelled completions as trees, and files of rows."""

import json
import random
from pathlib import Path

import numpy as np

from hone.records import Sample, Segment
from tests.tiny import VOCABULARY


def random_pairs(count: int, seed: int = 0, shortest_prompt: int = 1) -> list[Sample]:
    """Prompts of up to 9 tokens with two completions of 2 to 12 trained tokens."""
    draw = np.random.default_rng(seed)
    return [
        Sample(n, (_prompt(draw, shortest_prompt), _completion(draw), _completion(draw)))
        for n in range(count)
    ]


def random_judged(count: int, seed: int = 0) -> list[Sample]:
    """Prompts with one completion and its label; of both labels there are some."""
    draw = np.random.default_rng(seed)
    samples = []
    for n in range(count):
        prompt, completion = _prompt(draw, 1), _completion(draw)
        label = np.full(len(completion.tokens), float(n % 3 > 0))
        completion = Segment(completion.tokens, completion.trained, 0, {"label": label})
        samples.append(Sample(n, (prompt, completion)))
    return samples


def _prompt(draw: np.random.Generator, shortest: int) -> Segment:
    length = int(draw.integers(shortest, 10))
    return Segment(_tokens(draw, length), np.zeros(length, dtype=bool))


def _completion(draw: np.random.Generator) -> Segment:
    length = int(draw.integers(2, 13))
    return Segment(_tokens(draw, length), np.ones(length, dtype=bool), 0)


def _tokens(draw: np.random.Generator, length: int) -> np.ndarray:
    return draw.integers(3, VOCABULARY, length).astype(np.int32)


def write_preferences(folder: Path, count: int = 160) -> None:
    """preferences.jsonl: sums that are right or wrong; judged.jsonl: the same, one by one."""
    draw = random.Random(0)
    sums = [(draw.randint(0, 99), draw.randint(0, 99), draw.randint(1, 9)) for _ in range(count)]
    pairs, judged = [], []
    for n, (a, b, off) in enumerate(sums):
        asked = [{"role": "user", "content": f"What is {a} plus {b}?"}]
        right, wrong = (
            [{"role": "assistant", "content": f"{begin} {a + b + more}."}]
            for begin, more in (("It is", 0), ("I would say", off))
        )
        pairs.append({"prompt": asked, "chosen": right, "rejected": wrong})
        label = n % 2 == 0
        judged.append({"prompt": asked, "completion": right if label else wrong, "label": label})
    for name, rows in (("preferences", pairs), ("judged", judged)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)
