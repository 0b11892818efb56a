"""Questions with known answers from a file: exact, contained, or the same number.

Texts are compared after normalisation: Unicode's compatible form (NFKC), lower case, every run of
space one blank, quotation marks around and one full stop behind left out. Numbers are compared as
decimals: 0.50 is 0.5. Where a row lists several answers, any of them is right. Rewards:
`correct`, and with a marker `format`, where it occurs exactly once with something behind it.
"""

import re
import unicodedata
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from hone.data.rows import RowError, kind_of
from hone.environments.numbers import behind, last_number
from hone.environments.tasks import tasks_of
from hone.recipe.rewards import Answers
from hone.records import Task

QUOTES = "\"'`\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}"


class AnswersEnvironment:
    """Rows of a file, each with a question and its answer."""

    def __init__(self, settings: Answers) -> None:
        self.settings = settings
        names = ("correct",) if settings.marker is None else ("correct", "format")
        self.full_marks: Mapping[str, float] = dict.fromkeys(names, 1.0)

    def tasks(self, split: str) -> list[Task]:
        """The rows of a split; raises UserError for a row without question or answer."""
        return tasks_of(self.settings, split, [self.settings.columns.answer], self._gold)

    def score(self, task: Task, completion: str) -> dict[str, float]:
        """`correct`, and `format` with a marker."""
        marker = self.settings.marker
        said = behind(completion, marker)
        wanted = [behind_if_marked(each, marker) for each in self._answers(task.columns)]
        rewards = {"correct": float(any(self._fits(said, each) for each in wanted))}
        if marker is not None:
            rewards["format"] = float(completion.count(marker) == 1 and bool(said.strip()))
        return rewards

    def _fits(self, said: str, wanted: str) -> bool:
        if self.settings.match == "numeric":
            number, right = last_number(said), last_number(wanted)
            if number is None or right is None:
                return False
            return number == right or abs(number - right) <= Decimal(str(self.settings.tolerance))
        said, wanted = normalised(said), normalised(wanted)
        if self.settings.match == "exact":
            return said == wanted
        return bool(re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", said))

    def _answers(self, columns: Mapping[str, Any]) -> list[str]:
        """The right answers of a row; raises RowError for what is none."""
        name = self.settings.columns.answer
        given = columns[name]
        answers = given if isinstance(given, list) else [given]
        for answer in answers:
            if not isinstance(answer, str | int | float | Decimal):
                raise RowError(f"`{name}` is {kind_of(answer)}; expected text or a number")
            if self.settings.match == "numeric" and last_number(str(answer)) is None:
                raise RowError(f"`{name}` is `{answer}`; expected a number (match: numeric)")
            if not normalised(str(answer)):
                raise RowError(f"`{name}` is blank; expected an answer")
        if not answers:
            raise RowError(f"`{name}` is an empty list; expected an answer")
        return [str(answer) for answer in answers]

    def _gold(self, values: Mapping[str, Any]) -> str:
        first, marker = self._answers(values)[0], self.settings.marker
        return first if marker is None or marker in first else f"{marker} {first}"


def behind_if_marked(answer: str, marker: str | None) -> str:
    """An answer without the working that some files have before the marker."""
    return behind(answer, marker) if marker is not None and marker in answer else answer


def normalised(text: str) -> str:
    """What of a text is compared."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return plain.removesuffix(".").strip(f"{QUOTES} ").removesuffix(".").rstrip()
