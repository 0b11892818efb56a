"""The way of a first day, with a tiny new model and nothing from outside; under 30 s."""

import json
import signal

import pytest

from tests.e2e.person import Person, verdicts_of
from tests.workbench import NEW_MODEL, write_data

pytestmark = [pytest.mark.e2e_workflow, pytest.mark.timeout(120)]

BASE = "stages:\n  - pretrain: {data: text.jsonl, steps: 20, batch: {samples: 8}}\n"
MODEL = "runs/base/stages/1-pretrain/model"


def test_from_init_to_verify(person: Person) -> None:
    write_data(person.folder)
    (person.folder / "base.yaml").write_text(NEW_MODEL + BASE)
    person.hone("run", "base.yaml", "--name", "base")

    person.hone("init", "--model", MODEL, "--data", "chat.jsonl", "--steps", "40", "--yes")
    assert person.json("check", "recipe.yaml")["ok"]

    metrics = person.folder / "runs/first/stages/1-sft/metrics.jsonl"
    settings = ["threads=1", "sft.checkpoint.every=5"]
    run = ["run", "recipe.yaml", "--name", "first", *settings]
    stopped = person.interrupt(*run, at=metrics, step=10, signum=signal.SIGTERM)
    assert stopped == 128 + signal.SIGTERM
    assert person.json("show", "first")["status"]["state"] == "stopped"
    person.hone("resume", "first", expect=(0, 3))
    verdicts_of(person, "first")

    shown = person.json("show", "first")
    assert shown["status"]["state"] == "succeeded"
    assert {run["name"] for run in person.json("runs")} == {"base", "first"}
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert any("resumed_from" in row for row in rows)
    losses = [row["loss"] for row in rows if "loss" in row and "split" not in row]
    assert losses[-1] < losses[0]

    prompt = "What is 3 plus 4?"
    (answer,) = person.json("generate", "first", "--prompt", prompt, "--max-tokens", "8")
    assert answer["prompt"] == prompt
    person.hone("remove", "base", "--yes", expect=(0, 2))
