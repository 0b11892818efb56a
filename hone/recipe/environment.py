"""`${NAME}` in the text of a recipe.

Called by `load.py`. What was expanded goes to the running program alone; files, messages and logs
get the text with the name. `$${NAME}` stands for the text `${NAME}`.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

from hone.recipe.faults import Fault, KeyPath, Origins, origin_of, quoted

_VARIABLE = re.compile(r"\$(\$?)\{([^}]*)(\}?)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def has_variable(text: str) -> bool:
    """True where expanding would change the text."""
    return _VARIABLE.search(text) is not None


def escape(text: str) -> str:
    """The text that expands to `text`."""
    return text.replace("${", "$${")


def expand(
    value: object, origins: Origins, environment: Mapping[str, str] = os.environ
) -> tuple[Any, list[Fault]]:
    """A copy of `value` with the variables in all texts expanded, and a fault for each that cannot.

    A text with a fault stays as it is.
    """
    faults: list[Fault] = []

    def copy(part: object, path: KeyPath) -> object:
        if isinstance(part, dict):
            return {key: copy(inner, (*path, key)) for key, inner in part.items()}
        if isinstance(part, list):
            return [copy(inner, (*path, index)) for index, inner in enumerate(part)]
        if not isinstance(part, str):
            return part
        problem = _find_problem(part, environment)
        if problem is None:
            return _expanded(part, environment)
        faults.append(Fault(origin_of(path, origins), path, problem))
        return part

    return copy(value, ()), faults


def _find_problem(text: str, environment: Mapping[str, str]) -> str | None:
    for match in _VARIABLE.finditer(text):
        escaped, name, closed = match.groups()
        if escaped:
            continue
        if not closed or not _NAME.fullmatch(name):
            found = quoted(match.group())
            return f'found {found}; expected "${{NAME}}", or "$${{" for the text itself'
        if name not in environment:
            return f"{quoted(text)} needs the environment variable {name}, which is not set"
    return None


def _expanded(text: str, environment: Mapping[str, str]) -> str:
    def replace(match: re.Match[str]) -> str:
        return match.group()[1:] if match.group(1) else environment[match.group(2)]

    return _VARIABLE.sub(replace, text)
