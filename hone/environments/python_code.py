"""Python code as an answer, run against the tests of its row.

The code is the last fenced block of a completion, or all of it where nothing is fenced. Rewards:
`passed` for the tests, `format` for a fenced block. Code that raises, hangs or wants too much has
simply not passed; where the sandbox itself fails the scoring has failed, which is no zero.
"""

import re
from collections.abc import Mapping
from typing import Any

from hone.data.rows import RowError, kind_of
from hone.environments.sandbox import Limits, check_sandbox, run_tests
from hone.environments.tasks import tasks_of
from hone.recipe.node import size_bytes
from hone.recipe.rewards import PythonCode
from hone.records import Task

_FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)


class PythonEnvironment:
    """Rows of a file, each with what is asked and its tests."""

    def __init__(self, settings: PythonCode) -> None:
        self.settings = settings
        self.full_marks: Mapping[str, float] = {"passed": 1.0, "format": 1.0}
        memory_bytes = size_bytes(settings.memory)
        self.limits = Limits(settings.run_s, memory_bytes, settings.allow_network)
        check_sandbox(self.limits)

    def tasks(self, split: str) -> list[Task]:
        """The rows of a split; raises UserError for a row without prompt or tests."""
        columns = self.settings.columns
        needed = [column for column in (columns.tests, columns.gold) if column is not None]
        return tasks_of(self.settings, split, needed, self._gold)

    def score(self, task: Task, completion: str) -> dict[str, float]:
        """`passed` and `format`."""
        blocks = _FENCED.findall(completion)
        results = run_tests(
            blocks[-1] if blocks else completion, self._tests(task.columns), self.limits
        )
        passed = sum(results) / len(results)
        return {
            "passed": passed if self.settings.grade == "share" else float(all(results)),
            "format": float(bool(blocks)),
        }

    def _gold(self, values: Mapping[str, Any]) -> str | None:
        self._tests(values)
        if self.settings.columns.gold is None:
            return None
        code = str(values[self.settings.columns.gold])
        return code if _FENCED.search(code) else f"```python\n{code}\n```"

    def _tests(self, columns: Mapping[str, Any]) -> list[str]:
        """The tests of a row; raises RowError for what is none."""
        name = self.settings.columns.tests
        given = columns[name]
        tests = given if isinstance(given, list) else [given]
        for test in tests:
            if not isinstance(test, str):
                raise RowError(f"`{name}` is {kind_of(test)}; expected code, or a list of it")
            if not test.strip():
                raise RowError(f"`{name}` is blank; expected code that raises for wrong answers")
        if not tests:
            raise RowError(f"`{name}` is an empty list; expected at least one test")
        return tests
