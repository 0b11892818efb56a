"""The chunked projection against log_softmax over all logits."""

import pytest
import torch

import hone.logprobs
from hone.logprobs import Head, compute_logits, compute_logprobs, compute_scores

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


@pytest.mark.quick
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


@pytest.mark.quick
def test_an_improbable_target_keeps_its_logarithm():
    """A probability that rounds to zero has a finite logarithm; taken from the rounded one it would
    be -inf.
    """
    hidden = torch.tensor([[200.0]])
    weight = torch.tensor([[1.0], [0.0]])
    found = compute_logprobs(hidden, torch.tensor([1]), Head(weight))
    assert found.item() == pytest.approx(-200.0)


@pytest.mark.quick
def test_no_position_at_all():
    hidden = torch.zeros(0, 4, requires_grad=True)
    found = compute_logprobs(hidden, torch.zeros(0, dtype=torch.long), Head(torch.randn(7, 4)))
    found.sum().backward()
    assert found.shape == (0,)


@pytest.mark.parametrize("trains", ["nothing", "below", "head"])
@pytest.mark.parametrize("name", HEADS)
def test_entropy_is_that_of_the_softmax(name, trains):
    """-sum p log p of all logits in fp64, whichever gradient is wanted."""
    rule = dict(HEADS[name])
    hidden, weight, offset, targets = operands(torch.float64, rule.pop("bias", False))
    head = Head(weight, offset, **rule)
    logs = compute_logits(hidden, head).log_softmax(-1).detach()
    expected = -(logs.exp() * logs).sum(-1)
    hidden.requires_grad_(trains == "below")
    for part in (weight, offset):
        if part is not None:
            part.requires_grad_(trains == "head")
    found = compute_scores(hidden, targets, head, entropies=True)
    assert found.entropies is not None
    assert not found.entropies.requires_grad
    assert found.logprobs.requires_grad == (trains != "nothing")
    torch.testing.assert_close(found.entropies, expected, rtol=1e-9, atol=1e-9)
    plainly = compute_scores(hidden, targets, head)
    assert plainly.entropies is None
    torch.testing.assert_close(plainly.logprobs, found.logprobs, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_entropy_in_lower_formats(dtype):
    torch.manual_seed(0)
    hidden, weight = 8 * torch.randn(50, 16), torch.randn(300, 16)
    logits = compute_logits(hidden, Head(weight), dtype).double()
    expected = torch.distributions.Categorical(logits=logits).entropy()
    targets = torch.randint(0, 300, (50,))
    found = compute_scores(hidden, targets, Head(weight), dtype, entropies=True).entropies
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    assert expected.max() > 10 * expected.min()  # from sure to unsure


def test_entropy_of_a_certain_token_is_zero():
    head = Head(torch.tensor([[1.0], [0.0]]))
    found = compute_scores(torch.tensor([[200.0]]), torch.tensor([1]), head, entropies=True)
    assert found.entropies.tolist() == [0.0]


@pytest.mark.quick
@pytest.mark.parametrize("trains_head", [False, True], ids=["frozen head", "trained head"])
def test_the_likeliest_token_is_known_where_no_gradient_is_wanted(trains_head):
    hidden, weight, _, targets = operands(torch.float32)
    logits = hidden @ weight.T
    targets = torch.where(torch.arange(len(targets)) % 2 == 0, logits.argmax(-1), targets)
    with torch.no_grad():
        found = compute_scores(hidden, targets, Head(weight.requires_grad_(trains_head)))
    assert torch.equal(found.likeliest, logits.argmax(-1) == targets)
    assert 0 < found.likeliest.sum() < len(targets)
