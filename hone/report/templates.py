"""Pages from Jinja templates: texts of others are escaped, and secrets are not on them."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from hone.concealing import conceal


def open_templates(folder: Path, variables: list[tuple[str, str]]) -> Environment:
    """The templates in a folder. variables: (name, value) of what must not be on a page."""

    def hidden(value: Any) -> Any:
        theirs = isinstance(value, str) and not isinstance(value, Markup)
        return conceal(value, variables) if theirs else value

    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=hidden,
    )
