"""`hone quickstart`, much shortened, through the real command."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from hone.intervals import Measure
from hone.quickstart.asking import Evaluation
from hone.quickstart.corpus import EVALUATION_QUESTIONS, write_corpus
from hone.quickstart.questions import KINDS
from hone.quickstart.story import ROWS, run_quickstart, show
from tests.workbench import hone

README = Path(__file__).parents[2] / "README.md"
METHODS = ["pretrain", "sft", "dpo", "grpo"]
SHORT = [
    "pretrain.epochs=0.005",
    "sft.epochs=0.03",
    "dpo.steps=2",
    "grpo.steps=1",
    "grpo.batch.samples=2",
    "verify.samples=4",
    "threads=1",
]
FEW = dict.fromkeys(KINDS, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("somewhere") / "quickstart"
    run_quickstart(folder, console=Console(quiet=True), overrides=SHORT, questions=FEW)
    return folder


@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_everything_is_where_it_should_be(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary["stages"]) == METHODS
    for measures in summary["stages"].values():
        assert set(measures) == set(ROWS)
        assert measures["accuracy"]["count"] == sum(FEW.values())
        assert measures["reward"]["count"] == FEW["arithmetic"]
        for measure in measures.values():
            assert measure["low"] <= measure["mean"] <= measure["high"]
    assert summary["most_reward"] == 1
    assert not summary["verified"]["passed"], "so few steps prove nothing"
    checks = summary["verified"]["checks"]
    assert (checks["artifacts"], checks["masks"], checks["loss"]) == ("passed", "passed", "failed")
    assert "learning" in (folder / "runs/quickstart/report.html").read_text()
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "runs/quickstart/DONE").exists()


@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_called_again_it_asks_without_training(folder: Path) -> None:
    """It says the same again, and prints what it writes."""
    stages = folder / "runs/quickstart/stages"
    before = {path: path.read_bytes() for path in stages.rglob("metrics.jsonl")}
    assert len(before) == len(METHODS)
    first = json.loads((folder / "summary.json").read_text())
    console = Console(file=io.StringIO(), width=120)
    summary = run_quickstart(folder, console=console, questions=FEW)
    assert {path: path.read_bytes() for path in stages.rglob("metrics.jsonl")} == before
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert summary["stages"] == first["stages"]
    printed = console.file.getvalue()
    assert "held-out questions after each stage" in printed and "hone chat" in printed


@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_the_chat_command_of_the_readme(folder: Path) -> None:
    line = next(line for line in README.read_text().splitlines() if "hone chat" in line)
    assert line.split()[1:] == ["chat", "quickstart/runs/quickstart"]
    hone(folder.parent, *line.split()[1:])


@pytest.mark.e2e
def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    printed = hone(tmp_path, "quickstart", "--folder", ".", expect=2)
    assert "thesis.txt" in printed and "hint:" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.quick
def test_the_table_shows_each_measure_of_each_stage(tmp_path: Path) -> None:
    files = write_corpus(tmp_path, 0)
    answers = ["Lima"] * sum(EVALUATION_QUESTIONS.values())
    evaluations = {
        method: Evaluation(
            answers,
            {
                name: Measure(mean, mean - 0.02, mean + 0.03, 100 + row)
                for row, name in enumerate(ROWS)
                for mean in [round(0.1 * column + 0.05 * row + 0.04, 3)]
            },
        )
        for column, method in enumerate(METHODS)
    }
    console = Console(file=io.StringIO(), width=80)
    show(files, evaluations, 2.0, console)
    lines = [line.strip() for line in console.file.getvalue().splitlines()]
    assert next(line for line in lines if "pretrain" in line).split() == [*METHODS, "n"]
    for name, title in ROWS.items():
        shown = next(line for line in lines if line.startswith(title)).removeprefix(title)
        *shares, count = [float(number) for number in re.findall(r"[\d.]+", shown)]
        measures = [evaluations[method].measures[name] for method in METHODS]
        scale = 50 if name == "reward" else 100  # 2 is the most reward there is
        wanted = [scale * each for one in measures for each in (one.mean, one.low, one.high)]
        assert shares == pytest.approx(wanted, abs=0.51)
        assert count == measures[0].count
