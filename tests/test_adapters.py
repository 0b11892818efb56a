"""Low-rank adapters: the faster forward against PEFT's own, the kinds, and what they merge into."""

import copy

import pytest
import torch
from peft.tuners.lora.layer import LoraLayer

from hone.adapters import add_lora, cast_once, use_fast_forward
from hone.errors import UserError
from hone.quantisation import quantise
from hone.recipe.training import Lora, QLora
from tests.test_models import distance, engine_loss, gradients, joined, plain_loss
from tests.tiny import FOREST, make_model, random_samples


def adapted(name: str, kind=Lora, **settings):
    """A model with adapters whose B is not zero, so that every part of them shows."""
    asked = kind(rank=4, **settings)
    module = make_model(name)
    if isinstance(asked, QLora):
        module = quantise(module, asked.bits, torch.float32, torch.device("cpu"))
    model = joined(module)
    torch.manual_seed(2)
    model.module = add_lora(model.causal, asked)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter_name, parameter in model.trainable():
            if "lora_B" in parameter_name:
                parameter.normal_(std=0.1)
            if "magnitude" in parameter_name:
                parameter.mul_(1.2)
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


def test_only_adapters_are_trained_and_they_are_fp32():
    model = adapted("llama")
    assert all("lora_" in name for name, _ in model.trainable())
    assert {parameter.dtype for _, parameter in model.trainable()} == {torch.float32}


@pytest.mark.parametrize("rslora", [False, True])
def test_the_update_is_scaled_as_the_papers_say(rslora):
    """alpha / r (arXiv:2106.09685) or alpha / sqrt(r) (arXiv:2312.03732), on top of W x."""
    model = adapted("llama", alpha=6, rslora=rslora)
    assert use_fast_forward(model.module) == count_adapters(model)
    layer = model.causal.model.layers[0].mlp.up_proj
    x = torch.randn(3, 32)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    scale = 6 / 2 if rslora else 6 / 4
    expected = x @ layer.base_layer.weight.T + scale * (x @ a.T @ b.T)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "bloom"])
def test_dora_computes_the_papers_weights(name):
    """m (W + s B A) / |W + s B A|, each row by its norm (arXiv:2402.09353, equation 5)."""
    model = adapted(name, dora=True)
    assert use_fast_forward(model.module) == 0
    layers = [layer for layer in model.module.modules() if isinstance(layer, LoraLayer)]
    assert len(layers) == count_adapters(model)
    for layer in layers:
        base = layer.get_base_layer()
        weight = base.weight.T if layer.fan_in_fan_out else base.weight
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        turned = weight + 8 * b @ a
        turned = turned / turned.norm(dim=1, keepdim=True)
        magnitude = layer.lora_magnitude_vector["default"].weight
        x = torch.randn(2, weight.shape[1])
        expected = torch.nn.functional.linear(x, magnitude[:, None] * turned, base.bias)
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
@pytest.mark.parametrize("kind", [{"rslora": True}, {"dora": True}, {"layers": [-1]}])
def test_every_kind_has_the_plain_forwards_loss_and_gradients(name, kind):
    samples = random_samples(4)
    model = adapted(name, **kind)
    plain = adapted(name, **kind)
    plain.causal.set_attn_implementation("eager")
    expected = plain_loss(plain.module, samples)
    expected.backward()
    wanted = gradients(plain.module)
    use_fast_forward(model.module)
    assert engine_loss(model, samples) == pytest.approx(expected.item(), rel=1e-5)
    assert distance(gradients(model.module), wanted) < 1e-4


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", [{"rslora": True}, {"dora": True}, {"layers": [0]}])
def test_merged_is_the_adapter(name, kind):
    model = adapted(name, **kind).module
    model.get_base_model().set_attn_implementation("eager")
    ids = torch.tensor([[5, 9, 13, 7, 22, 41]])
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        with model.disable_adapter():
            without = model(input_ids=ids).logits
        merged = model.merge_and_unload()(input_ids=ids).logits
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4)
    assert (without - expected).abs().max() > 0.1  # the adapter shows


