"""Groups, schedules and optimizer state."""

from collections.abc import Callable
from pathlib import Path

import bitsandbytes
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from hone.errors import UserError
from hone.extras import EXTRAS, Extra
from hone.optim import (
    describe_cut_warmup,
    make_optimizer,
    make_schedule,
    optimizer_tensors,
    restore_optimizer,
    set_learning_rate,
    warmup_steps,
)
from hone.recipe.data import Data
from hone.recipe.schema import Sft
from hone.recipe.training import SGD, Adafactor, AdamW, AdamW8bit, WarmUp

pytestmark = pytest.mark.quick


def settings(**fields) -> Sft:
    return Sft(data=Data(path="x"), learning_rate=1.0, **fields)


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(5, 4)
        self.linear = torch.nn.Linear(4, 3)
        self.norm = torch.nn.LayerNorm(3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.norm(self.linear(self.embedding(ids)))


def test_only_linear_weights_decay() -> None:
    model = Small()
    optimizer = make_optimizer(model, AdamW(weight_decay=0.5))
    decayed, rest = optimizer.param_groups
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.5, 0.0)
    assert decayed["params"] == [model.linear.weight]
    assert len(rest["params"]) == 4


class Large(Small):
    """With a matrix of more than 4096 weights, whose running means AdamW8bit keeps in 8 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(5, 1500)
        self.linear = torch.nn.Linear(1500, 3)


def steps(model, optimizer, count: int) -> None:
    """Updates on the model's own squares, at a rate of 0.01."""
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.arange(5)).square().sum().backward()
        set_learning_rate(optimizer, 0.01)
        optimizer.step()


RULES = [
    AdamW(betas=(0.8, 0.9)),
    SGD(momentum=0.9),
    SGD(),
    AdamW8bit(weight_decay=0.1),
    Adafactor(weight_decay=0.1),
]


@pytest.mark.parametrize("make", [Small, Large])
@pytest.mark.parametrize("rule", RULES)
def test_a_restored_optimizer_goes_on_the_same(rule, make, tmp_path: Path) -> None:
    one = make()
    first = make_optimizer(one, rule)
    steps(one, first, 3)
    two = make()
    two.load_state_dict(one.state_dict())
    second = make_optimizer(two, rule)
    tensors = optimizer_tensors(first, one.named_parameters())
    save_file(tensors, tmp_path / "state")
    restore_optimizer(second, two.named_parameters(), load_file(tmp_path / "state"))
    again = optimizer_tensors(second, two.named_parameters())
    assert tensors.keys() == again.keys()
    assert all(tensors[key].dtype == again[key].dtype for key in tensors)
    assert all(torch.equal(tensors[key], again[key]) for key in tensors)
    steps(one, first, 3)
    steps(two, second, 3)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


def own_loop(make: Callable[[nn.Module], torch.optim.Optimizer]) -> nn.Module:
    """Three steps as the library's own documentation writes them."""
    model = Large()
    optimizer = make(model)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.arange(5)).square().sum().backward()
        optimizer.step()
    return model


@pytest.mark.parametrize(
    ("rule", "make"),
    [
        (
            AdamW8bit(betas=(0.8, 0.9), epsilon=1e-6),
            lambda model: bitsandbytes.optim.AdamW8bit(
                model.parameters(), lr=0.01, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.0
            ),
        ),
        (
            Adafactor(),
            lambda model: transformers.Adafactor(
                model.parameters(), lr=0.01, scale_parameter=False, relative_step=False
            ),
        ),
    ],
)
def test_updates_are_those_of_the_library(rule, make) -> None:
    model = Large()
    steps(model, make_optimizer(model, rule), 3)
    expected = own_loop(make).state_dict()
    start = Large().state_dict()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected[name]), name
        assert not torch.equal(parameter, start[name])


