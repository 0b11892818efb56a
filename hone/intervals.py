"""How sure a mean is: bootstrap intervals, and the sign test.

Used by evaluation, `verify/`, `compare` and plots. Draws are a function of the seed alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hone.seeds import derive_seed

RESAMPLES = 10_000
OUTSIDE = 2.5, 97.5  # per cent: what lies between is the 95 % interval
DRAWN_AT_ONCE = 2**22  # numbers, 32 MB


@dataclass(frozen=True)
class Measure:
    """The mean of `count` values; low and high bound what other questions would give (95 %)."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def is_above_zero(self) -> bool:
        """True where the interval lies above zero."""
        return self.low > 0

    @property
    def is_below_zero(self) -> bool:
        """True where the interval lies below zero."""
        return self.high < 0


def bootstrap(values: Sequence[float], seed: int = 0, resamples: int = RESAMPLES) -> Measure:
    """The mean with its percentile interval (Efron 1979, doi:10.1214/aos/1176344552).

    Values are drawn with replacement, as many as there are, `resamples` times; the interval holds
    the middle 95 % of the means. Where all values are equal it has no width.
    """
    table = np.asarray(values, dtype=np.float64)[:, None]
    return bootstrap_of(table, lambda means: means[..., 0], seed, resamples)


def bootstrap_of(
    table: npt.NDArray[np.float64],
    statistic: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Measure:
    """A statistic of the columns' means, such as a ratio of sums, with its percentile interval.

    table: (N, C), a row for each sample; whole rows are drawn. statistic: from means (..., C) to
    (...).
    """
    count = len(table)
    # The raw stream of Philox is fixed for ever, unlike what numpy makes of it.
    stream = np.random.Philox(key=derive_seed(seed, "bootstrap"))
    found = []
    for begin in range(0, resamples, step := max(1, DRAWN_AT_ONCE // count)):
        times = min(step, resamples - begin)
        drawn = (stream.random_raw(times * count) % np.uint64(count)).reshape(times, count)
        found.append(statistic(table[drawn].mean(axis=1)))
    low, high = np.percentile(np.concatenate(found), OUTSIDE)
    return Measure(float(statistic(table.mean(axis=0))), float(low), float(high), count)


def sign_test(better: int, worse: int) -> float:
    """The probability of at least so many better ones, were better and worse equally likely.

    One-sided; what stayed equal does not count (Dixon & Mood 1946, doi:10.1080/01621459.1946.
    10501898).
    """
    count = better + worse
    at_least = sum(math.comb(count, k) for k in range(better, count + 1))
    return float(at_least / 2**count)
