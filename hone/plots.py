"""Plots of a run as PNG files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hone.intervals import Measure
from hone.metrics import Row

TRAINING, HELD_OUT = "#9db8d9", "#d1495b"
SMOOTH, INK = "#1f5a9e", "#3a3a3a"
MEASURES = ["#1f5a9e", "#d1495b", "#2a9d8f", "#e9a23b", "#7b4fa3", "#6b7785", "#8c5a3c"]
WIDTH, HEIGHT = 3.9, 3.3  # inches of a panel


@dataclass(frozen=True)
class Curve:
    """What a stage's panel shows: the name in its rows of metrics.jsonl, and in words."""

    name: str
    label: str


LOSS = Curve("loss", "loss per trained token (nats)")


def plot_stages(
    stages: Mapping[str, tuple[Sequence[Row], Curve]],
    measured: Mapping[str, Sequence[Measure]],
    path: Path,
) -> None:
    """Above, a panel a stage: its curve in training, the running mean, and held out. Below, what
    was measured after each stage, with intervals.

    stages: the rows of metrics.jsonl and the curve under each stage's title. measured: for each
    name a measure a stage, all of them shares between 0 and 1.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(WIDTH * len(stages), 2 * HEIGHT), layout="constrained")
    grid = figure.add_gridspec(2, len(stages))
    for column, (title, (rows, curve)) in enumerate(stages.items()):
        panel = figure.add_subplot(grid[0, column])
        _draw_curve(panel, rows, curve)
        dress(panel, title, curve.label)
        panel.set_xlabel("step", color=INK)
        if column == 0:
            panel.legend(frameon=False, fontsize=9)
    panel = figure.add_subplot(grid[1, :])
    _draw_measures(panel, list(stages), measured)
    dress(panel, "held-out questions after each stage", "share, with its 95 % interval")
    panel.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _draw_curve(panel: Any, rows: Sequence[Row], curve: Curve) -> None:
    known = [row for row in rows if row.get(curve.name) is not None]
    training = [(row["step"], row[curve.name]) for row in known if "split" not in row]
    held_out = [(r["step"], r[curve.name]) for r in known if r.get("split") == "evaluation"]
    steps, values = [step for step, _ in training], [value for _, value in training]
    panel.plot(steps, values, color=TRAINING, linewidth=0.8, label="training, each step")
    panel.plot(steps, running_mean(values), color=SMOOTH, linewidth=1.8, label="training, mean")
    if held_out:
        panel.plot(*zip(*held_out, strict=True), "o-", color=HELD_OUT, ms=3.5, label="held out")
    panel.set_ylim(bottom=0)


def _draw_measures(
    panel: Any, titles: Sequence[str], measured: Mapping[str, Sequence[Measure]]
) -> None:
    """Points a little beside each other, so that no interval hides another."""
    for number, (name, measures) in enumerate(measured.items()):
        places = [at + (number - (len(measured) - 1) / 2) * 0.06 for at in range(len(titles))]
        means = [measure.mean for measure in measures]
        below = [measure.mean - measure.low for measure in measures]
        above = [measure.high - measure.mean for measure in measures]
        colour = MEASURES[number % len(MEASURES)]
        style = {"color": colour, "ms": 5, "linewidth": 1.2, "capsize": 3, "label": name}
        panel.errorbar(places, means, yerr=[below, above], fmt="o-", **style)
    panel.set_xticks(range(len(titles)), [f"after {title}" for title in titles])
    panel.set_ylim(-0.03, 1.03)


def dress(panel: Any, title: str, label: str) -> None:
    """Title, label and quiet axes, the same for every panel."""
    panel.set_title(title, loc="left", fontweight="bold", color=INK)
    panel.set_ylabel(label, color=INK)
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(colors=INK)


def running_mean(values: Sequence[float], share: float = 0.95) -> list[float]:
    """Exponential mean with the first values' bias taken out (Kingma & Ba 2015, section 3)."""
    means, mean = [], 0.0
    for count, value in enumerate(values, 1):
        mean = share * mean + (1 - share) * value
        means.append(mean / (1 - share**count))
    return means
