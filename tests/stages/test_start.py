"""Where a stage starts: adapters continued, merged before another one, and full weights."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from hone.adapters import add_lora
from hone.device import Precision
from hone.models import read_weights, save_model
from hone.recipe.schema import Full, Lora
from hone.stages.start import Start, build_model
from tests.tiny import make_model

FP32 = Precision(torch.float32, torch.float32, "for the test")
IDS = torch.tensor([[5, 9, 13, 7, 22, 41]])


@pytest.fixture
def chain(tmp_path: Path) -> tuple[Path, Path, torch.Tensor]:
    """A base folder, an adapter folder on it, and the logits of both together."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    make_model("llama").save_pretrained(base)
    model = add_lora(read_weights(str(base), torch.float32), Lora(rank=4))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    save_model(model, adapter)
    return base, adapter, logits(model)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def build(start: Start, adapter: Lora | Full, folder: Path):
    return build_model(
        start,
        None,
        adapter,
        folder=folder,
        precision=FP32,
        device=torch.device("cpu"),
        layout="padded",
        seed=(0, 1),
    )


def test_the_same_adapter_is_continued(chain, tmp_path: Path) -> None:
    base, adapter, expected = chain
    model = build(Start.at(str(adapter)), Lora(rank=4), tmp_path / "stage")
    torch.testing.assert_close(logits(model.module), expected)
    assert not (tmp_path / "stage" / "base").exists()
    assert model.module.peft_config["default"].base_model_name_or_path == str(base)


def test_another_adapter_stands_on_the_merged_model_and_names_it(chain, tmp_path: Path) -> None:
    _, adapter, expected = chain
    model = build(Start.at(str(adapter)), Lora(rank=8), tmp_path / "stage")
    torch.testing.assert_close(logits(model.module), expected, rtol=1e-4, atol=1e-4)
    merged = tmp_path / "stage" / "base"
    assert model.module.peft_config["default"].base_model_name_or_path == str(merged)
    torch.testing.assert_close(
        logits(read_weights(str(merged), torch.float32)), expected, rtol=1e-4, atol=1e-4
    )


def test_full_weights_start_from_the_merged_model(chain, tmp_path: Path) -> None:
    base, adapter, expected = chain
    model = build(Start.at(str(adapter)), Full(), tmp_path / "stage")
    torch.testing.assert_close(logits(model.module), expected, rtol=1e-4, atol=1e-4)
    assert all(parameter.requires_grad for parameter in model.module.parameters())
    # The negative control: a chain that dropped the adapter is far away.
    dropped = logits(read_weights(str(base), torch.float32))
    assert (dropped - expected).abs().max() > 0.1


def test_fresh_adapters_are_drawn_from_the_seed(chain, tmp_path: Path) -> None:
    base, _, _ = chain
    models = [build(Start.at(str(base)), Lora(rank=4), tmp_path / "stage") for _ in range(2)]
    one, two = (dict(model.trainable()) for model in models)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_saving_twice_gives_the_same_bytes(chain, tmp_path: Path) -> None:
    _, adapter, _ = chain
    model = PeftModel.from_pretrained(read_weights(str(chain[0]), torch.float32), str(adapter))
    save_model(model, tmp_path / "again")
    for path in sorted(adapter.iterdir()):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
