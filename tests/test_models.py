"""The engine against transformers' own forwards of single unpadded samples."""

import numpy as np
import pytest
import torch

from hone.device import Precision
from hone.forest import count_step, is_target, leaves, path_to, plan_micro_batches
from hone.losses.sft import next_token
from hone.models import LanguageModel, join_model
from hone.records import Sample
from tests.tiny import (
    FALLBACK,
    FAMILIES,
    FOREST,
    OneFormat,
    make_model,
    random_samples,
    random_trees,
)

LIMIT = {torch.float32: 1e-5, torch.float64: 1e-9}


def joined(module, layout="auto"):
    dtype = module.dtype
    return join_model(module, Precision(dtype, dtype, "for the test"), layout=layout)


def plain_loss(module, samples: list[Sample]) -> torch.Tensor:
    """The mean over all trained tokens, one path at a time, from the model's own logits; the
    second, obvious way.
    """
    total = torch.zeros((), dtype=torch.float64)
    for sample in samples:
        seen = set()
        for leaf in leaves(sample.segments):
            path = path_to(sample.segments, leaf)
            tokens = np.concatenate([sample.segments[i].tokens for i in path])
            logits = module(input_ids=torch.from_numpy(tokens.astype(np.int64))[None]).logits[0]
            logprobs = logits.log_softmax(-1)
            place = 0
            for i in path:
                segment = sample.segments[i]
                for n in np.flatnonzero(is_target(segment, place > 0)):
                    if i not in seen:
                        total = total - logprobs[place + n - 1, int(segment.tokens[n])]
                place += len(segment.tokens)
                seen.add(i)
    return total / count_step(samples).trained_tokens


def engine_loss(model: LanguageModel, samples, budget=10_000) -> float:
    counts = count_step(samples)
    total = 0.0
    padded = model.layout != "forest"
    for indices in plan_micro_batches(samples, budget, padded=padded):
        batch = model.make_batch([samples[i] for i in indices], counts=counts, indices=indices)
        with model.laid_out(batch):
            loss = next_token(model.logprobs(batch), batch).total
            loss.backward()
        total += loss.item()
    return total


def gradients(module) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad(set_to_none=True)
    return found


def distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest relative norm of a difference over all tensors."""
    assert found.keys() == expected.keys()
    # A tensor whose true gradient is zero (a bias softmax cancels) is measured against the whole.
    whole = max(tensor.norm() for tensor in expected.values())
    return max(
        float((found[n] - expected[n]).norm() / max(expected[n].norm(), 1e-3 * whole))
        for n in expected
    )


@pytest.mark.parametrize("trees", [random_samples, random_trees], ids=["samples", "trees"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradients_equal_plain_forwards(name, dtype, trees):
    with OneFormat():
        compare_with_plain_forwards(make_model(name, dtype), name, trees, LIMIT[dtype])


def compare_with_plain_forwards(module, name, trees, limit):
    samples = trees(4)
    expected = plain_loss(module, samples)
    expected.backward()
    wanted = gradients(module)
    model = joined(module)
    assert model.layout == ("forest" if name in FOREST else "padded"), model.layout_reason
    loss = engine_loss(model, samples)
    assert loss == pytest.approx(expected.item(), rel=limit)
    assert distance(gradients(module), wanted) < limit


@pytest.mark.parametrize("name", FALLBACK)
def test_fallback_says_why(name):
    model = joined(make_model(name))
    assert model.layout == "padded"
    assert model.layout_reason


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
def test_any_cut_and_padding_give_the_same_step(name):
    samples = random_samples(8)
    model = joined(make_model(name))
    expected = engine_loss(model, samples)
    wanted = gradients(model.module)
    for budget in (1, 30, 64):
        assert engine_loss(model, samples, budget) == pytest.approx(expected, rel=1e-6)
        assert distance(gradients(model.module), wanted) < 1e-6
    padded = joined(make_model(name), layout="padded")
    assert engine_loss(padded, samples, 64) == pytest.approx(expected, rel=1e-6)
    assert distance(gradients(padded.module), wanted) < 1e-6


def test_a_shifted_mask_is_caught():
    """The negative control: training the trained tokens' neighbours is far outside the limit."""
    module = make_model("llama")
    samples = random_samples(4)
    plain_loss(module, samples).backward()
    wanted = gradients(module)
    shifted = [
        Sample(
            s.index, (type(s.segments[0])(s.segments[0].tokens, np.roll(s.segments[0].trained, 1)),)
        )
        for s in samples
    ]
    engine_loss(joined(module), shifted)
    assert distance(gradients(module), wanted) > 1e-2


def test_a_leak_between_trees_is_caught():
    """The negative control of the probe's limit: one row read as one sequence is far from separate
    forwards.
    """
    module = make_model("llama")
    samples = random_samples(4)
    plain_loss(module, samples).backward()
    wanted = gradients(module)
    merged = np.concatenate([s.segments[0].tokens for s in samples])
    trained = np.concatenate([s.segments[0].trained for s in samples])
    joined_row = [Sample(0, (type(samples[0].segments[0])(merged, trained),))]
    engine_loss(joined(module), joined_row)
    assert distance(gradients(module), wanted) > 1e-2
