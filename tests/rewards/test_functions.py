"""Reward functions as TRL's GRPOTrainer calls them, side by side with it; answers that are none."""

import asyncio
import math
from collections.abc import Callable
from decimal import Decimal
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from hone.errors import UserError
from hone.recipe.rewards import Reward
from hone.records import Task
from hone.rewards.functions import Answer, BadAnswer, call_function, load_reward, number
from hone.rewards.scores import Group, Score, total
from tests.data.tokenizers import byte_level
from tests.tiny import make_model

COMPLETIONS = ["four", "4", "It is 4.", ""]
IDS = [[5, 6, 2], [7, 2], [8, 9, 10, 2], [2]]
COLUMNS: dict[str, Any] = {"answer": "4", "level": 2, "tags": ["sum", "easy"]}
TEXT = "What is 2 + 2?"
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": TEXT}]


# What people write. Each is called by TRL and by Hone with the same group.


def lengths(completions: list[Any], **kwargs: Any) -> list[float]:
    return [float(len(each)) for each in completions]


def tokens(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    return [1.0 / len(ids) for ids in completion_ids]


def correct(
    prompts: list[Any], completions: list[Any], answer: list[str], **kwargs: Any
) -> list[float | None]:
    texts = [each if isinstance(each, str) else each[0]["content"] for each in completions]
    return [None if not text else float(right in text) for text, right in zip(texts, answer)]  # noqa: B905


def everything(**kwargs: Any) -> list[float]:
    state = kwargs["trainer_state"]
    kwargs["log_extra"]("first_tag", [tags[0] for tags in kwargs["tags"]])
    kwargs["log_metric"]("asked", len(kwargs["prompts"]))
    kwargs["log_metric"]("asked", 0)
    named = sorted(key for key in kwargs)
    seen = repr((named, kwargs["prompts"], kwargs["completions"], kwargs["level"]))
    return [len(seen) + state.global_step + state.max_steps / 7 + state.epoch] * 4


async def judged(completions: list[Any], **kwargs: Any) -> list[Any]:
    await asyncio.sleep(0)
    return [np.float32(0.1), torch.tensor(0.2), True, 3]


class Judge:
    """An object that can be called, asynchronously."""

    async def __call__(self, completions: list[Any], **kwargs: Any) -> Any:
        return torch.arange(len(completions)) / 3


def scaled(completions: list[Any], by: float, **kwargs: Any) -> list[float]:
    return [by * len(each) for each in completions]


def vain(completions: list[Any], **kwargs: Any) -> list[None]:
    return [None] * len(completions)


def mutates(prompts: list[Any], completions: list[Any], tags: list[Any], **_: Any) -> list[int]:
    """Each completion has prompts and columns of its own."""
    for each, tag in zip(prompts, tags, strict=True):
        tag.append("seen")
        if isinstance(each, list):
            each.append("seen")
    return [len(tag) + len(prompt) for tag, prompt in zip(tags, prompts, strict=True)]


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "lengths": lengths,
    "tokens": tokens,
    "correct": correct,
    "everything": everything,
    "judged": judged,
    "Judge": Judge(),
    "scaled": partial(scaled, by=0.1),
    "vain": vain,
    "mutates": mutates,
}
WEIGHTS = [1.0, -2.0, 0.5, 0.25, 3.0, 1.0, 0.0, 7.0, 0.1]


def tokenizer() -> PreTrainedTokenizerFast:
    made = byte_level()
    made.pad_token = made.eos_token = "<|endoftext|>"
    return made


@cache
def trainer() -> Any:
    """TRL's trainer with all functions, at the beginning of its fourth step of eleven."""
    from trl import GRPOConfig, GRPOTrainer

    arguments = GRPOConfig(
        output_dir="/nonexistent",
        report_to="none",
        use_cpu=True,
        bf16=False,
        max_steps=11,
        reward_weights=WEIGHTS,
        per_device_train_batch_size=4,
        num_generations=4,
        save_strategy="no",
    )
    made = GRPOTrainer(
        model=make_model("llama"),
        reward_funcs=list(FUNCTIONS.values()),
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": TEXT}]),
        processing_class=tokenizer(),
    )
    made.state.global_step, made.state.max_steps, made.state.epoch = 3, 11, 0.5
    return made


def trl_calculates(prompt: Any) -> tuple[torch.Tensor, dict[str, Any], dict[str, Any]]:
    """(G, functions) rewards, extra columns and metrics, by TRL's own way."""
    theirs = trainer()
    theirs._pending_extra_logs.clear()
    theirs._pending_metrics.clear()
    rows = [{"prompt": copied(prompt), **copied(COLUMNS)} for _ in COMPLETIONS]
    completions: list[Any] = list(COMPLETIONS)
    if isinstance(prompt, list):
        completions = [[{"role": "assistant", "content": text}] for text in COMPLETIONS]
    prompts = [row["prompt"] for row in rows]
    rewards = theirs._calculate_rewards(rows, prompts, completions, IDS)
    return rewards, dict(theirs._pending_extra_logs), dict(theirs._pending_metrics)


