"""The check `artifacts`: green on what a run has saved, red on anything else in its place."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from hone.checkpoints import list_checkpoints
from hone.runs import Run
from hone.verify.artifacts import attempt, examine_base, examine_companions
from hone.verify.bases import find_change
from hone.verify.subject import Subject
from tests.verify.ground import copy_of, seal
from tests.verify.tampering import (
    Tensors,
    accept,
    edit_json,
    edit_tensors,
    examine,
    flip_bit,
    red,
    told,
)
from tests.workbench import work

SFT, DPO = "stages/1-sft/model", "stages/2-dpo/model"
ADAPTER = "adapter_model.safetensors"


def test_an_untouched_copy_is_green(pair: Run, tmp_path: Path) -> None:
    """The twin of all that follows; the own base's folder is named by its place in the copy."""
    copy = copy_of(pair, tmp_path)
    assert find_change(copy, copy.path / DPO)  # the copy has other names in its configuration
    for folder in (copy.path / DPO, copy.path / SFT):
        accept(copy, folder)
    found = examine(copy)
    assert red(found) == set()
    assert {name: verdict.status for name, verdict in found.items()} == dict.fromkeys(
        found, "passed"
    )
    parts = {part.of: part for part in found["artifacts"].parts}
    assert parts["2-dpo files"].n == 3  # the result, its base, the newest checkpoint
    assert parts["1-sft logits"].n == 16
    assert parts["1-sft logits"].value is not None and parts["1-sft logits"].value < 1e-6


def test_each_stage_of_every_method_is_green(green: Run) -> None:
    """sft, dpo and grpo, whose texts are prompts."""
    (found,) = examine(green, "artifacts").values()
    assert found.status == "passed", found.reason
    assert [part.of for part in found.parts if part.value is not None] == [
        "1-sft logits",
        "2-dpo logits",
        "3-grpo logits",
    ]


@pytest.fixture
def copy(pair: Run, tmp_path: Path) -> Run:
    """A green copy of a run of two stages to tamper with."""
    made = copy_of(pair, tmp_path)
    accept(made, made.path / DPO)
    return made


@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "with a new manifest"])
def test_a_flipped_bit(copy: Run, sealed: bool) -> None:
    """The manifest shows it; one that was written anew is not the one the run has recorded."""
    flip_bit(copy.path / DPO / ADAPTER)
    if sealed:
        seal(copy.path / DPO)
    found = examine(copy)
    assert red(found) == {"artifacts"}
    expected = "another model than the run has saved" if sealed else f"{ADAPTER} differs"
    assert expected in told(found["artifacts"])


@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "with a new manifest"])
def test_a_flipped_bit_in_a_base_of_the_run(copy: Run, sealed: bool) -> None:
    base = copy.path / "stages/2-dpo/base"
    flip_bit(base / "model.safetensors")
    if sealed:
        seal(base)
    found = examine(copy)
    assert red(found) == {"artifacts", "parameters"}
    assert "2-dpo/base" in told(found["artifacts"])
    assert "2-dpo/base" in told(found["parameters"])


def test_the_adapter_of_another_run(copy: Run, green: Run) -> None:
    """It is whole, of the same kind and on the same base."""
    shutil.rmtree(copy.path / SFT)
    shutil.copytree(green.path / SFT, copy.path / SFT)
    (found,) = examine(copy, "artifacts").values()
    reason = told(found)
    assert reason.startswith("1-sft files: stages/1-sft/model: another model than the run has")


def test_another_base_with_the_same_weights(copy: Run, ground: Path, tmp_path: Path) -> None:
    shutil.copytree(ground / "base", tmp_path / "base")
    edit_json(copy.path / SFT / "adapter_config.json", base_model_name_or_path=f"{tmp_path}/base")
    accept(copy, copy.path / SFT)
    found = examine(copy)
    assert red(found) == {"artifacts"}
    assert f"names `{tmp_path}/base`, and it was trained on" in told(found["artifacts"])


def test_a_dropped_stage(copy: Run, ground: Path) -> None:
    """The second adapter on the bare base, without what the first stage has made of it."""
    base = str(ground / "base")
    edit_json(copy.path / DPO / "adapter_config.json", base_model_name_or_path=base)
    accept(copy, copy.path / DPO)
    found = examine(copy)
    assert red(found) == {"artifacts", "stages"}
    assert "2-dpo is nearer to the start of 1-sft" in told(found["stages"])


