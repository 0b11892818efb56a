"""What an environment is, and the check that its gold answers score full marks.

Implemented by the files beside this one and by classes of a person's own; called by `rewards/`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from hone.errors import UserError
from hone.records import Task

SPLITS = ("train", "evaluation")
SHOWN = 200  # characters of an answer that a message shows


class Environment(Protocol):
    """Tasks, and what a completion of one is worth.

    full_marks: the rewards that a gold answer gets; its keys are the names of all rewards.
    A `score` that also takes `completion_ids` is given the tokens of the completion.
    """

    @property
    def full_marks(self) -> Mapping[str, float]:
        """The rewards of a gold answer by name."""
        ...

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of `train` or `evaluation`: the same ones every time."""
        ...

    def score(self, task: Task, completion: str) -> Mapping[str, float | None]:
        """The rewards of a completion by name; None where one is not applicable."""
        ...


def check_gold(environment: Environment, tasks: Sequence[Task]) -> None:
    """Raises UserError for the first task whose gold answer does not score full marks.

    Tasks without a gold answer are passed over. What `score` raises is reported in the same way.
    """
    for task in tasks:
        if task.gold is None:
            continue
        where = f"task {task.index}" + (f" ({task.place})" if task.place else "")
        gold = shortened(task.gold)
        try:
            rewards: Mapping[str, Any] = environment.score(task, task.gold)
        except Exception as error:
            raise UserError(
                f"{where}: scoring its gold answer {gold} raised {type(error).__name__}: {error}"
            ) from error
        for name, wanted in environment.full_marks.items():
            found = rewards.get(name, "nothing")
            if found is None:  # not applicable
                continue
            if found == "nothing" or not math.isclose(found, wanted, rel_tol=1e-9):
                raise UserError(
                    f"{where}: its gold answer {gold} gets {found} of `{name}`; expected {wanted}",
                    hint="mend the row, or leave it out; what it would teach is wrong",
                )


def shortened(text: str) -> str:
    """A text in quotes for a message, cut where it is long."""
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")
