"""`hone quickstart`, much shortened, through the real command."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from hone.quickstart.corpus import EVALUATION_QUESTIONS
from hone.quickstart.story import run_quickstart
from tests.workbench import hone

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

README = Path(__file__).parents[2] / "README.md"
SHORT = ["pretrain.epochs=0.005", "sft.epochs=0.03", "threads=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("somewhere") / "quickstart"
    run_quickstart(folder, console=Console(quiet=True), overrides=SHORT)
    return folder


def test_everything_is_where_it_should_be(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["before"]["all"]["total"] == sum(EVALUATION_QUESTIONS.values())
    assert set(summary["after"]) == {"capitals", "arithmetic", "patterns", "all"}
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "runs/quickstart/DONE").exists()


def test_called_again_it_shows_the_same_without_training(folder: Path) -> None:
    before = (folder / "runs/quickstart/stages/2-sft/metrics.jsonl").read_bytes()
    numbers = json.loads((folder / "summary.json").read_text())
    printed = hone(folder.parent, "quickstart", "--folder", "quickstart")
    assert "held-out questions" in printed and "hone chat" in printed
    assert (folder / "runs/quickstart/stages/2-sft/metrics.jsonl").read_bytes() == before
    again = json.loads((folder / "summary.json").read_text())
    assert again["after"] == numbers["after"]


def test_the_chat_command_of_the_readme(folder: Path) -> None:
    line = next(line for line in README.read_text().splitlines() if "hone chat" in line)
    assert line.split()[1:] == ["chat", "quickstart/runs/quickstart"]
    hone(folder.parent, *line.split()[1:])


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    printed = hone(tmp_path, "quickstart", "--folder", ".", expect=2)
    assert "thesis.txt" in printed and "hint:" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
