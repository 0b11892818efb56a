"""Arithmetic with two whole numbers: tasks made from a seed, answers known.

Rewards: `correct` where the answer is the right number; `format` where it stands as it should,
which is at the end, behind exactly one marker if there is to be one. Whether a pair of numbers is
for training or held out is a pure function of the seed; so no held-out pair is ever trained on.
"""

import random
from collections.abc import Mapping

from hone.environments.numbers import behind, ends_with_number, first_number, last_number
from hone.environments.protocol import SPLITS
from hone.errors import UserError
from hone.recipe.rewards import Arithmetic
from hone.records import Task
from hone.seeds import derive_seed

HELD_OUT_SHARE = 0.1  # of the pairs of numbers, each operation by itself
TRIES = 20  # pairs drawn for each task that is wanted: the held-out ones are every tenth


class ArithmeticEnvironment:
    """Sums, differences, products and quotients."""

    def __init__(self, settings: Arithmetic) -> None:
        self.settings = settings
        self.full_marks: Mapping[str, float] = {"correct": 1.0, "format": 1.0}

    def tasks(self, split: str) -> list[Task]:
        """Different expressions in a mixed order; raises UserError where there are too few."""
        settings = self.settings
        wanted = {"train": settings.train_tasks, "evaluation": settings.evaluation_tasks}[split]
        smallest = 10 ** (settings.digits - 1) if settings.digits > 1 else 0
        numbers = 10**settings.digits - smallest
        space = len(settings.operations) * numbers * numbers
        draw = random.Random(derive_seed(settings.seed, "arithmetic", split))
        found: dict[str, str] = {}
        for drawn in draw.sample(range(space), min(space, TRIES * wanted + 1000)):
            pair, kind = divmod(drawn, len(settings.operations))
            a, b = smallest + pair // numbers, smallest + pair % numbers
            if split == self._split_of(settings.operations[kind], a, b):
                made = EXPRESSIONS[settings.operations[kind]](a, b)
                if made is not None:
                    found.setdefault(*made)
            if len(found) == wanted:
                return [self._task(n, *each) for n, each in enumerate(found.items())]
        raise UserError(
            f"environment: there are {len(found)} arithmetic tasks of {settings.digits} digits for "
            f"`{split}`; expected {wanted}",
            hint=f"environment: {{type: arithmetic, digits: {settings.digits + 1}, ...}}",
            exit_code=2,
        )

    def score(self, task: Task, completion: str) -> dict[str, float]:
        """`correct` and `format`, each 0 or 1."""
        marker = self.settings.marker
        said = behind(completion, marker)
        answer = last_number(said) if marker is None else first_number(said)
        well_formed = ends_with_number(said) and (
            marker is None or (completion.count(marker) == 1 and len(said.split()) == 1)
        )
        return {
            "correct": float(answer is not None and answer == int(task.columns["answer"])),
            "format": float(well_formed),
        }

    def _split_of(self, operation: str, a: int, b: int) -> str:
        drawn = derive_seed(self.settings.seed, "arithmetic", operation, min(a, b), max(a, b))
        return SPLITS[drawn / 2**63 < HELD_OUT_SHARE]

    def _task(self, index: int, expression: str, answer: str) -> Task:
        settings = self.settings
        question = settings.question.replace("{expression}", expression)
        prompt = [{"role": "user", "content": question}] if settings.messages else question
        gold = answer if settings.marker is None else f"{settings.marker} {answer}"
        columns = {"expression": expression, "answer": answer}
        return Task(index, prompt, columns, gold, place=expression)


def _add(a: int, b: int) -> tuple[str, str]:
    return f"{a} + {b}", str(a + b)


def _subtract(a: int, b: int) -> tuple[str, str]:
    return f"{max(a, b)} - {min(a, b)}", str(abs(a - b))


def _multiply(a: int, b: int) -> tuple[str, str]:
    return f"{a} * {b}", str(a * b)


def _divide(a: int, b: int) -> tuple[str, str] | None:
    return (f"{a * b} / {b}", str(a)) if b else None


EXPRESSIONS = {"add": _add, "subtract": _subtract, "multiply": _multiply, "divide": _divide}
