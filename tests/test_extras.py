"""The table of extras: what pyproject offers, and the answer where one is missing."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from hone.errors import UserError
from hone.extras import EXTRAS, Extra, check_extra, install_command


@pytest.mark.quick
def test_the_table_has_what_can_be_installed() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert set(EXTRAS) == set(project["optional-dependencies"]) - {"test"}


@pytest.mark.quick
def test_a_missing_extra_is_answered_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXTRAS, "wandb", Extra(("no_such_module",), "nothing"))
    with pytest.raises(UserError, match="`trackers: wandb` needs no_such_module") as caught:
        check_extra("wandb", "`trackers: wandb`")
    assert caught.value.hint == install_command("wandb") == "pip install 'hone-llm[wandb]'"


def test_bitsandbytes_says_nothing_where_nobody_asked_for_it() -> None:
    """PEFT imports it; what a command prints stays its own."""
    code = "import hone.adapters, bitsandbytes"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
