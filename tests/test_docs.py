"""What the documentation says about the files of the package is what there is."""

import re
from pathlib import Path

import pytest

from hone.recipe.preference import LOSS_FACTS

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[1]
FAMILIES = ("cli", "quickstart", "losses")  # described as a whole


def test_the_architecture_names_every_file_and_no_other() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    layers = text.partition("## Layers")[2].partition("\n## ")[0]
    named = set(re.findall(r"\w+\.py", layers)) - {"commands.py", "test_imports.py"}
    sources = (path.relative_to(ROOT / "hone") for path in (ROOT / "hone").rglob("*.py"))
    there = {path.name for path in sources if path.parts[0] not in FAMILIES}
    assert named == there - {"__init__.py", "__main__.py"}


def test_the_page_of_faults_names_tests_that_there_are() -> None:
    text = (ROOT / "docs" / "faults.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert len(table) >= 13
    for line in table:
        last_cell = line.rstrip("| ").rpartition("|")[2]
        names = re.findall(r"`([\w/]+(?:\.py|/))`", last_cell)
        assert names, line
        assert all((ROOT / "tests" / name).exists() for name in names), line


def test_the_page_of_recipes_lists_the_losses_as_they_are() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text()
    section = text.partition("## Preference stages")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    expected = []
    for name, facts in LOSS_FACTS.items():
        words = [f"`{parameter}` {value:g}" for parameter, value in facts.parameters.items()]
        reference = "yes" if facts.needs_reference else "no"
        expected.append(
            f"| `{name}` | {facts.paper} | {', '.join(words) or 'none'} | {reference} |"
        )
    assert rows == expected
