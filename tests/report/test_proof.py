"""How verdicts are drawn beside each other."""

import pytest

from hone.report.proof import CheckReport, PartReport, Proof

pytestmark = pytest.mark.quick


def proof_of(value: float, threshold: float | None, interval: tuple[float, float]) -> Proof:
    part = PartReport("1-sft", "passed", value, threshold, 9, "", interval, [])
    check = CheckReport("forgetting", "passed", value, threshold, 9, "", "", 0.1, [part])
    return Proof(True, [check])


def test_the_scale_holds_intervals_and_where_they_turn_red() -> None:
    assert proof_of(1.3, 2.0, (1.2, 1.5)).scale == (0.0, 2.0)
    assert proof_of(1.3, None, (1.2, 1.5)).scale == (0.0, 1.5)
    assert proof_of(0.3, 0.1, (-0.2, 0.5)).scale == (-0.2, 1.0)
    assert proof_of(0.3, 40.0, (0.2, 0.5)).scale is None, "too wide to see anything"
