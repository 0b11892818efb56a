"""LoRA: which layers, the faster forward against PEFT's own, and the gradients of both."""

import copy

import pytest
import torch

from hone.adapters import add_lora, choose_targets, linear_layer_names, use_fast_forward
from hone.errors import UserError
from hone.recipe.schema import Lora
from tests.test_models import distance, engine_loss, gradients, joined
from tests.tiny import FOREST, make_model, random_samples


def adapted(name: str, **settings):
    """A model with adapters whose B is not zero, so that every part of them shows."""
    model = joined(make_model(name))
    model.module = add_lora(model.causal, Lora(rank=4, **settings))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter_name, parameter in model.trainable():
            if "lora_B" in parameter_name:
                parameter.normal_(std=0.1)
    return model


@pytest.mark.parametrize("name", FOREST)
def test_the_fast_forward_gives_pefts_loss_and_gradients(name):
    samples = random_samples(4)
    plain = adapted(name)
    fast = copy.deepcopy(plain)
    fast.head = type(fast.head)(**{**vars(fast.head), "weight_VD": head_weight(fast)})
    assert use_fast_forward(fast.module) == count_adapters(fast)
    expected = engine_loss(plain, samples)
    assert engine_loss(fast, samples) == pytest.approx(expected, rel=1e-5)
    assert distance(gradients(fast.module), gradients(plain.module)) < 1e-5


def head_weight(model):
    return model.causal.get_output_embeddings().weight


def count_adapters(model) -> int:
    return sum("lora_A" in name for name, _ in model.trainable())


def test_dropout_draws_the_same_masks_as_peft():
    samples = random_samples(4)
    plain = adapted("llama", dropout=0.3)
    fast = copy.deepcopy(plain)
    fast.head = type(fast.head)(**{**vars(fast.head), "weight_VD": head_weight(fast)})
    use_fast_forward(fast.module)
    found = []
    for model in (plain, fast):
        model.module.train()
        torch.manual_seed(3)
        found.append((engine_loss(model, samples), gradients(model.module)))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    assert distance(found[1][1], found[0][1]) < 1e-5
    torch.manual_seed(4)
    assert engine_loss(fast, samples) != pytest.approx(found[0][0], rel=1e-5)


def test_gradient_checkpointing_changes_nothing():
    samples = random_samples(4)
    model = adapted("qwen3")
    use_fast_forward(model.module)
    model.module.train()
    expected = engine_loss(model, samples, 40)
    wanted = gradients(model.module)
    model.causal.activation_checkpointing_enable({"use_reentrant": False})
    assert engine_loss(model, samples, 40) == pytest.approx(expected, rel=1e-6)
    assert distance(gradients(model.module), wanted) < 1e-6


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", "down_proj gate_proj k_proj o_proj q_proj up_proj v_proj"),
        ("phi3", "down_proj gate_up_proj o_proj qkv_proj"),
        ("gpt2", "c_attn c_fc c_proj"),
    ],
)
def test_all_linear_layers_are_found_whatever_their_names(name, expected):
    assert linear_layer_names(make_model(name)) == expected.split()


def test_an_unknown_target_names_those_there_are():
    with pytest.raises(UserError, match=r'"q_porj".*did you mean "q_proj"'):
        choose_targets(make_model("llama"), ["q_porj"])


def test_only_adapters_are_trained_and_they_are_fp32():
    model = adapted("llama")
    assert all("lora_" in name for name, _ in model.trainable())
    assert {parameter.dtype for _, parameter in model.trainable()} == {torch.float32}
