"""The order of the data as a pure function of the step."""

import numpy as np
import pytest

from hone.recipe.schema import BatchSize
from hone.seeds import Order, derive_seed, shuffle

pytestmark = pytest.mark.quick

LENGTHS = np.random.default_rng(0).integers(1, 30, 101).astype(np.int32)


@pytest.mark.parametrize("batch", [BatchSize(samples=8), BatchSize(tokens=64)])
def test_every_epoch_has_every_sample_once(batch: BatchSize) -> None:
    order = Order(LENGTHS, batch, seed=1, stage=0)
    first, second = order.count_steps(1), order.count_steps(2)
    for begin, end in ((0, first), (first, second)):
        seen = np.concatenate([order.samples_of(step) for step in range(begin + 1, end + 1)])
        assert sorted(seen) == list(range(101))
    assert order.epoch_of(first) == 1.0 and order.epoch_of(second) == 2.0


def test_any_step_can_be_asked_for_first() -> None:
    batch = BatchSize(tokens=64)
    forward = Order(LENGTHS, batch, 1, 0)
    steps = [forward.samples_of(step).tolist() for step in range(1, 41)]
    for step in (40, 3, 17):
        assert Order(LENGTHS, batch, 1, 0).samples_of(step).tolist() == steps[step - 1]


def test_token_batches_hold_as_many_whole_samples_as_fit() -> None:
    order = Order(LENGTHS, BatchSize(tokens=40), 1, 0)
    for step in range(1, order.count_steps(1)):
        here, following = order.samples_of(step), order.samples_of(step + 1)
        assert LENGTHS[here].sum() <= 40
        assert LENGTHS[here].sum() + LENGTHS[following[0]] > 40


@pytest.mark.parametrize("epochs", [0.1, 0.5, 1.0, 1.5, 3.0])
def test_parts_of_epochs(epochs: float) -> None:
    order = Order(LENGTHS, BatchSize(samples=10), 1, 0)
    assert order.count_steps(epochs) == {0.1: 2, 0.5: 6, 1.0: 11, 1.5: 17, 3.0: 33}[epochs]


def test_order_depends_on_seed_stage_and_epoch() -> None:
    orders = {
        tuple(shuffle(50, seed, stage, "order", epoch))
        for seed in (0, 1)
        for stage in (0, 1)
        for epoch in (0, 1)
    }
    assert len(orders) == 8


def test_seeds_are_fixed_for_ever() -> None:
    assert derive_seed(0, 1, "dropout", 2) == 6521032170768094425
    assert shuffle(6, 1, "x").tolist() == [4, 2, 5, 0, 1, 3]
