"""All randomness as pure functions: a seed from its parts, and the order of the data from the step.

Nothing random has state, so a resumed run draws what an uninterrupted one would have drawn.
`fit.py` and `stages/` ask here which samples a step has.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from hone.recipe.training import BatchSize

Indices = npt.NDArray[np.int64]


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that is a pure function of its parts: (seed, stage, step, purpose, ...)."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def shuffle(count: int, *parts: int | str) -> Indices:
    """A permutation of 0..count-1, (count,), that is a pure function of `parts`."""
    return np.argsort(_raw(count, *parts), kind="stable").astype(np.int64)


def uniforms(count: int, *parts: int | str) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1), (count,), the n-th of which is a pure function of `parts` and n.

    Multiples of 2^-52: below 1 by so much that a product with a sum of weights stays below the sum.
    """
    return (_raw(count, *parts) >> np.uint64(12)).astype(np.float64) * 2.0**-52


def _raw(count: int, *parts: int | str) -> npt.NDArray[np.uint64]:
    # The raw stream of Philox is fixed for ever, unlike what numpy makes of it.
    key = np.array([derive_seed(*parts), derive_seed(*parts, "2")], dtype=np.uint64)
    return np.random.Philox(key=key).random_raw(count)


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """`total` divided by weights above 0 into whole numbers that add up to it.

    Hamilton's method: every share rounded down, what is left to the largest remainders; of equal
    ones to the first. Computed with fractions, so that no rounding of a machine decides.
    """
    exact = [Fraction(weight) for weight in weights]
    shares = [total * weight / sum(exact) for weight in exact]
    counts = [math.floor(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: counts[i] - shares[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


@dataclass(frozen=True)
class Mixture:
    """How many samples of each data set every epoch has.

    sizes: samples of each set; they stand one set after the other. counts: how many of them each
    set gives to an epoch.

    A set is an endless sequence of shuffles of its samples, of which every epoch takes the next
    `count`: a small set comes several times, each time in another order, a large one goes on where
    it stopped.

    Example: of 4 and 2 samples, with the counts 3 and 3, epoch 0 has 3 of the first set, and of the
    second both and one of them again.
    """

    sizes: tuple[int, ...]
    counts: tuple[int, ...]

    def epoch(self, epoch: int, *parts: int | str) -> Indices:
        """The samples of epoch 0, 1, ..., (sum of counts,), as they are trained; a pure function of
        `parts`, which the shuffles are drawn from.
        """
        begins = [sum(self.sizes[:i]) for i in range(len(self.sizes))]
        drawn = [self._draw(i, epoch, *parts) + begin for i, begin in enumerate(begins)]
        return np.concatenate(drawn)[shuffle(sum(self.counts), *parts, epoch)]

    def _draw(self, index: int, epoch: int, *parts: int | str) -> Indices:
        """The next samples of one set, from 0 within it."""
        size, count = self.sizes[index], self.counts[index]
        begin, end = epoch * count, (epoch + 1) * count
        rounds = range(begin // size, -(-end // size))
        drawn = [shuffle(size, *parts, "set", index, number) for number in rounds]
        first = begin - rounds.start * size
        return np.concatenate([np.arange(0), *drawn])[first : first + count]


@dataclass(frozen=True)
class Order:
    """Which samples each step of a stage has. Batches never cross the end of an epoch.

    lengths: (N,) tokens of each sample that is trained on. seed, stage: what the shuffling depends
    on. mixture: what an epoch of N samples is made of; without one it is every sample once.

    Example: 10 samples in batches of 4 make 3 steps an epoch, of 4, 4 and 2 samples.
    """

    lengths: npt.NDArray[np.int32]
    batch: BatchSize
    seed: int
    stage: int
    mixture: Mixture | None = None

    def samples_of(self, step: int) -> Indices:
        """Positions (into `lengths`) of the samples of step 1, 2, ..."""
        epoch, within = self._place(step)
        order, ends = self._epoch(epoch)
        return order[ends[within - 1] if within else 0 : ends[within]]

    def epoch_of(self, step: int) -> float:
        """Passes over the data after `step` steps; of a mixture, epochs of as many samples."""
        epoch, within = self._place(step)
        return epoch + float(self._epoch(epoch)[1][within]) / len(self.lengths)

    def count_steps(self, epochs: float) -> int:
        """Steps that `epochs` passes take; a part of a pass takes that part of its steps, rounded
        up.
        """
        whole = math.floor(epochs)
        steps = sum(self._steps(epoch) for epoch in range(whole))
        rest = epochs - whole
        return steps + (math.ceil(rest * self._steps(whole) - 1e-9) if rest else 0)

    def _place(self, step: int) -> tuple[int, int]:
        """(epoch, step within it), both from 0."""
        left, epoch = step - 1, 0
        if self.batch.samples is not None:  # every epoch has as many
            return divmod(left, self._steps(0))
        while left >= (steps := self._steps(epoch)):
            left, epoch = left - steps, epoch + 1
        return epoch, left

    @lru_cache(maxsize=4096)  # noqa: B019  # lives as long as its stage
    def _steps(self, epoch: int) -> int:
        if self.batch.samples is not None:
            return -(-len(self.lengths) // self.batch.samples)
        return len(self._epoch(epoch)[1])

    @lru_cache(maxsize=2)  # noqa: B019
    def _epoch(self, epoch: int) -> tuple[Indices, Indices]:
        """The epoch's order, and where each of its steps ends in it."""
        count = len(self.lengths)
        if self.mixture:
            order = self.mixture.epoch(epoch, self.seed, self.stage, "order")
        else:
            order = shuffle(count, self.seed, self.stage, "order", epoch)
        if self.batch.samples is not None:
            ends = np.minimum(np.arange(1, self._steps(epoch) + 1) * self.batch.samples, count)
            return order, ends
        assert self.batch.tokens is not None
        return order, _cut_by_tokens(self.lengths[order], self.batch.tokens)

    def __hash__(self) -> int:
        return id(self)


def _cut_by_tokens(lengths: npt.NDArray[np.int32], tokens: int) -> Indices:
    """Ends of consecutive batches of at most `tokens` tokens; a longer sample stands alone."""
    total = np.cumsum(lengths, dtype=np.int64)
    ends: list[int] = []
    begin = 0
    while begin < len(lengths):
        before = int(total[begin - 1]) if begin else 0
        end = max(int(np.searchsorted(total, before + tokens, side="right")), begin + 1)
        ends.append(end)
        begin = end
    return np.array(ends, dtype=np.int64)
