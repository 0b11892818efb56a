"""Curves as inline SVG, drawn so that they fit every width.

The picture is a square of 1,000 by 1,000 units that the page stretches; strokes keep their width,
dots are lines without length, and words beside the axes are HTML. What hovering shows travels in
`data-chart`; without JavaScript all but that is there. Called by `curves.py`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from hone.report import words
from hone.report.proof import PartReport

SIDE = 1000  # units of the picture, in both directions
COLUMNS = 180  # of a line with every step: the least and the largest value of each are drawn
SHOWN = 120  # points of a mean, and of what hovering shows
FEWEST_TO_SMOOTH = 60  # steps: fewer are drawn as they are
MARGIN = 0.06  # of the values' range, above and below

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """One line. steps, values: (N,), NaN where a step has no value. style: `raw`, `mean`, `held`,
    or `c0`, `c1`, ... of several of the same rank. hovers: hovering tells its values.
    """

    label: str
    steps: Floats
    values: Floats
    style: str
    hovers: bool = True


@dataclass(frozen=True)
class Mark:
    """Something that happened at a step. style: `resumed` or `skipped`."""

    step: float
    text: str
    style: str


@dataclass(frozen=True)
class Chart:
    """A picture: what is drawn in it, its unit in words, and how its values are written."""

    title: str
    unit: str
    series: Sequence[Series]
    marks: Sequence[Mark] = ()
    say: Callable[[float], str] = words.number
    tick: Callable[[float], str] = words.tick
    large: bool = False
    summary: str = ""


@dataclass(frozen=True)
class Frame:
    """What part of the plane a picture shows: steps left to right, values low to high."""

    left: float
    right: float
    low: float
    high: float
    ticks: list[float] = field(default_factory=list)

    def x(self, steps: Floats | float) -> Floats:
        """From the left, in units."""
        return SIDE * (np.asarray(steps) - self.left) / (self.right - self.left or 1)

    def y(self, values: Floats | float) -> Floats:
        """From the top, in units."""
        return SIDE * (self.high - np.asarray(values)) / (self.high - self.low)


def frame_of(chart: Chart) -> Frame:
    """Room for everything that is drawn; zero is in it where the values come near it."""
    values = np.concatenate([each.values for each in chart.series])
    steps = np.concatenate([each.steps for each in chart.series])
    values = values[np.isfinite(values)]
    low, high = float(values.min()), float(values.max())
    if 0 < low < 0.4 * high:
        low = 0.0
    space = (high - low) * MARGIN or abs(high) * 0.1 or 1.0
    bottom = low if low == 0.0 else low - space
    ticks = nice_ticks(bottom, high + space, 6 if chart.large else 4)
    return Frame(float(steps.min()), float(steps.max()), bottom, high + space, ticks)


def nice_ticks(low: float, high: float, about: int) -> list[float]:
    """Round values between two others, at most `about` steps apart."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * times for times in (1, 2, 2.5, 5, 10) if power * times >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [step * n for n in range(first, math.floor(high / step + 1e-9) + 1)]


