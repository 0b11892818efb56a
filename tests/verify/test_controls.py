"""The negative controls, end to end: what is wrong turns its checks red, and all others stay as
they are.

Each is the run `green`, on which everything is green, with one thing gone wrong: a stage trained
again in another way, or a file changed behind Hone's back.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from hone.files import write_json
from hone.runs import Run
from hone.verify.examine import CHECKS, verify
from hone.verify.verdicts import FAILED, NOT_APPLICABLE, PASSED
from tests.verify.ground import copy_of, read_rows, variant, write_rows
from tests.verify.short import mix_answers, short_run
from tests.verify.tampering import accept, flip_bit
from tests.workbench import work

SAMPLES = 24
NOT_MADE = {"resume"}  # only with --resume: test_resume.py


def red(run: Run) -> set[str]:
    """The checks that fail; no other may have become one that does not apply."""
    verdicts = verify(run)
    found = {verdict.name: verdict.status for verdict in verdicts}
    assert set(found) == set(CHECKS)
    return {name for name, status in found.items() if status == FAILED}


def again(green: Run, folder: Path, stage: int, *, stages: int = 3, **changes: Any) -> Run:
    """A copy of `green` whose stages from `stage` (from 1) on are trained again, with changes to
    the settings of that one; with `stages` stages in all.
    """
    copy = copy_of(green, folder, samples=SAMPLES)
    resolved, lock = copy.resolved(), json.loads((copy.path / "lock.json").read_text())
    (settings,) = (each for each in resolved["stages"][stage - 1].values() if each is not None)
    settings |= changes
    resolved["stages"] = resolved["stages"][:stages]
    write_json(copy.path / "recipe.resolved.json", resolved)
    for number in range(stage, 4):
        lock["stages"].pop(str(number))
    write_json(copy.path / "lock.json", lock)
    for place in copy.stage_folders()[stage - 1 :]:
        shutil.rmtree(place)
    (copy.path / "DONE").unlink()
    work(copy)
    return copy


def test_the_green_twin(green: Run, tmp_path: Path) -> None:
    """Nothing is wrong with it, and every check applies but those that say why not."""
    copy = copy_of(green, tmp_path, samples=SAMPLES)
    status = {verdict.name: verdict.status for verdict in verify(copy)}
    assert {name for name, each in status.items() if each == PASSED} >= {
        "artifacts",
        "loss",
        "learning",
        "parameters",
        "stages",
        "masks",
        "merged",
        "forgetting",
        "rewards",
    }
    assert {name for name, each in status.items() if each == NOT_APPLICABLE} <= {"resume", "memory"}
    found = json.loads((copy.path / "verify" / "verify.json").read_text())
    assert found["passed"] and not (set(status) - {check["name"] for check in found["checks"]})


def test_a_stage_trained_again_is_green(green: Run, tmp_path: Path) -> None:
    """What is done below to a stage is wrong because of its change alone."""
    assert red(again(green, tmp_path, 3)) == set()


def test_a_learning_rate_of_0(workshop: Path) -> None:
    rates = {f"{method}__learning_rate": 0 for method in ("sft", "dpo", "grpo")}
    steps = {f"{method}__steps": 1 for method in ("sft", "dpo", "grpo")}
    run = variant(workshop, "still", verify={"samples": SAMPLES}, **rates, **steps)
    assert red(run) == {"loss", "learning", "parameters", "stages", "rewards"}


def test_shuffled_labels(green: Run, workshop: Path) -> None:
    """A stage on top of the first one, with the answers of other questions."""
    mix_answers(workshop)
    known = str(green.path / "stages/1-sft/model")
    assert red(short_run(workshop, "shuffled", known, steps=16)) == {"loss", "learning"}


def test_an_adapter_of_another_run(green: Run, workshop: Path, tmp_path: Path) -> None:
    """All its files, manifest included: it is whole, and of the same base. What it says is another
    matter; it was trained for a few steps.
    """
    other = variant(workshop, "other", "seed=8", "sft.steps=20", dpo__steps=1, grpo__steps=1)
    copy = copy_of(green, tmp_path, samples=SAMPLES)
    result = copy.path / "stages/3-grpo/model"
    shutil.rmtree(result)
    shutil.copytree(other.path / "stages/3-grpo/model", result)
    assert red(copy) == {"artifacts", "learning", "rewards", "stages"}


def test_evaluation_rows_copied_from_training(green: Run, tmp_path: Path, ground: Path) -> None:
    rows = read_rows(ground / "dpo.jsonl")[:SAMPLES]
    write_rows(tmp_path / "copied.jsonl", rows)
    evaluation = {"data": {"path": str(tmp_path / "copied.jsonl")}, "every": 8}
    assert red(again(green, tmp_path, 2, stages=2, evaluation=evaluation)) == {"learning"}


def test_a_bit_of_the_base(green: Run, tmp_path: Path, ground: Path) -> None:
    """The run stands on a base of the test's own; the bit is changed when all is done."""
    copy = copy_of(green, tmp_path, samples=SAMPLES)
    shutil.copytree(ground / "base", tmp_path / "base")
    for path in copy.path.rglob("*.json"):
        path.write_text(path.read_text().replace(str(ground / "base"), str(tmp_path / "base")))
    write_json(copy.path / "recipe.resolved.json", copy.resolved() | {"model": f"{tmp_path}/base"})
    for stage in copy.stage_folders():
        for folder in (*(stage / "checkpoints").iterdir(), stage / "model"):
            accept(copy, folder)
    flip_bit(tmp_path / "base" / "model.safetensors")
    assert red(copy) == {"parameters"}


def test_a_dropped_stage(green: Run, tmp_path: Path, workshop: Path) -> None:
    """The second stage began at the base; its result was put where the run has its own."""
    text = (workshop / "recipe.yaml").read_text()
    head, _, rest = text.partition("  - sft:")
    alone = head + "  - dpo:" + rest.partition("  - dpo:")[2].partition("  - grpo:")[0]
    (workshop / "recipe.yaml").write_text(
        alone.replace("beta:", "adapter: {rank: 16, alpha: 32}\n      beta:")
    )
    dropped = variant(workshop, "dropped")
    copy = again(green, tmp_path, 2, stages=2)
    result = copy.path / "stages/2-dpo/model"
    shutil.rmtree(result)
    shutil.copytree(dropped.path / "stages/1-dpo/model", result)
    accept(copy, result)
    assert red(copy) == {"forgetting", "stages"}


def test_a_swapped_chat_template(green: Run, tmp_path: Path) -> None:
    """The result answers as if it had been trained with another one."""
    copy = copy_of(green, tmp_path, samples=SAMPLES)
    result = copy.path / "stages/3-grpo/model"
    rendering = json.loads((result / "hone.json").read_text())
    other = rendering["template"].replace("assistant", "model")
    assert other != rendering["template"]
    (result / "hone.json").write_text(json.dumps(rendering | {"template": other}))
    (result / "chat_template.jinja").write_text(other)
    accept(copy, result)
    assert red(copy) == {"masks"}


def test_a_constant_reward(green: Run, tmp_path: Path) -> None:
    rewards = [
        {"function": str(Path(green.read_lock_json()["recipe"]["folder"]) / "reward.py:same")}
    ]
    assert red(again(green, tmp_path, 3, rewards=rewards, steps=2)) == {
        "learning",
        "parameters",
        "rewards",
        "stages",
    }
