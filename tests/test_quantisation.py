"""Packed weights: what they unpack to, their products, and that they are always the same bytes."""

from pathlib import Path

import pytest
import torch

from hone.device import Precision
from hone.errors import UserError
from hone.extras import EXTRAS, Extra
from hone.models import join_model, read_quantised, read_weights
from hone.quantisation import (
    QuantisedLinear,
    count_weights,
    quantise,
    quantised_bits,
    read_quantisation,
    write_quantisation,
)
from tests.tiny import FAMILIES, make_model

CPU = torch.device("cpu")
SHAPES = [(48, 32), (33, 17), (64, 64), (3, 200), (5, 1)]


def unpacked_nf4(layer: QuantisedLinear) -> torch.Tensor:
    """The second way: two numbers of a byte, their value in NF4's table, times the block's scale,
    which is itself a number of a table times a scale plus the mean (arXiv:2305.14314, section 3).
    """
    state, size = layer.scales, layer.num_weights
    outer = state.state2
    scales = (
        outer.code[state.absmax.long()] * outer.absmax.repeat_interleave(256)[: len(state.absmax)]
    )
    scales = scales + state.offset
    packed = layer.packed.flatten().long()
    values = state.code[torch.stack([packed >> 4, packed & 15], dim=1).flatten()[:size]]
    return (values * scales.repeat_interleave(64)[:size]).view(layer.out_features, -1)


@pytest.mark.parametrize("shape", SHAPES)
def test_4_bits_unpack_to_what_the_paper_says(shape):
    """Rows shorter than a block, among others."""
    torch.manual_seed(0)
    weight = torch.randn(shape)
    layer = QuantisedLinear(weight, None, 4, torch.float32)
    torch.testing.assert_close(layer.weight, unpacked_nf4(layer))
    assert (layer.weight - weight).norm() < 0.15 * weight.norm()
    assert layer.packed.numel() == -(-weight.numel() // 2)


@pytest.mark.parametrize("shape", SHAPES)
def test_8_bits_are_127_steps_of_each_rows_largest(shape):
    torch.manual_seed(0)
    weight = torch.randn(shape).half().float()
    layer = QuantisedLinear(weight, None, 8, torch.float32)
    step = weight.abs().amax(1, keepdim=True) / 127
    torch.testing.assert_close(layer.weight, (weight / step).round() * step, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_and_gradients_are_those_of_the_unpacked_weight(bits, dtype):
    torch.manual_seed(0)
    layer = QuantisedLinear(torch.randn(24, 40), torch.randn(24), bits, dtype)
    plain = torch.nn.Linear(40, 24, dtype=dtype)
    plain.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    x = torch.randn(2, 3, 40, dtype=dtype)
    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    grad = torch.randn(2, 3, 24, dtype=dtype)
    for module, at in ((layer, mine), (plain, other)):
        module(at).backward(grad)
    assert torch.equal(layer(x), plain(x)) and layer.weight.dtype == dtype
    assert torch.equal(mine.grad, other.grad)
    assert layer.training and torch.equal(layer(x), layer.eval()(x))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_probed_with_packed_layers(name, bits):
    """The layout is the one that the model has with its own weights, and head and norms stay."""
    plain = make_model(name)
    expected = join_model(make_model(name), Precision(torch.float32, torch.float32, ""))
    packed = quantise(make_model(name), bits, torch.float32, CPU)
    model = join_model(packed, Precision(torch.float32, torch.float32, ""))
    assert model.layout == expected.layout
    assert quantised_bits(packed) == bits and quantised_bits(plain) is None
    assert type(packed.get_output_embeddings()) is torch.nn.Linear
    assert (
        count_weights(packed) == count_weights(plain) > sum(p.numel() for p in packed.parameters())
    )


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_weights_depend_on_the_files_alone(bits, tmp_path: Path):
    """Not on the format of the arithmetic, and not on the time."""
    make_model("llama", torch.bfloat16).save_pretrained(tmp_path)
    models = [
        read_quantised(str(tmp_path), bits, dtype, CPU)
        for dtype in (torch.float32, torch.float32, torch.bfloat16)
    ]
    packed = [
        torch.cat([m.packed.flatten() for m in model.modules() if isinstance(m, QuantisedLinear)])
        for model in models
    ]
    assert torch.equal(packed[0], packed[1]) and torch.equal(packed[0], packed[2])
    for model, dtype in zip(models, (torch.float32, torch.float32, torch.bfloat16), strict=True):
        assert {p.dtype for p in model.parameters()} == {dtype}
    rotary = [model.model.rotary_emb.inv_freq for model in models]
    assert torch.equal(rotary[0], rotary[2])


def test_logits_are_near_those_of_the_base_and_nearer_with_more_bits(tmp_path: Path):
    make_model("llama").save_pretrained(tmp_path)
    ids = torch.tensor([[5, 9, 13, 7, 22, 41]])
    with torch.no_grad():
        exact = read_weights(str(tmp_path), torch.float32)(input_ids=ids).logits
        errors = [
            (read_quantised(str(tmp_path), bits, torch.float32, CPU)(input_ids=ids).logits - exact)
            for bits in (8, 4)
        ]
    assert 0 < errors[0].norm() < 0.1 * exact.norm() < 10 * errors[1].norm()
    assert errors[0].norm() < 0.3 * errors[1].norm()


def test_what_the_base_was_packed_to_is_written_beside_an_adapter(tmp_path: Path):
    write_quantisation(make_model("llama"), tmp_path)
    assert read_quantisation(tmp_path) is None and not list(tmp_path.iterdir())
    write_quantisation(quantise(make_model("llama"), 8, torch.float32, CPU), tmp_path)
    assert read_quantisation(tmp_path) == 8


def test_without_the_library_the_answer_is_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(EXTRAS, "bitsandbytes", Extra(("no_such_module",), ""))
    with pytest.raises(UserError, match=r"`adapter.type: qlora` needs no_such_module") as caught:
        quantise(make_model("llama"), 4, torch.float32, CPU)
    assert caught.value.hint == "pip install 'hone-llm[bitsandbytes]'"
