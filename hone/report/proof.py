"""The verdicts of verify/verify.json, ready for the page.

Read as they are, whatever else a newer version has written into them; called by `collect.py`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hone.files import read_json
from hone.report import words

SIGNS = {"passed": "✓", "failed": "✕", "not_applicable": words.NONE}
MOST_PARTS = 40  # of a check
MOST_EXAMPLES = 5  # of those among details
WIDEST = 4.0  # of a scale on which a share still shows
INTERVAL = ("low", "high")  # how details name the ends of a 95 % interval around the value


@dataclass(frozen=True)
class PartReport:
    """A part of a check: a stage, a file, a data set. interval: (low, high) around the value."""

    of: str
    status: str
    value: float | None
    threshold: float | None
    n: int | None
    reason: str
    interval: tuple[float, float] | None
    details: list[tuple[str, str]]

    @property
    def sign(self) -> str:
        """The status in one letter."""
        return SIGNS.get(self.status, "?")


@dataclass(frozen=True)
class CheckReport:
    """A check with its parts."""

    name: str
    status: str
    value: float | None
    threshold: float | None
    n: int | None
    how: str
    reason: str
    seconds: float
    parts: list[PartReport]

    @property
    def sign(self) -> str:
        """The status in one letter."""
        return SIGNS.get(self.status, "?")


@dataclass(frozen=True)
class Proof:
    """All verdicts."""

    passed: bool
    checks: list[CheckReport]

    def count(self, status: str) -> int:
        """Checks with this status."""
        return sum(check.status == status for check in self.checks)

    @property
    def in_words(self) -> str:
        """The verdict: "9 of 9 checks passed"."""
        made = len(self.checks) - self.count("not_applicable")
        return f"{self.count('passed')} of {made} checks passed"

    @property
    def measured(self) -> list[tuple[CheckReport, PartReport]]:
        """What was measured with an interval, in the order of the checks."""
        return [(check, part) for check in self.checks for part in check.parts if part.interval]

    @property
    def scale(self) -> tuple[float, float] | None:
        """From where to where intervals can be drawn beside each other; None where they cannot,
        because they are of other sizes.
        """
        ends = [end for _, part in self.measured for end in part.interval or ()]
        ends += [part.threshold for _, part in self.measured if part.threshold is not None]
        low, high = min(0.0, *ends, 0.0), max(1.0, *ends, 1.0)
        return (low, high) if high - low <= WIDEST else None


def collect_proof(run: Path) -> Proof | None:
    """The verdicts of a run; None where it was not verified."""
    table = read_json(run / "verify" / "verify.json")
    if table is None:
        return None
    return Proof(bool(table.get("passed")), [_check(each) for each in table.get("checks", [])])


def _check(table: dict[str, Any]) -> CheckReport:
    return CheckReport(
        **_shared(table),
        name=str(table.get("name", "")),
        how=str(table.get("how", "")),
        seconds=float(table.get("seconds") or 0.0),
        parts=[_part(each) for each in (table.get("parts") or [])[:MOST_PARTS]],
    )


def _part(table: dict[str, Any]) -> PartReport:
    details = dict(table.get("details") or {})
    interval = _ends(details)
    if interval:
        details = {name: each for name, each in details.items() if name not in INTERVAL}
    for name, each in list(details.items()):
        if interval is None and _is_measure(each) and each["mean"] == table.get("value"):
            interval = _ends(details.pop(name))
    return PartReport(
        **_shared(table),
        of=str(table.get("of", "")),
        interval=interval,
        details=[
            (name.replace("_", " "), text)
            for name, each in details.items()
            if (text := _detail(each))
        ],
    )


def _ends(table: dict[str, Any]) -> tuple[float, float] | None:
    low, high = (table.get(name) for name in INTERVAL)
    if isinstance(low, int | float) and isinstance(high, int | float):
        return float(low), float(high)
    return None


def _is_measure(value: Any) -> bool:
    """True for a `hone.intervals.Measure` as a table."""
    return isinstance(value, dict) and {"mean", *INTERVAL} <= set(value)


def _detail(value: Any) -> str:
    if _is_measure(value):
        mean, low, high = (words.number(value[name]) for name in ("mean", *INTERVAL))
        return f"{mean} ({low} to {high})"
    if isinstance(value, list) and any(isinstance(each, dict) for each in value):
        return "".join(f"\n{words.value(each)}" for each in value[:MOST_EXAMPLES])
    return words.value(value)


def _shared(table: dict[str, Any]) -> dict[str, Any]:
    figures = {name: table.get(name) for name in ("value", "threshold", "n")}
    reason = words.shortened(table.get("reason") or "")
    return {"status": str(table.get("status", "")), "reason": reason, **figures}
