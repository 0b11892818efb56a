"""Every stage and every command on a result, with a kill on the way; under 15 min."""

import json
import signal
from pathlib import Path

import pytest

from hone.metrics import read_metrics
from tests.e2e.person import Person, judged
from tests.workbench import fingerprint, results, write_data

pytestmark = [pytest.mark.e2e_full, pytest.mark.timeout(1200)]

RECIPE = """\
model:
  architecture: llama
  config: {hidden_size: 128, intermediate_size: 352, num_hidden_layers: 4, num_attention_heads: 4,
    tie_word_embeddings: true}
  tokenizer: {train_on: [text.jsonl, chat.jsonl], vocabulary: 400}
seed: 3
stages:
  - pretrain:
      data: text.jsonl
      evaluation: {share: 0.1, every: 40}
      batch: {samples: 16}
      steps: 120
      learning_rate: 3e-3
      warmup: 0.05
      checkpoint: {every: 20}
  - sft:
      data: chat.jsonl
      evaluation: {share: 0.1, every: 30}
      batch: {samples: 16}
      steps: 90
      learning_rate: 4e-3
      checkpoint: {every: 10}
  - dpo:
      data: preferences.jsonl
      evaluation: {share: 0.1, every: 10}
      batch: {samples: 8}
      steps: 20
      learning_rate: 2e-4
      checkpoint: {every: 10}
  - grpo:
      environment: {type: arithmetic, question: "What is {expression}?"}
      evaluation: {every: 5, samples: 20}
      batch: {samples: 4}
      group: 6
      completion_tokens: 16
      steps: 10
      learning_rate: 2e-4
      checkpoint: {every: 5}
verify: {}
"""
METHODS = ["pretrain", "sft", "dpo", "grpo"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all tests of this tier work in, one after the other."""
    made = tmp_path_factory.mktemp("full")
    write_data(made)
    rows = [json.loads(line) for line in (made / "chat.jsonl").read_text().splitlines()]
    pairs = [
        {
            "prompt": row["messages"][:1],
            "chosen": row["messages"][1:],
            "rejected": [{"role": "assistant", "content": "I do not know."}],
        }
        for row in rows
    ]
    lines = "".join(json.dumps(row) + "\n" for row in pairs)
    (made / "preferences.jsonl").write_text(lines)
    (made / "recipe.yaml").write_text(RECIPE)
    return made


@pytest.fixture
def tmp_path(folder: Path) -> Path:
    """Where the person of this tier works."""
    return folder


@pytest.fixture
def person(person: Person) -> Person:
    person.all_cores = True
    return person


def test_the_recipe_is_rehearsed(person: Person) -> None:
    found = person.json("check", "recipe.yaml", "--rehearse")
    assert found["ok"]
    assert [stage["method"] for stage in found["rehearsal"]["stages"]] == METHODS


def test_a_run_that_is_killed_twice_ends_in_the_same_bytes(person: Person) -> None:
    """One is killed in its second stage, stopped in its last, and resumed; the other never."""
    stages = person.folder / "runs/first/stages"
    run = ["run", "recipe.yaml", "--name", "first"]
    at = stages / "2-sft/metrics.jsonl"
    assert person.interrupt(*run, at=at, step=25, signum=signal.SIGKILL) == -signal.SIGKILL
    assert person.json("show", "first")["status"]["state"] == "crashed"
    at = stages / "4-grpo/metrics.jsonl"
    stopped = person.interrupt("resume", "first", at=at, step=3, signum=signal.SIGINT)
    assert stopped == 128 + signal.SIGINT
    person.hone("resume", "first", expect=(0, 3))  # 3: trained, and verified with a fault
    assert (person.folder / "runs/first/DONE").exists()

    person.hone("run", "recipe.yaml", "--name", "twin", expect=(0, 3))
    first, twin = (fingerprint(person.folder / "runs" / name) for name in ("first", "twin"))
    assert results(first) == results(twin)


def test_every_stage_has_learned(person: Person, record_property: object) -> None:
    for number, method in enumerate(METHODS, 1):
        rows = read_metrics(person.folder / f"runs/first/stages/{number}-{method}/metrics.jsonl")
        held_out = [row for row in rows if row.get("split") == "evaluation"]
        if method == "grpo":
            assert all(row["reward"] >= 0 for row in held_out)
        else:
            assert held_out[-1]["loss"] < held_out[0]["loss"], method


def test_the_result_is_verified_and_answers(person: Person) -> None:
    judged(person, "first")
    prompt = "What is 3 plus 4?"
    (answer,) = person.json("generate", "first", "--prompt", prompt, "--max-tokens", "12")
    assert answer["completion"].startswith("It is")
    assert person.hone("chat", "first", "--temperature", "0", given=prompt).startswith("It is")
    assert person.json("rollouts", "first", "--limit", "2")


def test_the_run_is_made_again_from_its_lock(person: Person) -> None:
    assert person.json("reproduce", "first", "--name", "again")["same"]


def test_runs_are_reported_and_compared(person: Person) -> None:
    person.hone("report", "first")
    assert (person.folder / "runs/first/report.html").stat().st_size > 10_000
    found = person.json("compare", "first", "again")
    assert found["better"] == found["worse"] == 0
