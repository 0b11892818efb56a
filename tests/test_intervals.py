"""Intervals and the sign test against second computations."""

import math
import random

import numpy as np
import pytest

from hone.intervals import bootstrap, bootstrap_of, sign_test

pytestmark = pytest.mark.quick


def test_the_interval_holds_the_middle_of_resampled_means() -> None:
    draw = random.Random(1)
    values = [float(draw.random() < 0.3) for _ in range(80)]
    means = sorted(sum(draw.choices(values, k=80)) / 80 for _ in range(5000))
    found = bootstrap(values)
    assert (found.mean, found.count) == (pytest.approx(sum(values) / 80), 80)
    assert found.low == pytest.approx(means[round(0.025 * 5000)], abs=0.015)
    assert found.high == pytest.approx(means[round(0.975 * 5000)], abs=0.015)


def test_the_interval_is_about_two_standard_errors_wide_on_each_side() -> None:
    draw = random.Random(2)
    values = [draw.gauss(3, 2) for _ in range(400)]
    spread = math.sqrt(sum((value - sum(values) / 400) ** 2 for value in values) / 400)
    found = bootstrap(values)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * spread / math.sqrt(400), rel=0.05)


def test_the_same_values_have_the_same_interval() -> None:
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    assert bootstrap(values) == bootstrap(values)
    assert bootstrap(values, seed=1) != bootstrap(values[:4], seed=1)
    assert bootstrap([1.0] * 5) == bootstrap([1.0] * 5, seed=3)  # nothing varies, no width


def test_a_ratio_of_sums_is_of_samples_drawn_whole() -> None:
    """The values of one sample belong together: where they are proportional, nothing varies."""
    draw = random.Random(3)
    sizes = [draw.random() + 1 for _ in range(50)]
    table = np.array([(2 * size, size) for size in sizes])
    found = bootstrap_of(table, lambda means: means[..., 0] / means[..., 1])
    assert (found.mean, found.low, found.high) == (pytest.approx(2),) * 3
    apart = bootstrap(table[:, 0]).low / bootstrap(table[:, 1]).high
    assert apart < 1.9


def test_many_resamples_are_drawn_in_parts_as_at_once() -> None:
    values = np.random.default_rng(0).normal(size=2000)
    found = bootstrap(values)
    assert found.low < found.mean < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 / math.sqrt(2000), rel=0.1)


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (5, 0), (7, 3), (3, 7), (10, 10)])
def test_the_sign_test_counts_the_outcomes_of_coins(better: int, worse: int) -> None:
    count = better + worse
    outcomes = [bin(each).count("1") >= better for each in range(2**count)]
    assert sign_test(better, worse) == pytest.approx(sum(outcomes) / 2**count)
