"""What may be answered to `hone init`, and what it suggests from a look at the data and the model.

Called by `init.py`. A fault is a text that says what is wrong with an answer; None: it is right.
Nobody on the network is asked, and no weights are read.
"""

import copy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hone.errors import UserError, nearest

METHODS = ("sft", "dpo", "pretrain")  # those that learn from the rows of a file
PROFILES = {
    "messages": "chat",
    "conversations": "chat",
    "prompt_completion": "instruction",
    "instruction": "instruction",
}
NO_PROFILE = "none"
SHARE = 0.05  # held out, where nothing else is asked for


@dataclass(frozen=True)
class Found:
    """What a look at data and model gave. format: of the rows, None where it is not known."""

    format: str | None = None
    has_template: bool = False

    @property
    def method(self) -> str:
        """The stage that fits the data."""
        fitting = {"text": "pretrain", "preference": "dpo", "unpaired": "dpo"}
        return fitting.get(self.format or "", "sft")

    def settings(self, method: str) -> dict[str, Any]:
        """What the stage has to say so that it can learn from such rows."""
        return {"loss": "kto"} if (method, self.format) == ("dpo", "unpaired") else {}

    def profile(self, method: str) -> str:
        """The profile that fits the data."""
        return PROFILES.get(self.format or "", NO_PROFILE) if method == "sft" else NO_PROFILE


def look(model: str, data: str) -> Found:
    """What the data and the model say, where they are on this machine; what is odd is noted."""
    return Found(format_of(data), has_template(Path(model).expanduser()))


def method_fault(text: str) -> str | None:
    """Of a stage's method."""
    if text in METHODS:
        return None
    if text == "grpo":
        return (
            "a grpo stage learns from tasks, not from rows; begin with a copy of recipes/grpo.yaml"
        )
    close = nearest(text, METHODS)
    meant = f'did you mean "{close}"?' if close else f"expected {', '.join(METHODS)}"
    return f'found "{text}"; {meant}'


def share_fault(text: str) -> str | None:
    """Of the share that is held out."""
    try:
        right = 0 <= float(text) < 1
    except ValueError:
        right = False
    return None if right else f'found "{text}"; expected a number of at least 0 and below 1'


def profile_fault(text: str) -> str | None:
    """Of a profile's name or file, seen from here."""
    from hone.recipe.profiles import find_profile

    try:
        if text != NO_PROFILE:
            find_profile(text, [Path()])
    except UserError as error:
        return error.message
    return None


def model_fault(text: str) -> str | None:
    """Of the base model."""
    folder = Path(text).expanduser()
    if folder.is_dir() and not (folder / "config.json").is_file():
        return f'"{text}" has no config.json; expected the folder of a model'
    return _place_fault({"model": text}, ("model",))


def data_fault(text: str) -> str | None:
    """Of the data."""
    path = ("stages", 0, "sft", "data", "path")
    return _place_fault({"stages": [{"sft": {"data": {"path": text}}}]}, path)


def _place_fault(recipe: dict[str, Any], path: tuple[str | int, ...]) -> str | None:
    """What is wrong with a path or Hub id at `path`, as the check of a recipe would say it."""
    from hone.recipe.faults import Origin
    from hone.recipe.places import find_places

    given = copy.deepcopy(recipe)
    faults = find_places(recipe, given, {(): Origin("recipe")}, Path.cwd())
    return next((fault.message for fault in faults if fault.path == path), None)


def format_of(data: str) -> str | None:
    """The format of the first row; what is wrong with it is told and does not end the work."""
    if not Path(data).expanduser().exists():
        return None
    from hone.data.formats import recognise
    from hone.data.rows import Row
    from hone.data.sources import open_source
    from hone.recipe.data import Data

    try:
        row = next(open_source(data).rows(), None)
        if isinstance(row, Row):
            found: str = recognise(list(row.values), Data(path=data), None).format
            note(f"the rows of {data} are read as `{found}`")
            return found
        note(f"{data}: {row.message if row else 'there are no rows'}")
    except UserError as error:
        note(f"{data}: {error.message}" + (f"\n  {error.hint}" if error.hint else ""))
    return None


def has_template(model: Path) -> bool:
    """True for a model's folder with a chat template of its own."""
    from hone.files import read_json

    settings = read_json(model / "tokenizer_config.json") or {}
    return (model / "chat_template.jinja").is_file() or bool(settings.get("chat_template"))


def note(text: str) -> None:
    """Tell what does not end the work."""
    print(f"note: {text}", file=sys.stderr)
