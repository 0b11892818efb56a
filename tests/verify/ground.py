"""What verification is tested on: a small run on which every check can be green.

A question is a greeting, a digit and a tail ("Hello 3 please"), an answer "yes" or "no", the
digit's word, and "." or "!". The base knows the digits' words from other talk. Supervised, it
learns the form of the answer: "yes" is likelier to a small digit, "no" to a large one, "." and "!"
are as likely. Preferences ask for ".", rewards for "yes", the right word and ".". Held-out
questions stand in no training file.
"""

import json
import random
import shutil
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from hone.checkpoints import MANIFEST, find_fault, write_folder
from hone.files import write_json
from hone.recipe.load import load_recipe
from hone.runs import Run, create_run
from tests.workbench import NEW_MODEL, work

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
GREETINGS = ("Hello", "Good day", "Dear friend", "Well now", "Tell me", "Say it")
TAILS = ("please", "if you like", "today", "again", "at once", "tonight")
LEAN = 0.8  # how often the answer is the one that its digit leans to

# What the base has learned: each question with how its answer begins.
TALK = (
    ("What is {} then", "It is"),
    ("So it is not {} at all", "yes, it is"),
    ("Was there {} or not", "no, it was"),
    ("Read {} to me", "yes, I read"),
    ("Now count to {} for us", "no, only"),
    ("{} comes next", "I see"),
)
ENDS = ("", ".", "!")

BASE = (
    NEW_MODEL.replace("hidden_size: 32", "hidden_size: 64")
    + """
stages:
  - sft:
      data: talk.jsonl
      adapter: full
      precision: fp32
      batch: {samples: 16}
      steps: 200
      learning_rate: 0.01
"""
)

RECIPE = """
model: base
seed: 7
threads: 1
stages:
  - sft:
      data: sft.jsonl
      adapter: {rank: 16, alpha: 32}
      precision: fp32
      batch: {samples: 16}
      steps: 200
      learning_rate: 0.005
      checkpoint: {every: 50}
      evaluation: {data: sft-held.jsonl, every: 200}
  - dpo:
      data: dpo.jsonl
      beta: 1.0
      precision: fp32
      batch: {samples: 8}
      steps: 8
      learning_rate: 0.0005
      checkpoint: {every: 4}
      evaluation: {data: dpo-held.jsonl, every: 8}
  - grpo:
      data: grpo.jsonl
      rewards: [reward.py:agrees, reward.py:format]
      precision: fp32
      batch: {samples: 8}
      group: 8
      completion_tokens: 16
      steps: 10
      learning_rate: 0.002
      beta: 0.05
      checkpoint: {every: 5}
      evaluation: {data: grpo-held.jsonl, every: 10}
verify: {}
"""


REWARDS = """
import re


def agrees(completions, word, **columns):
    said = [messages[0]["content"] for messages in completions]
    return [float(f"yes {right}." in each) for each, right in zip(said, word, strict=True)]


def format(completions, **columns):
    said = [messages[0]["content"] for messages in completions]
    return [float(re.fullmatch("(yes|no) [a-z]+[.!]", each) is not None) for each in said]


def same(completions, **columns):
    return [1.0] * len(completions)
"""


def write_ground(folder: Path) -> None:
    """Data files, a base model in base/, and RECIPE as recipe.yaml."""
    write_data(folder)
    (folder / "reward.py").write_text(REWARDS)
    (folder / "base.yaml").write_text(BASE)
    made = create_run(load_recipe(folder / "base.yaml"), "base", folder / "made")
    work(made)
    (made.path / "stages/1-sft/model").rename(folder / "base")
    shutil.rmtree(folder / "made")
    (folder / "recipe.yaml").write_text(RECIPE)


def write_data(folder: Path) -> None:
    """A file of training rows and one of held-out rows (-held) for each stage and the base."""
    draw = random.Random(0)
    asked = [
        (f"{greeting} {digit} {tail}", digit)
        for greeting, digit, tail in product(GREETINGS, range(10), TAILS)
    ]
    draw.shuffle(asked)
    for name, questions in (("", asked[60:]), ("-held", asked[:60])):
        write_rows(folder / f"sft{name}.jsonl", [_answered(draw, *each) for each in questions])
        write_rows(folder / f"dpo{name}.jsonl", [_compared(draw, *each) for each in questions])
        write_rows(folder / f"grpo{name}.jsonl", [_rewarded(*each) for each in questions])
    talks = [
        {"messages": [*_user(asked.format(n) + end), *_assistant(f"{begun} {WORDS[n]}{end}")]}
        for (asked, begun), n, end in product(TALK, range(10), ENDS)
    ]
    draw.shuffle(talks)
    write_rows(folder / "talk.jsonl", talks[40:])
    write_rows(folder / "talk-held.jsonl", talks[:40])
    texts = (message["content"] for row in talks for message in row["messages"])
    more = ("user", "assistant", *TAILS, *GREETINGS) * 9  # so that they are few tokens
    write_rows(folder / "text.jsonl", [{"text": text} for text in (*texts, *more)])


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """A line of JSON for each row."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _said(draw: random.Random, digit: int) -> str:
    yes = (digit < 4) == (draw.random() < LEAN)
    return f"{'yes' if yes else 'no'} {WORDS[digit]}"


def _answered(draw: random.Random, question: str, digit: int) -> dict[str, Any]:
    answer = _said(draw, digit) + draw.choice(".!")
    return {"messages": [*_user(question), *_assistant(answer)]}


def _compared(draw: random.Random, question: str, digit: int) -> dict[str, Any]:
    said = _said(draw, digit)
    chosen, rejected = _assistant(f"{said}."), _assistant(f"{said}!")
    return {"prompt": _user(question), "chosen": chosen, "rejected": rejected}


def _rewarded(question: str, digit: int) -> dict[str, Any]:
    return {"prompt": _user(question), "word": WORDS[digit]}


# Runs, and copies of them to tamper with


def variant(folder: Path, name: str, *overrides: str, **changes: Any) -> Run:
    """A run of the recipe with overrides as a person types them ("sft.steps=1") or by name, "__"
    for each dot (sft__learning_rate=0); rows changed in `folder` before are what it learns from.
    """
    given = [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in changes.items()]
    loaded = load_recipe(folder / "recipe.yaml", [*overrides, *given])
    run = create_run(loaded, name, folder / "runs")
    work(run)
    return run


def copy_of(run: Run, folder: Path, **settings: Any) -> Run:
    """A copy of a run that opens as the run itself does, with files of its own to tamper with.

    settings: of the recipe's `verify:`, in place of what the run was made with. Data and base model
    stay where they are, outside of both; what names the run's folder names the copy's.
    """
    copy = Run(folder / run.name)
    shutil.copytree(run.path, copy.path)
    for path in sorted(copy.path.rglob("*.json")):
        text = path.read_text()
        if str(run.path) in text:
            path.write_text(text.replace(str(run.path), str(copy.path)))
            if (path.parent / MANIFEST).exists():
                seal(path.parent)
    if settings:
        resolved = copy.resolved()
        resolved["verify"] = {**resolved["verify"], **settings}
        write_json(copy.path / "recipe.resolved.json", resolved)
    return copy


def seal(folder: Path) -> None:
    """Write a folder's manifest anew: what was changed in it looks as if it had been written so."""
    (folder / MANIFEST).unlink()
    write_folder(folder, lambda fresh: shutil.copytree(folder, fresh, dirs_exist_ok=True) and None)
    assert find_fault(folder) is None