@pytest.mark.parametrize(
    ("layers", "there"), [([0], {0}), ([-1], {1}), ([1, -1, 0], {0, 1}), ("all", {0, 1})]
)
@pytest.mark.parametrize(("name", "blocks"), [("qwen3", "model.layers"), ("gpt2", "transformer.h")])
def test_only_the_chosen_blocks_get_adapters(layers, there, name, blocks):
    model = adapted(name, layers=layers)
    prefixes = [f"base_model.model.{blocks}.{n}." for n in (0, 1)]
    found = {n for n, p in enumerate(prefixes) for name, _ in model.trainable() if p in name}
    assert found == there
    assert len(model.trainable()) == sum(
        sum(p in name for p in prefixes) for name, _ in model.trainable()
    )


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("bits", [4, 8])
def test_on_packed_weights_the_fast_forward_gives_pefts_loss_and_gradients(name, bits):
    """The second computation is PEFT's forward on the same weights, unpacked into plain layers."""
    samples = random_samples(4)
    model = adapted(name, kind=QLora, bits=bits)
    assert use_fast_forward(model.module) == count_adapters(model)
    loss = engine_loss(model, samples)
    found = gradients(model.module)
    plain = adapted(name, kind=QLora, bits=bits)
    for layer in plain.module.modules():
        if isinstance(layer, LoraLayer):
            packed = layer.base_layer
            layer.base_layer = torch.nn.Linear(packed.in_features, packed.out_features)
            layer.base_layer.weight = torch.nn.Parameter(packed.weight, requires_grad=False)
            bias = torch.zeros(packed.out_features) if packed.bias is None else packed.bias
            layer.base_layer.bias = torch.nn.Parameter(bias, requires_grad=False)
    assert loss == pytest.approx(engine_loss(plain, samples), rel=1e-5)
    assert distance(found, gradients(plain.module)) < 1e-5
    unpacked = adapted(name)
    engine_loss(unpacked, samples)
    assert distance(found, gradients(unpacked.module)) > 1e-3


def test_packed_weights_are_not_kept_for_the_way_back():
    """Only activations are kept between forward and backward, never an unpacked weight."""
    model = adapted("llama", kind=QLora)
    use_fast_forward(model.module)
    model.causal.set_attn_implementation("eager")
    shapes = set()
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: shapes.add(tuple(tensor.shape)) or tensor, lambda tensor: tensor
    )
    with hooks:
        model.module(input_ids=torch.arange(3, 14)[None])
    assert shapes and not shapes & {(48, 32), (32, 48), (16, 32), (32, 32), (32, 16)}


def test_layers_that_peft_cannot_adapt_are_refused_in_words() -> None:
    with pytest.raises(UserError, match=r"PEFT cannot adapt all of these layers: .*out_proj"):
        add_lora(make_model("mamba"), Lora())
    add_lora(make_model("mamba"), Lora(targets=["in_proj", "x_proj"]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_factors_that_are_cast_once_give_the_same_numbers(name, dtype):
    model = adapted(name, dropout=0.3)
    model.module.to(dtype)
    for parameter_name, parameter in model.trainable():
        if "lora_" in parameter_name:
            parameter.data = parameter.data.float()
    use_fast_forward(model.module)
    model.module.eval()
    ids = torch.tensor([[3, 4, 5, 6]])
    model.causal.set_attn_implementation("sdpa")
    with torch.no_grad():
        expected = model.module(input_ids=ids).logits
        with cast_once(model.module, dtype):
            assert torch.equal(model.module(input_ids=ids).logits, expected)
        with torch.no_grad():
            for parameter_name, parameter in model.trainable():
                if "lora_B" in parameter_name:
                    parameter.zero_()
        assert not torch.equal(model.module(input_ids=ids).logits, expected), "it is over"
