"""What stands for `${NAME}` in a recipe: kept out of what a run writes, put back on reading.

Called by `runs.py` for its JSON files and logs, by `sampling.py` for the names in saved adapters.
"""

import os
import re
from collections.abc import Callable
from typing import Any

VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
SHORTEST_CONCEALED = 4  # characters; shorter values occur by chance in every text


def variables_in(text: str) -> list[tuple[str, str]]:
    """(name, value) of the environment variables that a recipe's text names, long values first."""
    names = sorted(set(VARIABLE.findall(text)))
    found = [(name, os.environ.get(name, "")) for name in names]
    long_enough = [pair for pair in found if len(pair[1]) >= SHORTEST_CONCEALED]
    return sorted(long_enough, key=lambda pair: -len(pair[1]))


def conceal(text: str, variables: list[tuple[str, str]]) -> str:
    """`text` with the variables' values as `${NAME}` again."""
    for name, value in variables:
        text = text.replace(value, f"${{{name}}}")
    return text


def reveal(text: str) -> str:
    """`text` with `${NAME}` expanded from the environment: what `conceal` hid."""
    return VARIABLE.sub(lambda match: os.environ.get(match[1], match[0]), text)


def mapped(value: Any, change: Callable[[str], str]) -> Any:
    """`value` with `change` applied to every string in it, keys aside."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: mapped(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [mapped(item, change) for item in value]
    return value
