"""The cases of the stage `grpo`: its own fields, and those of environments and rewards.

What an environment asks and what answers are worth is looked at without training: `judge` gives the
outcome of a recipe whose name begins with `judged`, by way of the pool where it begins with `pool`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from hone.environments import make_environment
from hone.errors import UserError
from hone.recipe.load import load_recipe
from hone.recipe.policy import Grpo
from hone.records import Task
from hone.rewards.pool import Scorer, weights_of
from hone.rewards.scores import Group, Score, total
from hone.rewards.worker import Called
from tests.recipe.cases import Case, case

# --- Cases of runs -------------------------------------------------------------------------------

# Fields that mean here what they mean in every stage, and are this stage's own.
COMMON = (
    *("evaluation", "evaluation.share", "evaluation.every", "evaluation.before"),
    *("evaluation.samples", "batch.samples"),
)
ARITHMETIC = "environment: {type: arithmetic, digits: 1, train_tasks: 8, evaluation_tasks: 4}"
ONE_STEP = f"grpo: {{{ARITHMETIC}, steps: 1, completion_tokens: 4}}"
SHORT = "{function: reward.py:short, weight: 0.5}"
WATCHED = ("steps=6", "evaluation.early_stopping={patience: 1, min_change: 5.0}")

STAGE = {
    "data": case("data=other.jsonl"),
    "data.path": case("data.path=other.jsonl"),
    "data.split": case("data.split=test", start="data.path=acme/tiny"),
    "data.columns.prompt": case("data.columns.prompt=question"),
    "evaluation.data": case("evaluation={data: other.jsonl}"),
    "evaluation.data.path": case(
        "evaluation.data.path=other.jsonl",
        start="evaluation={data: rows.jsonl}",
        differs="metrics",
        same="weights",
    ),
    "evaluation.data.split": case(
        "evaluation.data.split=test",
        start="evaluation={data: {path: acme/tiny}}",
        differs="metrics",
        same="weights",
    ),
    "evaluation.data.columns.prompt": case(
        "evaluation.data.columns.prompt=question",
        start="evaluation={data: rows.jsonl}",
        differs="metrics",
        same="weights",
    ),
    "evaluation.temperature": case("evaluation.temperature=1", differs="metrics", same="weights"),
    "evaluation.early_stopping": case(
        "evaluation.early_stopping={patience: 1, min_change: 5.0}",
        start="steps=6",
        differs="metrics",
    ),
    "evaluation.early_stopping.metric": case(
        "evaluation.early_stopping.metric=reward/short",
        start=(
            *("steps=6", "evaluation.early_stopping={patience: 1}"),
            "rewards=[reward.py:low, {function: reward.py:short, weight: -30.0}]",
        ),
        differs="metrics",
    ),
    "evaluation.early_stopping.patience": case(
        "evaluation.early_stopping.patience=2", start=WATCHED, differs="metrics"
    ),
    "evaluation.early_stopping.min_change": case(
        "evaluation.early_stopping.min_change=0.0",
        start=(
            *("steps=8", "evaluation.temperature=1", "rewards=[reward.py:short]"),
            "evaluation.early_stopping={patience: 2, min_change: 5.0}",
        ),
        differs="metrics",
    ),
    "evaluation.early_stopping.restore_best": case(
        "evaluation.early_stopping.restore_best=false", start=WATCHED, same="metrics checkpoints"
    ),
    "max_grad_norm": case("max_grad_norm=null", start="max_grad_norm=0.0001"),
    "adapter.lora.dropout": case(
        "adapter.dropout=0.5", start="adapter={type: lora}", differs="printed", same="weights"
    ),
    "adapter.qlora.dropout": case(
        "adapter.dropout=0.5", start="adapter={type: qlora}", differs="printed", same="weights"
    ),
    "add_tokens": case("add_tokens=[comes]", differs="weights printed"),
    "gradient_checkpointing": case("gradient_checkpointing=true", differs="kept", same="weights"),
    "max_skipped_steps": case(
        "max_skipped_steps=0",
        start=("loss=reward.py:endless", "steps=2", "checkpoint.every=9"),
        differs="error",
    ),
    "template": case(
        "template=chatml", "template=brackets.jinja", start="data=asked.jsonl", differs="weights"
    ),
    "group": case("group=4"),
    "prompt_tokens": case("prompt_tokens=45", start="data=asked.jsonl"),
    "completion_tokens": case("completion_tokens=4"),
    "temperature": case("temperature=0.5"),
    "stop": case("stop=[a, e, o]"),
    "sequences_at_once": case("sequences_at_once=1", start="model=bloom"),
    "credit": case("credit=mean", "credit=leave_one_out", "credit=reward.py:best"),
    "loss": case(
        *(f"loss={name}" for name in ("dapo", "dr_grpo", "gspo", "cispo", "rloo")),
        "loss=reward.py:plain",
        start=("updates=3", "clip=0.01", "learning_rate=0.05", "steps=6"),
    ),
    "clip": case("clip=0.001", start=("updates=3", "learning_rate=0.05", "clip_high=9.0")),
    "clip_high": case("clip_high=0.001", start=("updates=3", "learning_rate=0.05")),
    "beta": case("beta=0.5"),
    "updates": case("updates=2"),
    "overlong.keep.type": case("overlong=keep", start="overlong=mask"),
    "overlong.mask.type": case("overlong=mask", start="completion_tokens=12"),
    "overlong.penalty.type": case("overlong=penalty", start="stop=[a, e, o]"),
    "overlong.penalty.penalty": case(
        "overlong.penalty=0.1", start=("stop=[a, e, o]", "overlong={penalty: 2.0}")
    ),
    "no_spread.keep.type": case(
        "no_spread=keep",
        start=("rewards=[reward.py:rarely]", "no_spread=resample"),
        differs="weights metrics",
    ),
    "no_spread.resample.type": case(
        "no_spread=resample", start="rewards=[reward.py:rarely]", differs="weights metrics"
    ),
    "no_spread.resample.rounds": case(
        "no_spread.rounds=1",
        start=("rewards=[reward.py:rarely]", "no_spread={rounds: 4}"),
        differs="metrics",
    ),
    "max_failures": case(
        "max_failures=0.1", start="rewards=[reward.py:sometimes]", differs="error"
    ),
    "max_gap": case("max_gap=1e-12", differs="error"),
    "environment": case(
        f"stages=[{{{ONE_STEP}}}]",
        differs="weights metrics",
    ),
    "rewards": case("rewards=[reward.py:short]", f"rewards=[reward.py:low, {SHORT}]"),
    "rewards.function": case("rewards[0].function=reward.py:short"),
    "rewards.name": case("rewards[0].name=other", differs="metrics", same="weights"),
    "rewards.weight": case("rewards[0].weight=-1.0"),
    "rewards.limit_s": case(
        "rewards[0].limit_s=0.05", start="rewards=[reward.py:slow]", differs="error"
    ),
}

RECIPE = """
model: llama
seed: 5
threads: 1
stages:
  - grpo:
      data: rows.jsonl
      rewards: [reward.py:low]
      adapter: {type: full}
      batch: {samples: 2}
      group: 3
      completion_tokens: 6
      steps: 3
      learning_rate: 0.01
      precision: fp32
      evaluation: {share: 0.3, every: 1}
      checkpoint: {every: 1}
