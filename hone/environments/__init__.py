"""Environments: tasks and what their completions are worth, behind one small protocol.

`make_environment` makes the one that a recipe describes; `rewards/` scores with it in processes of
their own. A new one is a file here, a line in `ENVIRONMENTS`, and its settings in
hone/recipe/rewards.py. A person's own is a class: `{type: custom, code: file.py:Class}`.
"""

from importlib import import_module
from typing import Any

from hone.environments.protocol import SPLITS, Environment, check_gold
from hone.errors import UserError, nearest
from hone.own_code import load_own
from hone.recipe.rewards import Custom
from hone.recipe.rewards import Environment as Settings

__all__ = ["ENVIRONMENTS", "SPLITS", "Environment", "check_gold", "make_environment"]

ENVIRONMENTS = {
    "arithmetic": "hone.environments.arithmetic:ArithmeticEnvironment",
    "answers": "hone.environments.answers:AnswersEnvironment",
    "rules": "hone.environments.rules:RulesEnvironment",
    "python": "hone.environments.python_code:PythonEnvironment",
}


def make_environment(settings: Settings) -> Environment:
    """The environment that a recipe describes. Raises UserError for what is wrong with it; tasks
    are read only when asked for.
    """
    if isinstance(settings, Custom):
        environment = _custom(settings)
    else:
        module, _, name = ENVIRONMENTS[settings.type].partition(":")
        environment = getattr(import_module(module), name)(settings)
    names = list(environment.full_marks)
    for name in settings.weights:
        if name not in names:
            close = nearest(name, names)
            meant = f"; did you mean `{close}`?" if close else ""
            raise UserError(
                f"`environment.weights`: there is no reward `{name}` among {', '.join(names)}"
                f"{meant}",
                exit_code=2,
            )
    return environment


def _custom(settings: Custom) -> Environment:
    made: Any = load_own(settings.code, "environment")
    try:
        environment: Environment = made(**settings.settings)
    except Exception as error:
        raise UserError(
            f"environment: `{settings.code}` cannot be made with the settings "
            f"{', '.join(settings.settings) or 'none'}: {type(error).__name__}: {error}",
            exit_code=2,
        ) from error
    missing = [part for part in ("tasks", "score", "full_marks") if not hasattr(environment, part)]
    if missing:
        raise UserError(
            f"environment: `{settings.code}` has no {' and no '.join(missing)}; expected a class "
            "with tasks(split), score(task, completion) and full_marks",
            exit_code=2,
        )
    return environment
