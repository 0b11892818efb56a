"""The bytes of tensors, computed without numbers, against what real tensors hold."""

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from hone.adapters import add_lora, use_fast_forward
from hone.device import Precision
from hone.estimate.phases import run_step, state_bytes, trained_bytes
from hone.estimate.pieces import Pieces
from hone.estimate.shadow import make_shadow, packed_bytes, prepare
from hone.estimate.storages import counted
from hone.forest import count_step
from hone.models import LanguageModel, join_model
from hone.optim import make_optimizer, optimizer_tensors
from hone.quantisation import QuantisedLinear
from hone.recipe.schema import Sft
from hone.recipe.training import SGD, Adafactor, AdamW, AdamW8bit, Full, Lora
from hone.targets import train_blocks
from tests.tiny import FAMILIES, make_model, random_samples

CPU = torch.device("cpu")
FP32 = Precision(torch.float32, torch.float32, "")
SAMPLES = random_samples(6)
PIECES = Pieces(SAMPLES, False, [], [], SAMPLES[:1], [])


class RealBytes(TorchDispatchMode):
    """Counts the storages of real tensors: written apart from what it judges."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        found = function(*args, **(kwargs or {}))
        for each in tree_iter(found):
            if isinstance(each, torch.Tensor):
                storage = each.untyped_storage()
                if storage._cdata not in self.alive:
                    self.alive[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.alive.pop, storage._cdata)
        self.peak = max(self.peak, sum(self.alive.values()))
        return found


def stage(**settings: Any) -> Sft:
    return Sft.model_validate({"data": "a.jsonl", "precision": "fp32"} | settings)


def real_model(name: str, adapter: Any) -> LanguageModel:
    """As `stages/start.py` builds it, with numbers."""
    model = join_model(make_model(name), FP32)
    if isinstance(adapter, Full):
        train_blocks(model.causal, adapter.layers)
    else:
        model.module = add_lora(model.causal, adapter)
        use_fast_forward(model.module)
    return model


def real_peak(model: LanguageModel) -> int:
    """The most bytes of tensors made in forward and backward, gradients included."""
    batch = model.make_batch(SAMPLES, counts=count_step(SAMPLES))
    model.module.train()
    gc.collect()
    with RealBytes() as real, model.laid_out(batch):
        for parameter in model.module.parameters():  # what is there is not made
            real.alive[parameter.untyped_storage()._cdata] = 0
        (-model.scores(batch).logprobs.sum()).backward()
    return real.peak


def shadow_of(name: str, settings: Sft) -> Any:
    with torch.device("meta"):
        from transformers import AutoModelForCausalLM

        meta = AutoModelForCausalLM.from_config(copy.deepcopy(FAMILIES[name]))
    return meta, prepare(meta, settings, FP32, None)


@pytest.mark.parametrize(
    "name", ["llama", "llama-tied", "qwen3", "gemma3", "phi3", "gpt2", "bloom"]
)
@pytest.mark.parametrize("adapter", [Lora(rank=4), Full()], ids=["lora", "full"])
def test_a_step_without_numbers_takes_what_a_real_one_does(name: str, adapter: Any) -> None:
    settings = stage(adapter=adapter)
    real = real_model(name, adapter)
    expected = real_peak(real)
    meta, module = shadow_of(name, settings)
    with counted() as storages:
        model = make_shadow(module, meta, settings, FP32)
        found = run_step(storages, model, PIECES, wants_entropies=False)
        assert model.layout == real.layout
        assert trained_bytes(model) == trained_bytes(real)
        del model
    # Small tensors of the batch itself are made on one side only.
    assert max(found.forward, found.backward) == pytest.approx(expected, rel=0.02, abs=4096)


def test_checkpointing_keeps_less() -> None:
    settings = stage()
    found = {}
    for checkpointing in (False, True):
        own = settings.model_copy(update={"gradient_checkpointing": checkpointing})
        meta, module = shadow_of("llama", own)
        with counted() as storages:
            model = make_shadow(module, meta, own, FP32)
            found[checkpointing] = run_step(storages, model, PIECES, wants_entropies=False)
            del model
    assert found[True].activations < 0.6 * found[False].activations


@pytest.mark.parametrize(
    "optimizer", [AdamW(), SGD(momentum=0.9), SGD(), Adafactor(), AdamW8bit()], ids=repr
)
def test_the_optimizers_state_is_what_it_keeps(optimizer: Any) -> None:
    model = real_model("llama", Full())
    model.module.embed = torch.nn.Parameter(torch.ones(96, 128))  # large enough for 8 bits
    made = make_optimizer(model.module, optimizer)
    for _, parameter in model.trainable():
        parameter.grad = torch.ones_like(parameter)
    made.step()
    kept = optimizer_tensors(made, model.trainable())
    expected = sum(
        tensor.nbytes
        for name, tensor in kept.items()
        if not name.endswith(("|qmap1", "|qmap2", "|step", "|RMS"))
    )
    assert state_bytes([p for _, p in model.trainable()], optimizer) == pytest.approx(
        expected, rel=0.01
    )


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_weights_have_the_bytes_of_bitsandbytes(bits: int) -> None:
    layer = QuantisedLinear(torch.randn(128, 96), None, bits, torch.float32)
    held = layer.packed.nbytes
    if bits == 8:
        held += layer.scales.nbytes
    else:
        nested = layer.scales.state2
        held += sum(
            tensor.nbytes
            for tensor in (layer.scales.absmax, nested.absmax, nested.code, layer.scales.code)
        )
    assert packed_bytes(128, 96, bits) == pytest.approx(held, rel=0.05)
