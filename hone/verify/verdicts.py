"""What a check has found, and what verify.json says of it.

A check is a function from a `Subject` to `Found`; where it has no meaning it raises
`NotApplicableError` with the reason. `examine.py` makes a `Verdict` of either.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

PASSED, FAILED, NOT_APPLICABLE = "passed", "failed", "not_applicable"


class NotApplicableError(Exception):
    """The check has no meaning for this run, or this part of it; the message says why."""


@dataclass(frozen=True)
class Part:
    """What was found of one part of a check: a stage, a file, a data set. of: its name.

    value: what was measured; threshold: what it is held against; n: of how many; reason: in words,
    with what else a person wants to know. details: further numbers by name.
    """

    of: str
    status: str
    value: float | None = None
    threshold: float | None = None
    n: int | None = None
    reason: str = ""
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """What a check has found. The fields are those of `Part`; parts: what it is made of."""

    passed: bool
    value: float | None = None
    threshold: float | None = None
    n: int | None = None
    reason: str = ""
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """A check in verify.json. how: what was computed, in a sentence."""

    name: str
    status: str
    value: float | None
    threshold: float | None
    n: int | None
    how: str
    reason: str
    seconds: float = 0.0
    parts: tuple[Part, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Plain values; a number that is not finite is null."""
        plain: dict[str, Any] = _finite(asdict(self))
        return plain


def not_applicable(of: str, reason: str) -> Part:
    """A part for which the check has no meaning."""
    return Part(of, NOT_APPLICABLE, reason=reason)


def status_of(passed: bool) -> str:
    """The status of a check that could be made."""
    return PASSED if passed else FAILED


def join_parts(parts: Sequence[Part]) -> Found:
    """The check that all parts pass; its figures are those of the first one that failed, else of
    the first that applied. Raises NotApplicableError where none applies.
    """
    made = [part for part in parts if part.status != NOT_APPLICABLE]
    if not made:
        names: dict[str, list[str]] = {}
        for part in parts:
            names.setdefault(part.reason, []).append(part.of)
        reasons = (f"{', '.join(of)}: {reason}" for reason, of in names.items())
        raise NotApplicableError("; ".join(reasons))
    failed = [part for part in made if part.status == FAILED]
    shown = (failed or made)[0]
    told = [f"{part.of}: {part.reason}" for part in failed or made if part.reason]
    return Found(
        not failed, shown.value, shown.threshold, shown.n, "; ".join(told), parts=tuple(parts)
    )


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value
