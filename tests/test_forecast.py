"""What a stage will take: memory before the weights are loaded, against what tensors hold."""

import pytest
import torch

from hone.errors import UserError
from hone.forecast import check_memory
from hone.optim import make_optimizer, optimizer_tensors
from hone.recipe.schema import Sft
from hone.recipe.training import SGD, Adafactor, AdamW, AdamW8bit, Full, Lora, QLora
from tests.tiny import make_model

CPU = torch.device("cpu")


def needed(**settings: object) -> int:
    """The least limit that is not refused, found by halving."""
    model, stage = make_model("llama"), Sft.model_validate({"data": "a.jsonl"} | settings)
    refused, enough = 0, 2**40
    while enough - refused > 1:
        middle = (refused + enough) // 2
        try:
            check_memory(model, stage, CPU, middle)
            enough = middle
        except UserError:
            refused = middle
    return enough


@pytest.mark.parametrize(
    "optimizer", [AdamW(), SGD(), Adafactor(), AdamW8bit()], ids=lambda each: each.type
)
def test_full_weights_against_what_training_holds(optimizer) -> None:
    """Never more than weights, gradients and state really are, and most of it."""
    model = make_model("llama").requires_grad_(True)
    made = make_optimizer(model, optimizer)
    model(input_ids=torch.ones(1, 4, dtype=torch.long)).logits.sum().backward()
    made.step()
    state = sum(
        tensor.numel() * tensor.element_size()
        for tensor in optimizer_tensors(made, model.named_parameters()).values()
    )
    weights = sum(4 * parameter.numel() for parameter in model.parameters())
    held = 2 * weights + state
    assert 0.4 * held < needed(optimizer=optimizer, adapter=Full()) <= held


def test_frozen_weights_are_counted_in_their_format() -> None:
    count = sum(parameter.numel() for parameter in make_model("llama").parameters())
    assert needed(adapter=Lora(), precision="fp32") == 4 * count
    assert needed(adapter=Lora(), precision="bf16") == 2 * count
    assert needed(adapter=QLora(bits=4)) == count // 2


def test_the_refusal_names_both_sizes() -> None:
    stage = Sft.model_validate({"data": "a.jsonl", "adapter": Full()})
    with pytest.raises(UserError, match=r"take at least .* kB, and the run may hold 1 kB"):
        check_memory(make_model("llama"), stage, CPU, 1000)
