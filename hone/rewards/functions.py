"""Reward functions written for TRL's GRPOTrainer: loaded, called as it does, their answers checked.

Called by `worker.py`, in its process. TRL passes prompts, completions, completion_ids, every other
column of the data, trainer_state, log_extra and log_metric by name; a function without `**kwargs`
is given only what it names, where TRL would fail. Left out: reward models named by their id, and
TRL's `environments`.
"""

import asyncio
import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hone.errors import UserError
from hone.own_code import load_function
from hone.recipe.rewards import Reward
from hone.rewards.scores import Group

SHOWN = 100  # characters of a value that a message shows
NOT_COLUMNS = ("prompt", "completion", "completion_ids")  # as in TRL


@dataclass(frozen=True)
class TrainerState:
    """What a function may ask about the training, by transformers' names.

    global_step: updates that are done. Other attributes of transformers' are not known here.
    """

    global_step: int
    max_steps: int
    epoch: float
    is_local_process_zero: bool = True
    is_world_process_zero: bool = True


@dataclass(frozen=True)
class Answer:
    """What a call said, for each completion of the group.

    rewards: None where not applicable. failures: by the index of the completion. extra: columns.
    """

    rewards: list[float | None]
    failures: dict[int, str] = field(default_factory=dict)
    extra: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)


class BadAnswer(Exception):
    """What was returned is not what was asked for; the text says what it is."""


def name_of(reward: Reward) -> str:
    """What a reward is called in metrics and rollouts."""
    return reward.name or reward.function.rpartition(":")[2]


def load_reward(reward: Reward) -> Callable[..., Any]:
    """The function of a recipe's reward; raises UserError."""
    function = load_function(reward.function, "rewards")
    if inspect.isclass(function):
        raise UserError(
            f"rewards: `{reward.function}` is a class; expected a function, or an object that can "
            "be called",
            exit_code=2,
        )
    return function


def call_function(
    function: Callable[..., Any], group: Group, loop: asyncio.AbstractEventLoop
) -> Answer:
    """Call a function once for a whole group. Raises what it raises, and BadAnswer."""
    extra: dict[str, list[Any]] = {}
    metrics: dict[str, list[float]] = {}

    def log_extra(column: str, values: Sequence[Any]) -> None:
        extra.setdefault(str(column), []).extend(values)

    def log_metric(name: str, value: float) -> None:
        metrics.setdefault(str(name), []).append(float(value))

    given = arguments(group) | {"log_extra": log_extra, "log_metric": log_metric}
    returned = function(**accepted(function, given))
    if inspect.isawaitable(returned):
        returned = loop.run_until_complete(returned)
    count = len(group.completions)
    rewards, failures = _checked(returned, count)
    for column, values in extra.items():
        if len(values) != count:
            raise BadAnswer(f"gave log_extra {len(values)} of `{column}` for {count} completions")
    return Answer(rewards, failures, extra, metrics)


def arguments(group: Group) -> dict[str, Any]:
    """What TRL passes by name, log_extra and log_metric aside; nothing is shared by completions."""
    task, completions = group.task, group.completions
    answered: list[Any] = list(completions)
    if not isinstance(task.prompt, str):
        answered = [[{"role": "assistant", "content": text}] for text in completions]
    columns = {
        key: [copy.deepcopy(value) for _ in completions]
        for key, value in task.columns.items()
        if key not in NOT_COLUMNS
    }
    return columns | {
        "prompts": [copy.deepcopy(task.prompt) for _ in completions],
        "completions": answered,
        "completion_ids": [list(ids) for ids in group.completion_ids],
        "trainer_state": TrainerState(group.step - 1, group.total_steps, group.epoch),
    }


def accepted(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a function names, all of them where it takes `**kwargs`."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # one written in C may not tell
        return dict(given)
    if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return dict(given)
    return {name: value for name, value in given.items() if name in parameters}


def number(value: Any) -> float:
    """A reward as a number; raises BadAnswer for what is none, or not finite.

    True is 1 and False is 0, as in TRL; so are numbers of numpy, torch, fractions and decimals.
    """
    if not hasattr(value, "__float__") and not hasattr(value, "__index__"):
        raise BadAnswer(f"returned {shown(value)}")
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadAnswer(f"returned {shown(value)}") from error
    if not math.isfinite(found):
        raise BadAnswer(f"returned {found}")
    return found


def _checked(returned: Any, count: int) -> tuple[list[float | None], dict[int, str]]:
    """The rewards of a list, and what is wrong with those that are none."""
    listed = not isinstance(returned, str | bytes | Mapping)
    try:
        values = list(returned) if listed else None
    except TypeError:  # a number, say
        values = None
    if values is None:
        raise BadAnswer(f"returned {shown(returned)}; expected a list of {count} numbers")
    if len(values) != count:
        raise BadAnswer(f"returned {len(values)} rewards for {count} completions")
    rewards: list[float | None] = []
    failures: dict[int, str] = {}
    for index, value in enumerate(values):
        try:
            rewards.append(None if value is None else number(value))
        except BadAnswer as fault:
            rewards.append(None)
            failures[index] = str(fault)
    return rewards, failures


def shown(value: object) -> str:
    """A value in a message."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
