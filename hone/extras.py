"""What is installed only where somebody wants it: the extras, what each adds, and how to get it.

`import_extra` is how every optional package is imported, on use; `hone info` prints the table.
"""

import importlib.util
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from hone.errors import UserError


@dataclass(frozen=True)
class Extra:
    """modules: what has to be importable. adds: what a recipe can do with it, in a few words."""

    modules: tuple[str, ...]
    adds: str


EXTRAS = {
    "tensorboard": Extra(("tensorboard",), "trackers: [tensorboard]"),
    "wandb": Extra(("wandb",), "trackers: [wandb]"),
    "mlflow": Extra(("mlflow", "sqlalchemy", "alembic"), "trackers: [mlflow]"),
    "bitsandbytes": Extra(
        ("bitsandbytes",), "adapter: {type: qlora} and optimizer: {type: adamw_8bit}"
    ),
    "jsonschema": Extra(
        ("jsonschema", "referencing"), "environment: {type: rules, rules: [{type: json}]}"
    ),
    "lm_eval": Extra(("lm_eval",), "tasks of the field: lm_eval --model hf, docs/evaluation.md"),
}


def is_installed(extra: str) -> bool:
    """True where every module of the extra can be found; none of them is imported."""
    return all(importlib.util.find_spec(module) for module in EXTRAS[extra].modules)


def install_command(extra: str) -> str:
    """What a person types to get the extra."""
    return f"pip install 'hone-llm[{extra}]'"


def check_extra(extra: str, wish: str) -> None:
    """Raises UserError with the command that installs the extra, unless it is there.

    wish: what of the recipe needs it, as the message begins: `adapter.type: qlora`.
    """
    missing = [name for name in EXTRAS[extra].modules if not importlib.util.find_spec(name)]
    if missing:
        raise UserError(
            f"{wish} needs {' and '.join(missing)}, which is not installed",
            hint=install_command(extra),
            exit_code=2,
        )


def import_extra(module: str, extra: str, wish: str) -> ModuleType:
    """Import `module` of an extra; raises UserError as `check_extra` does."""
    check_extra(extra, wish)
    return import_module(module)
