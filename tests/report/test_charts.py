"""What is drawn is what was measured: compared with the plainest computation of each."""

import math
import re

import numpy as np
import pytest

from hone.report.charts import (
    SIDE,
    Chart,
    Mark,
    Series,
    draw,
    extremes,
    frame_of,
    nice_ticks,
    smoothed,
    sparkline,
)
from hone.report.curves import column, stage_charts

pytestmark = pytest.mark.quick


def test_the_mean_is_of_the_steps_around_each() -> None:
    values = np.sin(np.arange(200.0)) + np.arange(200.0)
    values[[5, 77]] = np.nan
    means, count = smoothed(values)
    assert count == 2 * (200 // 48) + 1
    for place, mean in enumerate(means):
        reach = min(count // 2, place, 199 - place)
        known = [each for each in values[place - reach : place + reach + 1] if each == each]
        assert mean == pytest.approx(sum(known) / len(known))
    assert smoothed(values[:20])[1] == 1, "few steps are drawn as they are"


def test_thinning_keeps_the_ends_the_extremes_and_gaps() -> None:
    values = np.random.default_rng(0).normal(size=5000)
    values[[1234, 4321]] = [99.0, -99.0]
    values[[2000, 2001]] = np.nan
    kept = extremes(values)
    assert len(kept) <= 3 * 180 + 2 and {0, 4999, 1234, 4321} <= set(kept.tolist())
    assert np.isnan(values[kept]).sum() == 1
    assert extremes(values[:300]).tolist() == list(range(300))


@pytest.mark.parametrize("ends", [(0, 1), (-3.2, 7.7), (1e-9, 3e-8), (5e8, 6e8), (0.999, 1.001)])
def test_ticks_are_few_round_and_inside(ends: tuple[float, float]) -> None:
    low, high = ends
    ticks = nice_ticks(low, high, 4)
    assert 2 <= len(ticks) <= 5
    assert all(low - 1e-12 <= tick <= high + 1e-12 for tick in ticks)
    step = (ticks[1] - ticks[0]) / 10 ** math.floor(math.log10(ticks[1] - ticks[0]))
    assert min(abs(step - round_one) for round_one in (1, 2, 2.5, 5, 10)) < 1e-6


def test_points_stand_where_their_values_are() -> None:
    steps, values = np.array([1.0, 2.0, 5.0]), np.array([10.0, 20.0, 15.0])
    chart = Chart("Loss", "nats", [Series("held out", steps, values, "held")])
    frame = frame_of(chart)
    drawn = str(draw(chart))
    found = re.findall(r"M(\d+) (\d+)h0", drawn)
    assert [int(x) for x, _ in found] == [0, SIDE // 4, SIDE]
    for (_, y), value in zip(found, values, strict=True):
        assert frame.high - int(y) / SIDE * (frame.high - frame.low) == pytest.approx(
            value, abs=0.02
        )
    assert "Loss, nats: held out 10 at step 1, 15 at step 5" in drawn


def test_a_line_has_gaps_and_marks_say_what_happened() -> None:
    values = np.array([1.0, 2.0, np.nan, 4.0, 5.0])
    series = Series("training", np.arange(5.0), values, "mean")
    drawn = str(draw(Chart("Loss", "", [series], [Mark(2, "<resumed>", "resumed")])))
    path = re.search(r'class="line mean" d="([^"]+)"', drawn)
    assert path and path[1].count("M") == 2 and path[1].count("L") == 2
    assert "<title>&lt;resumed&gt;</title>" in drawn and 'class="resumed" d="M500 0' in drawn


@pytest.mark.parametrize("values", [[3.0, 3.0], [0.0, 0.0], [7.0], [-1e-12, 1e-12], [1e30, 2e30]])
def test_values_without_spread_and_of_any_size_are_drawn(values: list[float]) -> None:
    steps = np.arange(1.0, len(values) + 1)
    drawn = str(draw(Chart("x", "", [Series("training", steps, np.array(values), "mean")])))
    assert "nan" not in drawn and "inf" not in drawn
    numbers = [int(each) for each in re.findall(r"[ML](-?\d+) (-?\d+)", drawn) for each in each]
    assert numbers and all(0 <= each <= SIDE for each in numbers)


def test_a_stage_has_the_curves_that_its_rows_hold() -> None:
    training = [
        {"step": n, "loss": 1 / n, "kl": n / 9, "rollouts": 8, "same": 2} for n in (1, 2, 3)
    ]
    training[1]["loss"] = None
    charts, others = stage_charts("grpo", training, [{"step": 0, "reward": 0.1}], [])
    assert [chart.title for chart in charts] == ["Reward", "Loss"] and charts[0].large
    assert [chart.title for chart in others] == ["kl"], "what never changes is no curve"
    steps, values = column(training, "loss")
    assert steps.tolist() == [1, 2, 3] and np.isnan(values[1]) and values[2] == 1 / 3
    assert sparkline(steps, values) and not sparkline(steps[:1], values[:1])
