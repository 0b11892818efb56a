"""`hone runs` and `hone show` tell what stands in run directories, during a run and after it."""

import json
from pathlib import Path

import pytest

from hone.cli.commands import invoke
from hone.errors import UserError
from hone.metrics import MetricsWriter
from hone.recipe.load import load_recipe
from hone.runs import Run, create_run

pytestmark = pytest.mark.quick

RECIPE = """\
model: {architecture: llama, tokenizer: acme/words}
stages:
  - pretrain: {data: text.jsonl, steps: 2, batch: {tokens: 4096}}
  - sft: {data: chat.jsonl, epochs: 3, adapter: {rank: 8}}
"""


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def run(tmp_path: Path, runs: Path) -> Run:
    for name in ("text.jsonl", "chat.jsonl"):
        (tmp_path / name).write_text("{}\n")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return create_run(load_recipe(tmp_path / "recipe.yaml"), "first", runs)


def train(run: Run, index: int, method: str, losses: list[float]) -> None:
    """What a stage leaves: metrics and a model folder."""
    folder = run.stage_folder(index, method)
    with MetricsWriter(folder / "metrics.jsonl") as writer:
        writer.write({"step": 0, "split": "evaluation", "loss": 9.0})
        for step, loss in enumerate(losses, 1):
            writer.write({"step": step, "loss": loss, "tokens": 1000, "step_s": 30.0})
        writer.write({"step": len(losses), "split": "evaluation", "loss": 8.5})
    (folder / "model").mkdir()


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert invoke(arguments) == 0
    return capsys.readouterr().out


def test_no_runs(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "hone run recipe.yaml" in printed(capsys, "runs", "--runs", str(runs))
    assert json.loads(printed(capsys, "runs", "--runs", str(runs), "--json")) == []


def test_runs_tell_state_stage_step_and_loss(
    run: Run, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = printed(capsys, "runs", "--runs", str(runs)).splitlines()
    assert lines[0].split() == ["NAME", "STATE", "STAGE", "STEP", "LOSS", "AGE"]
    assert lines[1].split() == ["first", "created", "-", "-", "-", "0", "s"]
    train(run, 0, "pretrain", [4.0, 3.0])
    train(run, 1, "sft", [2.5])
    with run.attempt():
        run.write_status("running", steps=1200)
        (line,) = printed(capsys, "runs", "--runs", str(runs)).splitlines()[1:]
        assert line.split()[:7] == ["first", "running", "2-sft", "of", "2", "1/1,200", "2.5"]
    (row,) = json.loads(printed(capsys, "runs", "--runs", str(runs), "--json"))
    assert (row["state"], row["step"], row["loss"]) == ("succeeded", 1, 2.5)


def test_show_tells_what_happened_and_what_to_type(
    run: Run, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["show", "first", "--runs", str(runs)]
    assert f"go on: hone resume {run.reference}" in printed(capsys, *arguments)
    train(run, 0, "pretrain", [4.0, 3.0])
    with pytest.raises(UserError), run.attempt():
        raise UserError("`chat.jsonl` has no rows")
    text = printed(capsys, *arguments)
    assert text.startswith("first: failed, attempt 1\n  `chat.jsonl` has no rows\n")
    assert "model  llama" in text
    assert "1 pretrain  data text.jsonl, batch tokens 4096, steps 2, learning_rate 0.001" in text
    assert "2 sft  data chat.jsonl, adapter lora rank 8 alpha 32.0 targets all" in text
    row = next(line for line in text.splitlines() if line.startswith("1-pretrain"))
    assert row.split() == [
        *("1-pretrain", "2", "4", "->", "3"),
        *("loss", "9", "->", "8.5", "2,000", "1", "min"),
    ]
    assert str(run.stage_folder(0, "pretrain") / "model") in text
    assert f"go on: hone resume {run.reference}" in text
    described = json.loads(printed(capsys, *arguments, "--json"))
    assert described["stages"][0]["loss"] == [4.0, 3.0]
    assert described["status"]["state"] == "failed"


def test_show_of_a_finished_run_offers_to_talk_to_it(
    run: Run, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with run.attempt():
        train(run, 0, "pretrain", [4.0])
        assert f"process {run.status()['pid']}" in printed(
            capsys, "show", "first", "--runs", str(runs)
        )
    text = printed(capsys, "show", "first", "--runs", str(runs))
    assert f"talk to it: hone chat {run.reference}" in text
    assert "resume" not in text


def test_an_unknown_run_offers_the_nearest(
    run: Run, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["show"], ["resume"], ["chat"], ["generate", "--prompt", "x"]):
        assert invoke([*words, "frist", "--runs", str(runs)]) == 2
        assert "did you mean `first`?" in capsys.readouterr().err


def test_warnings_and_skipped_steps_are_told(run: Run, runs: Path, capsys) -> None:
    with MetricsWriter(run.stage_folder(0, "pretrain") / "metrics.jsonl") as writer:
        writer.write({"step": 1, "loss": float("nan"), "skipped": 1})
        writer.write({"step": 2, "loss": 2.0})
    for number in range(7):
        run.event("warning", message=f"the disk is full {number}")
    assert invoke(["show", "first", "--runs", str(runs)]) == 0
    printed = capsys.readouterr().out
    assert "7 warnings, the newest 5" in printed
    assert "the disk is full 6" in printed and "the disk is full 1" not in printed
    assert "1-pretrain: 1 steps made no update" in printed
    assert invoke(["show", "first", "--runs", str(runs), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert len(described["warnings"]) == 7 and described["stages"][0]["skipped_steps"] == 1
