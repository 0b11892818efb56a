"""The chunked projection against log_softmax over all logits."""

import pytest
import torch

import hone.logprobs
from hone.logprobs import Head, compute_logits, compute_logprobs

pytestmark = pytest.mark.quick

HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.25},
    "softcap": {"softcap": 3.0},
    "temperature": {"temperature": 0.5},
    "all": {"bias": True, "scale": 2.0, "softcap": 5.0, "temperature": 1.5},
}


def operands(dtype: torch.dtype, bias: bool = False):
    torch.manual_seed(0)
    hidden = torch.randn(700, 16, dtype=dtype, requires_grad=True)
    weight = torch.randn(hone.logprobs.CHUNK_ELEMENTS // 300, 16, dtype=dtype, requires_grad=True)
    offset = torch.randn(len(weight), dtype=dtype, requires_grad=True) if bias else None
    return hidden, weight, offset, torch.randint(0, len(weight), (700,))


def plain(hidden, weight, offset, targets, scale=1.0, softcap=None, temperature=1.0):
    logits = torch.nn.functional.linear(hidden, weight, offset) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return (logits / temperature).log_softmax(-1).gather(1, targets[:, None])[:, 0]


@pytest.mark.parametrize("trains_head", [True, False])
@pytest.mark.parametrize("name", ["plain", "all"])
def test_values_and_gradients(name, trains_head):
    rule = dict(HEADS[name])
    hidden, weight, offset, targets = operands(torch.float64, rule.pop("bias", False))
    leaves = [t for t in (hidden, weight, offset) if t is not None and (trains_head or t is hidden)]
    if not trains_head:
        weight, offset = weight.detach(), None if offset is None else offset.detach()
    expected = plain(hidden, weight, offset, targets, **rule)
    upstream = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected @ upstream, leaves)
    found = compute_logprobs(hidden, targets, Head(weight, offset, **rule))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    logits = compute_logits(hidden, Head(weight, offset, **rule))
    chosen = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(chosen, expected, rtol=1e-10, atol=1e-10)
    for one, two in zip(torch.autograd.grad(found @ upstream, leaves), wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", HEADS)
def test_small_heads(name):
    rule = dict(HEADS[name])
    torch.manual_seed(1)
    hidden = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 4, dtype=torch.float64)
    offset = torch.randn(11, dtype=torch.float64) if rule.pop("bias", False) else None
    targets = torch.tensor([0, 10, 3, 3, 7])
    head = Head(weight, offset, **rule)
    assert torch.autograd.gradcheck(lambda h: compute_logprobs(h, targets, head), hidden)


def test_an_improbable_target_keeps_its_logarithm():
    """A probability that rounds to zero has a finite logarithm; taken from the rounded one it would
    be -inf.
    """
    hidden = torch.tensor([[200.0]])
    weight = torch.tensor([[1.0], [0.0]])
    found = compute_logprobs(hidden, torch.tensor([1]), Head(weight))
    assert found.item() == pytest.approx(-200.0)


def test_no_position_at_all():
    hidden = torch.zeros(0, 4, requires_grad=True)
    found = compute_logprobs(hidden, torch.zeros(0, dtype=torch.long), Head(torch.randn(7, 4)))
    found.sum().backward()
    assert found.shape == (0,)
