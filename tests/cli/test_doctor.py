"""`hone doctor` on tiny models in folders: the table, JSON, exit codes, a run's name, own data."""

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from hone.cli.commands import invoke
from hone.doctor.examine import trains_all
from hone.recipe.load import load_recipe
from hone.runs import create_run
from hone.stages.run import run_recipe
from tests.data.tokenizers import CHATML, byte_level
from tests.tiny import make_model

CHATS = [
    {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
    for q, a in (("What is 1 + 1?", "It is 2."), ("Say yes.", "yes"), ("Say no.", "no"))
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model that a person has, with a tokenizer that fits it."""
    tokenizer = byte_level()
    tokenizer.chat_template = CHATML
    model = make_model("llama")
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CHATS))
    return tmp_path


def examine(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> dict:
    """What `hone doctor WORDS --json` printed, by the names of the checks."""
    assert invoke(["doctor", *words, "--json", "--seconds", "5"]) == code
    printed = json.loads(capsys.readouterr().out)
    assert printed["ok"] is (code == 0)
    return {finding["name"]: finding for finding in printed["findings"]}


def test_a_right_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.rglob("*"))
    findings = examine(capsys, str(folder / "model"), "--precision", "bf16")
    assert {finding["status"] for finding in findings.values()} == {"ok", "note"}
    for name in ("forest in fp32", "forest in bf16", "padding", "accumulation", "shared prompts"):
        assert findings[f"{name}: gradients"]["difference"] > 0
        assert findings[f"{name}: gradients"]["seconds"] >= 0
    for name in ("adapter saved", "adapter merged", "resume", "repetition", "template: answers"):
        assert findings[name]["status"] == "ok"
    assert sorted(folder.rglob("*")) == before


def test_the_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["doctor", str(folder / "model"), "--precision", "fp32", "--seconds", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["CHECK", "DIFFERENCE", "LIMIT", "STATUS", "TIME", "COMPARED"]
    assert "a run computes in fp32: asked for" in "\n".join(lines)
    assert lines[-1].endswith("nothing is wrong")


def test_own_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folder / "chat.jsonl"
    findings = examine(capsys, str(folder / "model"), "--data", str(data))
    assert findings["template: answers"]["status"] == "ok"
    assert findings["template: earlier turns"]["status"] == "not applicable"
    data.write_text('{"messages": 5}\n')
    assert invoke(["doctor", str(folder / "model"), "--data", str(data)]) == 1
    assert "no row of" in capsys.readouterr().err


def test_a_broken_template(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = CHATML.replace("<|im_end|>", "")
    (folder / "model" / "chat_template.jinja").write_text(broken)
    findings = examine(capsys, str(folder / "model"), code=1)
    assert findings["template: end"]["status"] == "failed"
    assert findings["forest in fp32: gradients"]["status"] == "ok"


def test_the_result_of_a_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An adapter: it is merged first."""
    recipe = "model: ./model\nstages: [{sft: {data: chat.jsonl, steps: 1, adapter: {rank: 2}}}]\n"
    (folder / "recipe.yaml").write_text(recipe)
    run = create_run(load_recipe(folder / "recipe.yaml"), "first", folder / "runs")
    run_recipe(run, console=Console(quiet=True))
    findings = examine(capsys, "first", "--runs", str(folder / "runs"))
    assert findings["resume"]["status"] == "ok"
    assert findings["template: generation"]["status"] == "ok"


@pytest.mark.quick
def test_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["doctor", str(tmp_path / "none")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert invoke(["doctor", str(tmp_path), "--data", str(tmp_path / "none.jsonl")]) == 2
    assert "there is no data file" in capsys.readouterr().err


@pytest.mark.quick
def test_weights_are_trained_where_their_gradients_fit() -> None:
    model = torch.nn.Linear(1000, 1000, bias=False)
    assert trains_all(model, memory_bytes=64_000_000)
    assert not trains_all(model, memory_bytes=63_000_000)