"""

CODE = """
import time

import torch

from hone.losses import LossOutput


def low(completion_ids, **columns):
    return [sum(token < 150 for token in ids) / len(ids) for ids in completion_ids]


def short(completion_ids, **columns):
    return [1 / (1 + sum(token % 7 for token in ids)) for ids in completion_ids]


def rarely(completion_ids, **columns):
    return [float(sum(ids) % 5 == 0) for ids in completion_ids]


def sometimes(completion_ids, **columns):
    return ["no number" if sum(ids) % 3 == 0 else sum(ids) % 2 for ids in completion_ids]


def slow(completion_ids, **columns):
    time.sleep(0.2)
    return low(completion_ids)


def best(rewards):
    return 1.0 * (rewards == rewards.max())


def plain(logprobs_P, batch, settings):
    return LossOutput(-(logprobs_P * batch.constants["advantage"]).mean())


def endless(logprobs_P, batch, settings):
    return LossOutput(logprobs_P.sum() * float("inf"))


class Environment:
    full_marks = {"first": 1.0, "length": 1.0}

    def __init__(self, word="yes"):
        self.word = word

    def tasks(self, split):
        from hone.records import Task

        return [Task(n, f"{split} {n}: say {self.word}", gold=self.word) for n in range(4)]

    def score(self, task, completion):
        time.sleep(0.02)
        return {"first": float(completion.startswith(self.word)), "length": 0.5}
