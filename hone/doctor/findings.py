"""A check, what came of it, and how far apart two computations are.

A check compares two ways to compute the same thing, given as functions; `run_check` times it and
turns whatever happens into a `Finding`. The checks themselves stand in the other files of this
folder, and `examine.py` says in which order they are made.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch

from hone.errors import UserError
from hone.models import PROBE_LIMIT, first_line, relative_distance

Result = TypeVar("Result")
Gradients = dict[str, torch.Tensor]

OK, OVER, FAILED, LEFT_OUT, NOTE = "ok", "over", "failed", "not applicable", "note"

# Gradients go through every layer twice and the worst tensor counts, not the whole: measured up to
# 2.5 times the distance of the log-probabilities (docs/log.md).
GRADIENT_FACTOR = 3

# A tensor whose true gradient is zero (a bias that a softmax cancels) is rounding alone; it is
# measured against this share of the whole gradient.
SMALLEST_SHARE = 1e-2


class NotApplicableError(Exception):
    """The check has no meaning for this model; the message says why."""


@dataclass(frozen=True)
class Check:
    """Something to measure. compared: the two computations, in words. limit: the largest difference
    that passes; None where it is only told.
    """

    name: str
    compared: str
    limit: float | None
    measure: Callable[[], float]


@dataclass(frozen=True)
class Finding:
    """What came of a check. difference: None where nothing was measured, `note` says why then."""

    name: str
    compared: str
    difference: float | None
    limit: float | None
    status: str
    seconds: float
    note: str = ""

    @property
    def passes(self) -> bool:
        """False where the difference is over its limit, or the check could not be made."""
        return self.status not in (OVER, FAILED)

    def as_json(self) -> dict[str, Any]:
        """Plain values; a difference that is no finite number is a text."""
        values = asdict(self)
        if self.difference is not None and not abs(self.difference) < float("inf"):
            values["difference"] = str(self.difference)
        return values


def compare(
    name: str,
    compared: str,
    found: Callable[[], Result],
    expected: Callable[[], Result],
    distance: Callable[[Result, Result], float],
    limit: float | None,
) -> Check:
    """The check that two computations give the same."""
    return Check(name, compared, limit, lambda: distance(found(), expected()))


def left_out(name: str, compared: str, reason: str) -> Check:
    """A check that has no meaning here, so that the table says why it is not made."""

    def measure() -> float:
        raise NotApplicableError(reason)

    return Check(name, compared, None, measure)


def run_check(check: Check) -> Finding:
    """Make a check and time it."""
    began = time.perf_counter()
    difference, note = None, ""
    try:
        difference = check.measure()
        status = _judge(difference, check.limit)
    except NotApplicableError as reason:
        status, note = LEFT_OUT, str(reason)
    except UserError as error:
        status, note = FAILED, error.message
    except Exception as error:  # foreign modules may fail in any way, and that is what was asked
        status, note = FAILED, f"{type(error).__name__}: {first_line(error)}"
    seconds = round(time.perf_counter() - began, 2)
    return Finding(check.name, check.compared, difference, check.limit, status, seconds, note)


def run_checks(checks: Iterable[Check], told: Callable[[str], None]) -> Iterator[Finding]:
    """Make one check after the other; `told` hears the name of each before it is made."""
    for check in checks:
        told(check.name)
        yield run_check(check)


def _judge(difference: float, limit: float | None) -> str:
    if limit is None:
        return OK if difference == 0 else NOTE
    return OK if difference <= limit else OVER  # not a number is over


def logprob_limit(dtype: torch.dtype) -> float:
    """How far log-probabilities may be apart, as for the layout that a run chooses."""
    return PROBE_LIMIT[dtype]


def gradient_limit(dtype: torch.dtype) -> float:
    """How far the worst gradient may be apart."""
    return GRADIENT_FACTOR * PROBE_LIMIT[dtype]


def logprob_distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Distance of log-probabilities (P,) against the spread of the expected ones."""
    return relative_distance(found, expected)


def gradient_distance(found: Gradients, expected: Gradients) -> float:
    """The largest norm of a difference over all tensors, each relative to the expected tensor."""
    if found.keys() != expected.keys():
        return float("inf")
    whole = max(float(tensor.norm()) for tensor in expected.values())
    if whole == 0:
        return float("inf")  # nothing was computed that could be compared
    distances = [
        float((found[name] - tensor).norm()) / max(float(tensor.norm()), SMALLEST_SHARE * whole)
        for name, tensor in expected.items()
    ]
    return max(distances) if all(d == d for d in distances) else float("inf")


def count_different(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """How many entries are not the same to the last bit."""
    names = found.keys() | expected.keys()
    return float(sum(not _same(found.get(name), expected.get(name)) for name in names))


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    return type(first) is type(second) and first == second
