"""The check `parameters`: where a stage started is derived again, and what moved is told apart."""

import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from hone.runs import Run
from hone.verify.parameters import has_moved
from tests.verify.conftest import copy_of_ground
from tests.verify.ground import copy_of, variant
from tests.verify.tampering import Tensors, accept, edit_tensors, examine, flip_bit, red, told
from tests.workbench import NEW_MODEL

SHORT = """
model: BASE
seed: 7
threads: 1
stages:
  - sft:
      data: sft.jsonl
      precision: fp32
      steps: 3
      learning_rate: 0.01
      FIRST
  - sft:
      data: sft.jsonl
      precision: fp32
      steps: 3
      learning_rate: RATE
      SECOND
"""
LORA = "adapter: {rank: 4}"
# What stages may train, one after the other, and the tensors of each that can move.
KINDS = {
    "continued": (*2 * ("adapter: {rank: 16, alpha: 32}",), 28, 28),  # on an adapter
    "stacked": (LORA, "adapter: {rank: 2, alpha: 8, before: stack, targets: [q_proj]}", 28, 4),
    "dora": (*2 * ("adapter: {rank: 4, dora: true, rslora: true}",), 42, 42),
    "qlora": (*2 * ("adapter: {type: qlora, rank: 4}",), 28, 28),
    "added": (
        f"{LORA}\n      add_tokens: ['<new>']",
        f"{LORA}\n      add_tokens: ['<other>']",
        30,
        30,
    ),
    "blocks": ("adapter: {type: full, layers: [1]}", LORA, 9, 28),
    "full": (LORA, "adapter: {type: full}", 28, 21),
}


def make(
    folder: Path, name: str, first: str, second: str, base: str = "base", rate: float = 0.01
) -> Run:
    """A run of two short stages. rate: of the second one."""
    values = {"BASE": base, "FIRST": first, "SECOND": second, "RATE": str(rate)}
    text = SHORT
    for place, value in values.items():
        text = text.replace(place, value)
    (folder / "recipe.yaml").write_text(text)
    return variant(folder, name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_learning_rate_of_zero_moves_nothing_of_any_kind(
    workshop: Path, green: Run, kind: str
) -> None:
    """The first stage is the green twin. That nothing moved in the second shows that its start is
    derived to the last bit.
    """
    first, second, *tensors = KINDS[kind]
    base = str(green.path / "stages/1-sft/model") if kind == "continued" else "base"
    run = make(workshop, kind, first, second, base=base, rate=0)
    found = examine(run)
    assert red(found) == {"parameters", "stages"}, found
    trained, still, *bases = found["parameters"].parts
    assert (trained.of, trained.status, trained.n) == ("1-sft", "passed", tensors[0])
    assert trained.value is not None and trained.value > 0.8
    assert (still.of, still.status, still.value, still.n) == ("2-sft", "failed", 0, tensors[1])
    assert {part.status for part in bases} == {"passed"}
    assert "2-sft changed nothing" in told(found["stages"])
    assert told(found["parameters"]).endswith("did not move")


@pytest.fixture(scope="module")
def short(ground: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of two short stages with one adapter, on a base of its own."""
    folder = copy_of_ground(ground, tmp_path_factory.mktemp("short"))
    (folder / "base").unlink()
    shutil.copytree(ground / "base", folder / "base")
    return make(folder, "short", LORA, LORA)


def test_a_bit_of_the_base(short: Run, tmp_path: Path) -> None:
    """Size and time stamp are what they were; the other checks stay green, before and after."""
    weights = short.path.parents[1] / "base" / "model.safetensors"
    assert red(examine(short)) == set()
    flip_bit(weights)
    try:
        found = examine(short)
        assert red(found) == {"parameters"}
        assert f"`{weights}` was" in told(found["parameters"])
    finally:
        flip_bit(weights)
    assert red(examine(short, "parameters")) == set()


def test_a_bit_of_a_frozen_block(workshop: Path) -> None:
    """Where chosen blocks are trained, the rest of the result is that of the start."""
    run = make(workshop, "blocks", "adapter: {type: full, layers: [1]}", LORA)
    assert red(examine(run, "parameters")) == set()
    result = run.path / "stages/1-sft/model"

    def nudged(tensors: Tensors) -> Tensors:
        tensors["model.layers.0.mlp.up_proj.weight"][0, 0] += 1e-6
        return tensors

    edit_tensors(result, nudged, "model.safetensors")
    accept(run, result)
    (found,) = examine(run, "parameters").values()
    assert "model.layers.0.mlp.up_proj.weight should not have moved" in told(found)


def test_factors_that_stayed_zero(short: Run, tmp_path: Path) -> None:
    """Half of the tensors moved, the first factors, and the adapter changes nothing."""
    copy = copy_of(short, tmp_path)
    folder = copy.path / "stages/1-sft/model"

    def emptied(tensors: Tensors) -> Tensors:
        return {n: torch.zeros_like(t) if "lora_B" in n else t for n, t in tensors.items()}

    edit_tensors(folder, emptied)
    accept(copy, folder)
    found = examine(copy)
    assert red(found) == {"parameters", "stages"}
    assert found["parameters"].value == 0.5
    assert "1-sft changed nothing" in told(found["stages"])


def test_tensors_that_were_not_trained(short: Run, tmp_path: Path) -> None:
    copy = copy_of(short, tmp_path)
    folder = copy.path / "stages/2-sft/model"

    def halved(tensors: Tensors) -> Tensors:
        return {name: t for name, t in tensors.items() if "layers.0" in name}

    edit_tensors(folder, halved)
    accept(copy, folder)
    (found,) = examine(copy, "parameters").values()
    assert "of the result are not what the stage trains" in told(found)


def test_a_base_of_the_hub(ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found in the cache, also by the name that the adapter has for it."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    place, commit = tmp_path / "hub" / "models--acme--tiny", "a" * 40
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    shutil.copytree(ground / "base", place / "snapshots" / commit)
    folder = copy_of_ground(ground, tmp_path)
    run = make(folder, "hub", LORA, LORA, base="acme/tiny")
    assert red(examine(run)) == set()
    flip_bit(place / "snapshots" / commit / "model.safetensors")
    assert red(examine(run)) == {"parameters"}


def test_a_new_model_with_whole_weights(workshop: Path) -> None:
    """Nothing to merge, one stage; the model that was made for the run has to stay as it was."""
    stage = "stages:\n  - pretrain: {data: text.jsonl, steps: 2, precision: fp32}\n"
    (workshop / "recipe.yaml").write_text(NEW_MODEL + stage)
    run = variant(workshop, "new")
    found = examine(run)
    assert {name: each.status for name, each in found.items()} == {
        "artifacts": "passed",
        "parameters": "passed",
        "stages": "not_applicable",
        "merged": "not_applicable",
    }
    flip_bit(run.path / "base" / "model.safetensors")
    found = examine(run)
    assert red(found) == {"artifacts", "parameters"}
    assert "base: model.safetensors differs" in told(found["parameters"])


@pytest.mark.quick
def test_rounding_is_no_movement() -> None:
    tensor = torch.linspace(-1, 1, 100)
    assert not has_moved(tensor, tensor)
    assert not has_moved(tensor, tensor * (1 + 1e-7))
    assert has_moved(tensor, tensor * (1 + 1e-5))
    assert has_moved(torch.zeros(3), torch.full((3,), 1e-12))
    assert not has_moved(torch.zeros(3), torch.zeros(3))
    assert not has_moved(tensor, tensor * float("nan"))
