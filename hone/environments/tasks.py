"""From the rows of a file to tasks, and which of them are held out.

Called by the environments whose tasks come from a file, and by whoever has prompts and reward
functions without an environment. Rows are read by `hone.data.sources`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hone.data.messages import checked_prompt
from hone.data.rows import BadRow, RowError, missing_key
from hone.data.sources import open_source
from hone.errors import UserError
from hone.recipe.rewards import FromFile
from hone.records import Task
from hone.seeds import derive_seed

GoldOf = Callable[[Mapping[str, Any]], str | None]


def no_gold(values: Mapping[str, Any]) -> None:
    """For rows without a right answer."""


def tasks_of(settings: FromFile, split: str, needed: Sequence[str], gold: GoldOf) -> list[Task]:
    """The tasks of a split of an environment: its own file, or its share of the only one."""
    if split == "evaluation" and settings.evaluation is not None:
        source = settings.evaluation
        return read_tasks(source.path, source.split, settings.columns.prompt, needed, gold)
    tasks = read_tasks(
        settings.data.path, settings.data.split, settings.columns.prompt, needed, gold
    )
    if settings.evaluation is not None:
        return tasks
    train, held_out = hold_out(tasks, settings.evaluation_share, settings.seed)
    return held_out if split == "evaluation" else train


def read_tasks(
    path: str,
    split: str | None = None,
    prompt: str = "prompt",
    needed: Sequence[str] = (),
    gold: GoldOf = no_gold,
) -> list[Task]:
    """Every row as a task. prompt: the column with what is asked. needed: more columns that every
    row must have. Raises UserError with the row's place.
    """
    source = open_source(path, split)
    tasks: list[Task] = []
    for row in source.rows():
        place = source.place(row.source, row.number)
        if isinstance(row, BadRow):
            raise UserError(f"{place}: {row.message}")
        try:
            tasks.append(_task(len(tasks), row.values, place, prompt, needed, gold))
        except RowError as error:
            raise UserError(f"{place}: {error.message}", hint=error.hint) from None
    if not tasks:
        raise UserError(f"`{path}` has no rows; expected a task in each", exit_code=2)
    return tasks


def _task(
    index: int,
    values: dict[str, Any],
    place: str,
    prompt: str,
    needed: Sequence[str],
    gold: GoldOf,
) -> Task:
    for column in (prompt, *needed):
        if values.get(column) is None:
            raise RowError(missing_key(column, values))
    asked = checked_prompt(values[prompt], f"`{prompt}`")
    columns = {key: value for key, value in values.items() if key != prompt}
    return Task(index, asked, columns, gold(values), place)


def hold_out(tasks: Sequence[Task], share: float, seed: int) -> tuple[list[Task], list[Task]]:
    """(training, held-out) tasks, numbered anew. The share is one of the different prompts, so that
    no prompt is in both; at least one is held out where the share is above 0.
    """
    keys = [json.dumps(task.prompt, sort_keys=True) for task in tasks]
    drawn = sorted(set(keys), key=lambda key: (derive_seed(seed, "held-out tasks", key), key))
    count = max(1, round(len(drawn) * share)) if share else 0
    if count >= len(drawn):
        raise UserError(
            f"the tasks have {len(drawn)} different prompts, too few to hold a share of {share:g} "
            "out and train on others",
            hint="name held-out tasks of their own (`evaluation`), or leave none out: "
            "`evaluation_share: 0`",
            exit_code=2,
        )
    held_out = set(drawn[:count])
    parts: tuple[list[Task], list[Task]] = ([], [])
    for task, key in zip(tasks, keys, strict=True):
        part = parts[key in held_out]
        part.append(Task(len(part), task.prompt, task.columns, task.gold, task.place))
    return parts