def smoothed(values: Floats) -> tuple[Floats, int]:
    """(mean of the steps around each, how many these are), as many before as behind.

    At the ends it is taken of fewer, so that it begins and ends with the values themselves. Steps
    without a value do not count.
    """
    count = len(values)
    reach = 0 if count < FEWEST_TO_SMOOTH else max(1, count // 48)
    known = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    places = np.arange(count)
    reaches = np.minimum(reach, np.minimum(places, count - 1 - places))
    begin, end = places - reaches, places + reaches + 1
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (sums[end] - sums[begin]) / (counts[end] - counts[begin])
    return means, 2 * reach + 1


def thinned(count: int, most: int) -> npt.NDArray[np.int64]:
    """At most so many places of `count`, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def extremes(values: Floats, columns: int = COLUMNS) -> npt.NDArray[np.int64]:
    """The places of the least and the largest value of each of `columns` equal parts, in order:
    a line through them looks like the line through all. Gaps keep a place.
    """
    if len(values) <= 2 * columns:
        return np.arange(len(values))
    kept = {0, len(values) - 1}
    for begin, end in pairwise(np.linspace(0, len(values), columns + 1).astype(int)):
        part = values[begin:end]
        gaps = np.flatnonzero(~np.isfinite(part))
        kept |= {begin + int(gaps[0])} if len(gaps) else set()
        if len(gaps) < len(part):
            kept |= {begin + int(np.nanargmin(part)), begin + int(np.nanargmax(part))}
    return np.array(sorted(kept))


def draw(chart: Chart) -> Markup:
    """The figure of a chart whose series have a value at least."""
    frame = frame_of(chart)
    parts = [_grid(frame), *(_mark(frame, mark) for mark in chart.marks)]
    parts += [_line(frame, each) for each in chart.series]
    alt = f"{chart.title}, {chart.unit}: " + "; ".join(map(_in_words(chart), chart.series))
    label = Markup('<span class="y" style="top:{:.1f}%">{}</span>')
    sides = [label.format(float(frame.y(tick)) / 10, chart.tick(tick)) for tick in frame.ticks]
    return Markup(
        '<figure class="chart{}" data-chart="{}"><figcaption><b>{}</b> <span>{}</span>'
        '<span class="ends">{}</span></figcaption>'
        '<div class="plot"><svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" '
        'aria-label="{}">{}</svg><div class="axis" aria-hidden="true">{}'
        '<span class="x first">{}</span><span class="x last">{}</span></div></div></figure>'
    ).format(
        " large" if chart.large else "",
        words.as_json(_hovering(chart, frame)),
        chart.title,
        chart.unit,
        chart.summary or _legend(chart),
        alt,
        Markup("").join(parts),
        Markup("").join(sides),
        f"{frame.left:,.0f}",
        f"step {frame.right:,.0f}",
    )


def sparkline(steps: Floats, values: Floats) -> Markup:
    """A line without axes, for a summary; empty where there are fewer than two values."""
    known = np.isfinite(values)
    if known.sum() < 2:
        return Markup("")
    means, _ = smoothed(values[known])
    chart = Chart("", "", [Series("", steps[known], means, "mean")])
    line = _line(frame_of(chart), chart.series[0])
    return Markup(
        '<svg class="spark" viewBox="0 0 1000 1000" preserveAspectRatio="none" '
        'aria-hidden="true">{}</svg>'
    ).format(line)


def whisker(part: PartReport, scale: tuple[float, float] | None) -> Markup:
    """An interval as a line with its value as a dot and the threshold as a stroke across; zero is
    the upright line.
    """
    if scale is None or part.interval is None or part.value is None:
        return Markup("")
    low, high = scale

    def x(value: float) -> float:
        return SIDE * (min(max(value, low), high) - low) / (high - low)

    strokes = [Markup('<path class="grid" d="M{:.0f} 0V1000"/>').format(x(0.0))]
    if part.threshold is not None:
        strokes.append(
            Markup('<path class="limit" d="M{:.0f} 100V900"/>').format(x(part.threshold))
        )
    ends = "".join(
        f"{letter}{x(end):.0f} 500" for letter, end in zip("ML", part.interval, strict=True)
    )
    strokes.append(Markup('<path class="line" d="{}"/>').format(ends))
    strokes.append(Markup('<path class="dots" d="M{:.0f} 500h0"/>').format(x(part.value)))
    return Markup('<svg viewBox="0 0 1000 1000" preserveAspectRatio="none">{}</svg>').format(
        Markup("").join(strokes)
    )


def _grid(frame: Frame) -> Markup:
    line = Markup('<path class="grid" d="M0 {0:.0f}H1000"/>')
    return Markup("").join(line.format(float(frame.y(tick))) for tick in frame.ticks)


def _mark(frame: Frame, mark: Mark) -> Markup:
    x = float(frame.x(mark.step))
    top = 0 if mark.style == "resumed" else 930
    path = '<g><title>{}</title><path class="{}" d="M{:.0f} {}V1000"/></g>'
    return Markup(path).format(mark.text, mark.style, min(max(x, 0), SIDE), top)


def _line(frame: Frame, series: Series) -> Markup:
    """A path with gaps where there is no value; few points get dots."""
    values = series.values
    places = extremes(values) if series.style == "raw" else thinned(len(values), SHOWN)
    xs, ys = frame.x(series.steps[places]), frame.y(values[places])
    path, broken = [], True
    for x, y in zip(xs, ys, strict=True):
        if not math.isfinite(y):
            broken = True
            continue
        path.append(f"{'M' if broken else 'L'}{x:.0f} {y:.0f}")
        broken = False
    drawn = Markup('<path class="line {}" d="{}"/>').format(series.style, "".join(path))
    finite = np.isfinite(ys)
    if series.style == "held" or finite.sum() < 3:
        dots = "".join(f"M{x:.0f} {y:.0f}h0" for x, y in zip(xs[finite], ys[finite], strict=True))
        drawn += Markup('<path class="dots {}" d="{}"/>').format(series.style, dots)
    return drawn


def _legend(chart: Chart) -> Markup:
    """Which colour is which, of series of the same rank."""
    key = Markup('<span class="key"><i class="{}"></i>{}</span>')
    return Markup("").join(key.format(each.style, each.label) for each in chart.series)


def _in_words(chart: Chart) -> Callable[[Series], str]:
    """The ends of a line, for those who do not see it."""

    def say(series: Series) -> str:
        known = np.flatnonzero(np.isfinite(series.values))
        first, last = int(known[0]), int(known[-1])
        return (
            f"{series.label} {chart.say(float(series.values[first]))} at step "
            f"{series.steps[first]:,.0f}, {chart.say(float(series.values[last]))} at step "
            f"{series.steps[last]:,.0f}"
        )

    return say


def _hovering(chart: Chart, frame: Frame) -> list[dict[str, object]]:
    """For each series its label, style, and points: units from left and top, step, words."""
    told: list[dict[str, object]] = []
    for series in chart.series:
        if not series.hovers:
            continue
        known = np.flatnonzero(np.isfinite(series.values))
        places = known[thinned(len(known), SHOWN)]
        points = [
            [
                round(float(frame.x(series.steps[at]))),
                round(float(frame.y(series.values[at]))),
                int(series.steps[at]),
                chart.say(float(series.values[at])),
            ]
            for at in places
        ]
        told.append({"label": series.label, "style": series.style, "points": points})
    return told