def copied(value: Any) -> Any:
    import copy

    return copy.deepcopy(value)


def hone_calculates(prompt: Any) -> dict[str, Answer]:
    """The same, the way of a worker."""
    loop = asyncio.new_event_loop()
    task = Task(0, prompt, COLUMNS)
    group = Group(task, COMPLETIONS, IDS, step=4, total_steps=11, epoch=0.5)
    answers = {name: call_function(function, group, loop) for name, function in FUNCTIONS.items()}
    loop.close()
    return answers


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("prompt", [TEXT, MESSAGES], ids=["text", "messages"])
def test_rewards_are_those_of_trl(prompt: Any) -> None:
    theirs, extra, metrics = trl_calculates(prompt)
    ours = hone_calculates(prompt)
    assert len(ours) == theirs.shape[1] == 9
    for column, (name, answer) in enumerate(ours.items()):
        found = [math.nan if reward is None else reward for reward in answer.rewards]
        wanted = theirs[:, column]
        torch.testing.assert_close(torch.tensor(found), wanted, equal_nan=True, rtol=0, atol=0)
        assert answer.failures == {}, name
    assert COLUMNS["tags"] == ["sum", "easy"], "what a function changes is its own"
    assert ours["everything"].extra == extra == {"first_tag": ["sum"] * 4}
    assert ours["everything"].metrics == metrics == {"asked": [4, 0]}
    # The weighted sum, by the expression that TRL sums with.
    wanted_sum = (theirs * torch.tensor(WEIGHTS)).nansum(dim=1)
    weights = dict(zip(FUNCTIONS, WEIGHTS, strict=True))
    for index in range(4):
        score = Score({name: answer.rewards[index] for name, answer in ours.items()})
        assert total(score, weights) == pytest.approx(float(wanted_sum[index]), rel=1e-6)


def test_a_function_without_kwargs_gets_what_it_names() -> None:
    def named(completions: list[str], level: list[int]) -> list[float]:
        return [float(each) for each in level]

    assert called(named).rewards == [2.0] * 4
    rows = [{"prompt": TEXT, **COLUMNS}] * 4
    theirs = trainer()
    with pytest.raises(TypeError, match="unexpected keyword"):  # why nothing can depend on it
        theirs.reward_funcs, kept = [named] * len(FUNCTIONS), theirs.reward_funcs
        try:
            theirs._calculate_rewards(rows, [TEXT] * 4, COMPLETIONS, IDS)
        finally:
            theirs.reward_funcs = kept


def called(function: Callable[..., Any]) -> Answer:
    loop = asyncio.new_event_loop()
    try:
        return call_function(function, Group(Task(0, TEXT, COLUMNS), COMPLETIONS, IDS), loop)
    finally:
        loop.close()


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "returned None; expected a list of 4 numbers"),
        (1.0, r"returned 1\.0; expected a list"),
        ("abcd", "returned 'abcd'; expected a list"),
        ({1: 1, 2: 2, 3: 3, 4: 4}, "returned {1: 1"),
        ([1.0], "returned 1 rewards for 4 completions"),
        ([1.0] * 5, "returned 5 rewards for 4 completions"),
        (torch.tensor(1.0), "returned tensor"),
    ],
)
def test_answers_that_are_none(returned: Any, message: str) -> None:
    with pytest.raises(BadAnswer, match=message):
        called(lambda completions: returned)


def test_a_reward_that_is_no_number_is_that_of_its_completion() -> None:
    answer = called(lambda completions: ["abc", math.nan, 1, math.inf])
    assert answer.rewards == [None, None, 1.0, None]
    assert answer.failures == {0: "returned 'abc'", 1: "returned nan", 3: "returned inf"}


@pytest.mark.parametrize(
    "value",
    [True, 1, 1.0, np.float32(1), np.bool_(True), np.int64(1), torch.tensor([1]), Decimal(1)],
)
def test_what_counts_as_a_number(value: Any) -> None:
    assert number(value) == 1.0


@pytest.mark.parametrize("value", ["1", None, [1], torch.ones(2), 1j, 10**400, object()])
def test_what_counts_as_none(value: Any) -> None:
    with pytest.raises(BadAnswer, match=r"^returned "):
        number(value)


def test_columns_that_are_too_short_are_no_answer() -> None:
    def logs(completions: list[str], log_extra: Callable[..., None]) -> list[float]:
        log_extra("words", ["one"])
        return [1.0] * 4

    with pytest.raises(BadAnswer, match="gave log_extra 1 of `words` for 4 completions"):
        called(logs)


def test_functions_are_loaded_from_files(tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text(
        "class Judge:\n    def __call__(self, completions, **_): return [2.0] * len(completions)\n"
        "judge = Judge()\n"
    )
    made = load_reward(Reward(function=f"{tmp_path}/reward.py:judge"))
    assert called(made).rewards == [2.0] * 4
    with pytest.raises(UserError, match=r"reward\.py:Judge` is a class"):
        load_reward(Reward(function=f"{tmp_path}/reward.py:Judge"))
