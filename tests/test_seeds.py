"""The order of the data as a pure function of the step."""

import itertools
import random
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from hone.recipe.training import BatchSize
from hone.seeds import Mixture, Order, apportion, derive_seed, shuffle, uniforms

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


def test_whole_numbers_by_largest_remainder() -> None:
    assert apportion(10, [1, 1, 1]) == [4, 3, 3]
    assert apportion(7, [3, 1, 1]) == [4, 2, 1], "4.2, 1.4 and 1.4: the first of equal remainders"
    assert apportion(100, [0.7, 0.2, 0.1]) == [70, 20, 10]
    draw = random.Random(0)
    for _ in range(200):
        total, weights = (
            draw.randint(0, 99),
            [draw.random() + 0.01 for _ in range(draw.randint(1, 6))],
        )
        counts = apportion(total, weights)
        shares = [total * weight / sum(weights) for weight in weights]
        assert sum(counts) == total
        assert all(abs(count - share) < 1 for count, share in zip(counts, shares, strict=True))


def slow_mixture(mixture: Mixture, epochs: int, *parts: int | str) -> list[list[int]]:
    """The epochs of a mixture, sample by sample: every set is an iterator that never ends."""

    def endless(index: int) -> Iterator[int]:
        for number in itertools.count():
            for sample in shuffle(mixture.sizes[index], *parts, "set", index, number).tolist():
                yield sum(mixture.sizes[:index]) + sample

    sets = [endless(index) for index in range(len(mixture.sizes))]
    found = []
    for epoch in range(epochs):
        drawn = [
            next(one) for one, count in zip(sets, mixture.counts, strict=True) for _ in range(count)
        ]
        found.append([drawn[i] for i in shuffle(len(drawn), *parts, epoch)])
    return found


@pytest.mark.parametrize(
    ("sizes", "counts"),
    [
        ((4, 2), (3, 3)),
        ((7,), (7,)),
        ((5, 40, 3), (30, 15, 3)),
        ((1, 90), (45, 46)),
        ((8, 8), (15, 1)),
    ],
)
def test_a_mixture_is_what_endless_shuffles_give(
    sizes: tuple[int, ...], counts: tuple[int, ...]
) -> None:
    mixture = Mixture(sizes, counts)
    expected = slow_mixture(mixture, 12, 3, 1, "order")
    assert [mixture.epoch(epoch, 3, 1, "order").tolist() for epoch in range(12)] == expected
    assert mixture.epoch(9, 3, 1, "order").tolist() == expected[9]
    assert mixture.epoch(9, 4, 1, "order").tolist() != expected[9] or sum(counts) < 3
    seen = Counter(sample for epoch in expected for sample in epoch)
    for index, size in enumerate(sizes):
        mine = range(sum(sizes[:index]), sum(sizes[:index]) + size)
        assert sum(seen[sample] for sample in mine) == 12 * counts[index]
        assert max(seen[i] for i in mine) - min(seen[i] for i in mine) <= 1, "evenly repeated"


@pytest.mark.parametrize("batch", [BatchSize(samples=8), BatchSize(tokens=64)])
def test_steps_of_a_mixture_can_be_asked_for_in_any_order(batch: BatchSize) -> None:
    mixture = Mixture((11, 90), (60, 41))
    order = Order(LENGTHS, batch, 1, 0, mixture)
    last = order.count_steps(3)
    steps = [order.samples_of(step).tolist() for step in range(1, last + 1)]
    assert list(itertools.chain(*steps)) == list(
        itertools.chain(*slow_mixture(mixture, 3, 1, 0, "order"))
    )
    for step in (last, 3, last // 2):
        assert Order(LENGTHS, batch, 1, 0, mixture).samples_of(step).tolist() == steps[step - 1]
    assert order.epoch_of(last) == 3.0


def test_uniform_numbers_are_a_function_of_parts_and_place() -> None:
    numbers = uniforms(10_000, 0, "sample", 3)
    assert numbers.tolist()[:5] == uniforms(5, 0, "sample", 3).tolist()
    assert numbers.tolist()[:5] != uniforms(5, 0, "sample", 4).tolist()
    assert 0 <= numbers.min() < 0.001 and 0.999 < numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 4 * (1 / 12 / 10_000) ** 0.5  # four standard errors
    assert len(uniforms(0, 1)) == 0