def remove(name: str) -> Callable[[Path], None]:
    """The edit that takes a file away."""
    return lambda folder: (folder / name).unlink()


def other_ends(folder: Path) -> None:
    edit_json(folder / "generation_config.json", eos_token_id=[1])


def other_template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text() + "\n")


def packed(folder: Path) -> None:
    (folder / "quantization.json").write_text(json.dumps({"schema": 1, "bits": 4}))


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (remove("tokenizer.json"), "no tokenizer is in its folder"),
        (remove("generation_config.json"), "generation_config.json is missing"),
        (remove("hone.json"), "hone.json is missing"),
        (remove("chat_template.jinja"), "chat template is not that of hone.json"),
        (other_template, "chat template is not that of hone.json"),
        (other_ends, "generation_config.json ends with tokens [1]"),
        (packed, "quantization.json says 4 bits, and it was trained beside None"),
        (remove("adapter_config.json"), "adapter_config.json"),
        (remove(ADAPTER), "no weights are in its folder"),
    ],
)
def test_what_belongs_into_a_result(copy: Run, edit: Callable[[Path], None], expected: str) -> None:
    """Even where manifest and record say that the run has saved it so."""
    folder = copy.path / DPO
    edit(folder)
    accept(copy, folder)
    subject = Subject(copy)
    parts = [
        attempt(each.__name__, partial(each, subject, subject.stages[1]))
        for each in (examine_companions, examine_base)
    ]
    reasons = [part.reason for part in parts if part.status == "failed"]
    assert len(reasons) == 1 and expected in reasons[0]


def test_a_missing_tokenizer(copy: Run) -> None:
    """The whole check names it, and all other parts are made."""
    remove("tokenizer.json")(copy.path / DPO)
    (found,) = examine(copy, "artifacts").values()
    assert "the result cannot be used: no tokenizer is in its folder" in told(found)
    assert len(found.parts) == 8
    assert {part.of for part in found.parts if part.status == "failed"} == {
        "2-dpo logits",
        "2-dpo files",
        "2-dpo companions",
    }


def test_a_factor_that_does_not_fit(copy: Run) -> None:
    def transposed(tensors: Tensors) -> Tensors:
        name = sorted(tensors)[0]
        return tensors | {name: tensors[name].T}

    edit_tensors(copy.path / DPO, transposed)
    seal(copy.path / DPO)
    found = examine(copy)
    assert red(found) == {"artifacts", "parameters", "stages", "merged"}


def test_a_factor_of_zeros(copy: Run) -> None:
    def emptied(tensors: Tensors) -> Tensors:
        name = sorted(tensors)[0]
        return tensors | {name: torch.zeros_like(tensors[name])}

    edit_tensors(copy.path / DPO, emptied)
    seal(copy.path / DPO)
    assert red(examine(copy)) == {"artifacts"}


def test_a_broken_checkpoint(copy: Run) -> None:
    newest = list_checkpoints(copy.path / "stages/2-dpo/checkpoints")[-1]
    flip_bit(newest / ADAPTER)
    found = examine(copy)
    assert red(found) == {"artifacts"}
    assert f"{newest.name}: {ADAPTER} differs" in told(found["artifacts"])


def test_a_kill_between_record_and_result_leaves_a_run_that_can_be_verified(copy: Run) -> None:
    """The record comes first: what it speaks of is made again, and recorded again."""
    shutil.rmtree(copy.path / DPO)
    (copy.path / "DONE").unlink()
    copy.announce(copy.path / DPO, "0" * 64)
    work(copy)
    assert find_change(copy, copy.path / DPO) is None
    assert find_change(copy, copy.path / SFT) is None


def test_a_result_without_a_record(copy: Run) -> None:
    path = copy.path / "events.jsonl"
    lines = [line for line in path.read_text().splitlines() if SFT not in line]
    path.write_text("\n".join(lines) + "\n")
    (found,) = examine(copy, "artifacts").values()
    assert "events.jsonl does not say that the run has saved it" in told(found)