def test_adafactor_is_the_papers() -> None:
    """Algorithm 4 of arXiv:1804.04235 with a given rate, written out for one matrix."""
    model = nn.Linear(6, 4, bias=False)
    weight = model.weight.detach().clone()
    optimizer = make_optimizer(model, Adafactor(weight_decay=0.1))
    rows, columns = torch.zeros(4), torch.zeros(6)
    for step in (1, 2, 3):
        gradient = torch.randn(4, 6)
        model.weight.grad = gradient.clone()
        set_learning_rate(optimizer, 0.01)
        optimizer.step()
        decay = 1 - step**-0.8
        squared = gradient.square() + 1e-30
        rows = decay * rows + (1 - decay) * squared.sum(1)
        columns = decay * columns + (1 - decay) * squared.sum(0)
        update = gradient / (rows[:, None] * columns / rows.sum()).sqrt()
        update = update / max(1.0, update.square().mean().sqrt().item())
        weight = weight - 0.1 * 0.01 * weight - 0.01 * update
        torch.testing.assert_close(model.weight.detach(), weight, rtol=1e-5, atol=1e-6)


def test_running_means_of_8_bits_are_near_those_of_32() -> None:
    models = Large(), Large()
    optimizers = [
        make_optimizer(model, rule)
        for model, rule in zip(models, (AdamW8bit(), AdamW()), strict=True)
    ]
    for model, optimizer in zip(models, optimizers, strict=True):
        steps(model, optimizer, 3)
    packed = optimizers[0].state[models[0].linear.weight]
    assert packed["state1"].dtype == packed["state2"].dtype == torch.uint8
    start = Large().state_dict()
    for (name, found), (_, exact) in zip(*(m.named_parameters() for m in models), strict=True):
        assert (found - exact).norm() < 0.1 * (exact - start[name]).norm(), name


def test_without_bitsandbytes_the_answer_is_how_to_get_it(monkeypatch) -> None:
    monkeypatch.setitem(EXTRAS, "bitsandbytes", Extra(("no_such_module",), ""))
    with pytest.raises(UserError, match=r"`optimizer.type: adamw_8bit` needs") as caught:
        make_optimizer(Small(), AdamW8bit())
    assert caught.value.hint == "pip install 'hone-llm[bitsandbytes]'"


def test_warmup_rises_to_the_full_rate_and_is_not_zero_at_step_1() -> None:
    rate = make_schedule(settings(schedule="constant", warmup=3), 10)
    assert [rate(step) for step in (1, 2, 3, 4, 10)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_schedules_fall_from_the_full_rate_towards_zero() -> None:
    linear = make_schedule(settings(schedule="linear"), 4)
    assert [linear(step) for step in (1, 2, 3, 4)] == [1.0, 0.75, 0.5, 0.25]
    cosine = make_schedule(settings(schedule="cosine"), 4)
    assert cosine(1) == 1.0 and cosine(3) == pytest.approx(0.5) and cosine(4) > 0


def test_warmup_as_a_share() -> None:
    rate = make_schedule(settings(schedule="constant", warmup=0.5), 10)
    assert rate(5) < 1.0 and rate(6) == 1.0


@pytest.mark.parametrize(
    ("steps", "at_most", "total", "expected"),
    [
        (100, 0.1, 70, 7),
        (100, 0.1, 79, 7),
        (100, 0.1, 1000, 100),
        (100, 0.1, 2000, 100),
        (100, 0.29, 100, 29),
        (5, 0.1, 9, 0),
        (0, 0.5, 10, 0),
        (3, 0.99, 3, 2),
    ],
)
def test_a_warmup_is_cut_to_its_share(steps, at_most, total, expected) -> None:
    capped = settings(schedule="constant", warmup=WarmUp(steps=steps, at_most=at_most))
    plain = settings(schedule="constant", warmup=expected)
    assert warmup_steps(capped, total) == expected
    rate, same = make_schedule(capped, total), make_schedule(plain, total)
    assert [rate(step) for step in range(1, total)] == [same(step) for step in range(1, total)]
    assert (describe_cut_warmup(capped, total) is None) == (expected == steps)
    assert describe_cut_warmup(plain, total) is None


def test_what_is_said_of_a_cut_warmup() -> None:
    said = describe_cut_warmup(settings(warmup=WarmUp(steps=100)), 70)
    assert said == "warm-up: 7 steps, 10 % of the stage's 70, instead of 100"


def test_a_warmup_as_long_as_the_stage_is_refused() -> None:
    with pytest.raises(UserError, match="warm-up"):
        make_schedule(settings(warmup=10), 10)
