"""Which curves a stage has: from its rows of metrics.jsonl to charts.

The known names come first and in this order; whatever else a method writes is drawn below them
under its own name. Called by `collect.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hone.metrics import Row
from hone.report import words
from hone.report.charts import Chart, Floats, Mark, Series, smoothed

MOST_OTHERS = 30


@dataclass(frozen=True)
class Curve:
    """A number of the rows. smooth: it jumps from step to step, and its mean is drawn too."""

    name: str
    title: str
    unit: str
    smooth: bool = True
    say: Callable[[float], str] = words.number
    tick: Callable[[float], str] = words.tick


KNOWN = [
    Curve("reward", "Reward", "mean of the weighted sums"),
    Curve("loss", "Loss", "mean of the step"),
    Curve("accuracy", "Accuracy", "share that is right", say=words.share, tick=words.share),
    Curve("learning_rate", "Learning rate", "of the step", smooth=False),
    Curve("grad_norm", "Gradient norm", "before it is clipped"),
    Curve("tokens_per_s", "Throughput", "tokens a second"),
    Curve(
        "peak_memory_bytes", "Memory", "peak of the step", False, words.memory, words.memory_tick
    ),
]
LOSS_UNITS = {"pretrain": "nats per trained token", "sft": "nats per trained token"}

# What is told elsewhere, or says nothing as a curve.
NOT_DRAWN = {"step", "split", "time_s", "epoch", "samples", "rollouts", "skipped"}
REWARD = "reward/"


def stage_charts(
    method: str, training: Sequence[Row], held_out: Sequence[Row], marks: Sequence[Mark]
) -> tuple[list[Chart], list[Chart]]:
    """(the charts that matter, all others) of a stage; a name without any value has none."""
    known = [curve for curve in KNOWN if _has(curve.name, training, held_out)]
    charts = []
    for place, curve in enumerate(known):
        unit = LOSS_UNITS.get(method, curve.unit) if curve.name == "loss" else curve.unit
        charts.append(_chart(curve, unit, training, held_out, marks, large=place == 0))
        if curve.name == "reward" and (parts := _reward_parts(training, marks)):
            charts.append(parts)
    names = dict.fromkeys(name for row in (*training[:1], *training[-1:]) for name in row)
    shown = {curve.name for curve in known} | NOT_DRAWN
    others = [
        _chart(Curve(name, name, ""), "", training, held_out, marks)
        for name in names
        if name not in shown and _has(name, training, held_out) and not _is_constant(name, training)
    ]
    return charts, others[:MOST_OTHERS]


def column(rows: Sequence[Row], name: str) -> tuple[Floats, Floats]:
    """(steps, values) of a number in the rows, NaN where it is missing or was not finite."""
    steps = np.array([row["step"] for row in rows], dtype=np.float64)
    values = [row.get(name) for row in rows]
    numbers = [float(each) if _is_number(each) else np.nan for each in values]  # type: ignore[arg-type]
    return steps, np.array(numbers, dtype=np.float64)


def _chart(
    curve: Curve,
    unit: str,
    training: Sequence[Row],
    held_out: Sequence[Row],
    marks: Sequence[Mark],
    large: bool = False,
) -> Chart:
    series = []
    steps, values = column(training, curve.name)
    if np.isfinite(values).any():
        series += _training_lines(steps, values, curve.smooth)
    steps, values = column(held_out, curve.name)
    if np.isfinite(values).any():
        series.append(Series("held out", steps, values, "held"))
    ends = series[-1].values[np.isfinite(series[-1].values)]
    summary = f"{curve.say(float(ends[0]))} → {curve.say(float(ends[-1]))}"
    if curve.name in ("learning_rate", "tokens_per_s", "peak_memory_bytes"):
        summary = curve.say(float(ends.max())) + " at most"
    return Chart(
        curve.title, unit, series, marks, say=curve.say, tick=curve.tick, large=large,
        summary=summary,
    )  # fmt: skip


def _training_lines(steps: Floats, values: Floats, smooth: bool) -> list[Series]:
    means, count = smoothed(values) if smooth else (values, 1)
    if count == 1:
        return [Series("training", steps, values, "mean")]
    return [
        Series("each step", steps, values, "raw", hovers=False),
        Series(f"training, mean of {count} steps", steps, means, "mean"),
    ]


def _reward_parts(training: Sequence[Row], marks: Sequence[Mark]) -> Chart | None:
    """The named rewards beside each other, where there is more than one."""
    names = dict.fromkeys(name for row in training for name in row if name.startswith(REWARD))
    names = {name: None for name in names if name.count("/") == 1}
    series = []
    for number, name in enumerate(list(names)[:6]):
        steps, values = column(training, name)
        if np.isfinite(values).any():
            means, _ = smoothed(values)
            series.append(Series(name.removeprefix(REWARD), steps, means, f"c{number}"))
    if len(series) < 2:
        return None
    return Chart("Rewards by name", "means, not weighted", series, marks)


def _has(name: str, *splits: Sequence[Row]) -> bool:
    return any(_is_number(row.get(name)) for rows in splits for row in rows)


def _is_constant(name: str, rows: Sequence[Row]) -> bool:
    return len({row.get(name) for row in rows}) == 1


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
