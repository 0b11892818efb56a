"""Groups, schedules and optimizer state."""

import pytest
import torch

from hone.errors import UserError
from hone.optim import (
    describe_cut_warmup,
    make_optimizer,
    make_schedule,
    optimizer_tensors,
    restore_optimizer,
    set_learning_rate,
    warmup_steps,
)
from hone.recipe.schema import SGD, AdamW, Data, Sft, WarmUp

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


@pytest.mark.parametrize("rule", [AdamW(betas=(0.8, 0.9)), SGD(momentum=0.9), SGD()])
def test_a_restored_optimizer_goes_on_the_same(rule) -> None:
    def steps(model, optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            model(torch.arange(5)).square().sum().backward()
            set_learning_rate(optimizer, 0.01)
            optimizer.step()

    one = Small()
    first = make_optimizer(one, rule)
    steps(one, first, 3)
    two = Small()
    two.load_state_dict(one.state_dict())
    second = make_optimizer(two, rule)
    tensors = {k: v.clone() for k, v in optimizer_tensors(first, one.named_parameters()).items()}
    restore_optimizer(second, two.named_parameters(), tensors)
    steps(one, first, 3)
    steps(two, second, 3)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


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