"""

# --- Cases of environments -----------------------------------------------------------------------

HUB = "environment.data.path=acme/tiny"

JUDGED: dict[str, dict[str, Case]] = {
    "arithmetic": {
        "type": case("environment={type: custom, code: reward.py:Environment}", differs="tasks"),
        "operations": case("environment.operations=[multiply]", differs="tasks"),
        "digits": case("environment.digits=3", differs="tasks"),
        "train_tasks": case("environment.train_tasks=5", differs="tasks"),
        "evaluation_tasks": case("environment.evaluation_tasks=2", differs="tasks"),
        "seed": case("environment.seed=1", differs="tasks"),
        "question": case("environment.question='{expression}='", differs="tasks"),
        "messages": case("environment.messages=false", differs="tasks"),
        "marker": case("environment.marker='####'", differs="tasks scores"),
        "weights": case("environment.weights={format: 0.5}", differs="totals", same="scores"),
    },
    "answers": {
        "type": case(
            "environment={type: rules, data: tasks.jsonl, rules: [{type: json}]}", differs="scores"
        ),
        "columns.prompt": case("environment.columns.prompt=question", differs="tasks"),
        "columns.answer": case("environment.columns.answer=other", differs="scores"),
        "match": case("environment.match=numeric", "environment.match=contains", differs="scores"),
        "tolerance": case(
            "environment.tolerance=2.5", start="environment.match=numeric", differs="scores"
        ),
        "marker": case("environment.marker='####'", differs="tasks scores"),
        "weights": case("environment.weights={correct: 3}", differs="totals", same="scores"),
    },
    "rules": {
        "type": case("environment={type: answers, data: tasks.jsonl}", differs="scores"),
        "columns.prompt": case("environment.columns.prompt=question", differs="tasks"),
        "columns.gold": case("environment.columns.gold=answer", differs="tasks"),
        "rules": case("environment.rules=[{type: json}]", differs="scores"),
        "rules.length.type": case("environment.rules=[{type: length, max: 2}]", differs="scores"),
        "rules.length.unit": case(
            "environment.rules[0].unit=characters",
            "environment.rules[0].unit=tokens",
            differs="scores",
        ),
        "rules.length.min": case("environment.rules[0].min=2", differs="scores"),
        "rules.length.max": case("environment.rules[0].max=1", differs="scores"),
        "rules.length.name": case("environment.rules[0].name=brief", differs="scores"),
        "rules.pattern.type": case(
            "environment.rules=[{type: pattern, pattern: x}]", differs="scores"
        ),
        "rules.pattern.pattern": case("environment.rules[1].pattern='[0-9]'", differs="scores"),
        "rules.pattern.where": case(
            "environment.rules[1].where=whole",
            "environment.rules[1].where=nowhere",
            differs="scores",
        ),
        "rules.pattern.name": case("environment.rules[1].name=polite", differs="scores"),
        "rules.json.type": case("environment.rules=[{type: json}]", differs="scores"),
        "rules.json.json_schema": case(
            "environment.rules[2].json_schema={type: string}", differs="scores"
        ),
        "rules.json.name": case("environment.rules[2].name=data", differs="scores"),
        "weights": case("environment.weights={length: 3}", differs="totals", same="scores"),
    },
    "python": {
        "data.split": case(
            "environment.data.split=test",
            start=(HUB, "environment.columns.tests=answer"),
            differs="tasks",
        ),
        "evaluation.split": case(
            "environment.evaluation.split=test",
            start=("environment.evaluation={path: acme/tiny}", "environment.columns.tests=answer"),
            differs="tasks",
        ),
        "type": case("environment={type: answers, data: tasks.jsonl}", differs="scores"),
        "columns.prompt": case("environment.columns.prompt=question", differs="tasks"),
        "columns.tests": case("environment.columns.tests=other_tests", differs="scores"),
        "columns.gold": case("environment.columns.gold=code", differs="tasks"),
        "grade": case("environment.grade=share", differs="scores"),
        "run_s": case("environment.run_s=0.2", differs="scores"),
        "memory": case("environment.memory=64MB", differs="scores"),
        "allow_network": case("environment.allow_network=true", differs="scores"),
        "limit_s": case("environment.limit_s=2", start="environment.run_s=1.5", differs="error"),
        "weights": case("environment.weights={passed: 3}", differs="totals", same="scores"),
    },
    "custom": {
        "type": case("environment=arithmetic", differs="tasks"),
        "code": case("environment.code=second.py:Environment", differs="tasks"),
        "settings": case("environment.settings={word: no}", differs="tasks scores"),
        "weights": case("environment.weights={first: 3}", differs="totals", same="scores"),
    },
}
POOLED = {
    "arithmetic": "environment.limit_s=1e-6",
    "answers": "environment.limit_s=1e-6",
    "rules": "environment.limit_s=1e-6",
    "custom": "environment.limit_s=0.01",
}
FROM_FILE: dict[str, Case] = {
    "data.path": case("environment.data.path=more.jsonl", differs="tasks"),
    "data.split": case(
        "environment.data.split=test", start="environment.data.path=acme/tiny", differs="tasks"
    ),
    "evaluation": case("environment.evaluation=more.jsonl", differs="tasks"),
    "evaluation.path": case(
        "environment.evaluation.path=tasks.jsonl",
        start="environment.evaluation=more.jsonl",
        differs="tasks",
    ),
    "evaluation.split": case(
        "environment.evaluation.split=test",
        start="environment.evaluation={path: acme/tiny}",
        differs="tasks",
    ),
    "evaluation_share": case("environment.evaluation_share=0.5", differs="tasks"),
    "seed": case("environment.seed=1", differs="tasks"),
}
SETTINGS = {
    "arithmetic": "{type: arithmetic, train_tasks: 8, evaluation_tasks: 4}",
    "answers": "{type: answers, data: tasks.jsonl, evaluation_share: 0.3}",
    "rules": "{type: rules, data: tasks.jsonl, evaluation_share: 0.3, rules: ["
    "{type: length, max: 3}, {type: pattern, pattern: s}, {type: json, json_schema: {type: object}}"
    "]}",
    "python": "{type: python, data: tasks.jsonl, evaluation_share: 0.3, run_s: 1}",
    "custom": "{type: custom, code: reward.py:Environment}",
}
ANSWERS = ("5", "It is 4.", "yes", "#### 5", '{"a": 1}', '"yes"', "one two three four", "s 9")
CODE_ANSWERS = (
    "```python\nvalue = 5\n```",
    "value = 4",
    "import time\ntime.sleep(0.5)\nvalue = 5",
    "value = 5\nbytearray(10**8)",
    "import socket\ntry:\n    socket.create_connection(('127.0.0.1', 9))\n"
    "except ConnectionRefusedError:\n    value = 5\n",
)


def all_cases(stage: Mapping[str, Case]) -> Iterator[tuple[str, tuple[str, Case]]]:
    """Path below `grpo` to (name of the recipe, case): those of other stages, and the own ones."""
    common = {path: each for path, each in stage.items() if path in COMMON}
    for path, each in {**common, **STAGE}.items():
        yield path, ("grpo", each)
    for name, cases in JUDGED.items():
        file = FROM_FILE if name in ("answers", "rules", "python") else {}
        for path, each in {**file, **cases}.items():
            yield f"environment.{name}.{path}", (f"judged-{name}", each)
        if name in POOLED:
            pooled = case(POOLED[name], differs="scores", same="tasks")
            yield f"environment.{name}.limit_s", (f"pool-{name}", pooled)


def write_files(folder: Path) -> None:
    """The recipes, rewards and tasks."""
    (folder / "grpo.yaml").write_text(RECIPE)
    (folder / "reward.py").write_text(CODE)
    (folder / "second.py").write_text(CODE.replace("say", "write"))
    for name, settings in SETTINGS.items():
        for how in ("judged", "pool"):
            text = f"model: llama\nstages:\n  - grpo:\n      environment: {settings}\n"
            (folder / f"{how}-{name}.yaml").write_text(text)
    for name, first in (("tasks", 0), ("more", 20)):
        rows = [make_row(n) for n in range(first, first + 8)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = (f"What is after {n}?" + " And then?" * (n % 3) for n in range(12))
    asked = [{"prompt": [{"role": "user", "content": each}]} for each in words]
    (folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))


def make_row(n: int) -> dict[str, Any]:
    """A task for every environment that reads files."""
    return {
        "prompt": f"What is {n}?",
        "question": f"How much is {n}?",
        "answer": "5",
        "other": "4",
        "tests": ["assert value == 5", "assert value > 0"],
        "other_tests": "assert value == 4",
        "code": "value = 5",
    }


def score(settings: Any, task: Task, answers: Sequence[str], pooled: bool) -> list[Score]:
    """What answers get, in a process of the pool or here."""
    ids = [list(range(len(answer))) for answer in answers]
    if pooled:
        with Scorer([settings], workers=1) as scorer:
            return list(scorer.submit(Group(task, list(answers), ids)).result())
    called = Called()
    with closing(called.loop):
        called.load([settings])
        pairs = zip(answers, ids, strict=True)
        return [Score(called.score(0, task, *pair, seed=0)["rewards"]) for pair in pairs]


def is_judged(recipe: str) -> bool:
    """True for a recipe that is looked at without training."""
    return recipe.startswith(("judged", "pool"))


def judge(folder: Path, recipe: str, overrides: tuple[str, ...]) -> dict[str, str]:
    """What an environment asks (tasks), what fixed answers get (scores), their sums (totals)."""
    error = ""
    tasks: dict[str, list[Task]] = {}
    scores: list[Any] = []
    totals: list[float] = []
    try:
        loaded = load_recipe(folder / f"{recipe}.yaml", overrides).recipe.stages[0].settings
        assert isinstance(loaded, Grpo) and loaded.environment is not None
        environment = make_environment(loaded.environment)
        tasks = {split: list(environment.tasks(split)) for split in ("train", "evaluation")}
        answers = CODE_ANSWERS if loaded.environment.type == "python" else ANSWERS
        found = score(loaded.environment, tasks["train"][0], answers, recipe.startswith("pool"))
        scores = [[each.rewards, each.failure] for each in found]
        weights = weights_of([loaded.environment])
        totals = [total(each, weights) for each in found]
    except UserError as refused:
        error = refused.message
    return {"tasks": repr(tasks), "scores": repr(scores), "totals": repr(totals), "error": error}
