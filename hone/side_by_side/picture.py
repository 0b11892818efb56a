"""The comparison of two runs as one PNG: curves over each other, differences with intervals."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hone.plots import HEIGHT, WIDTH, dress
from hone.report.charts import smoothed
from hone.report.curves import column
from hone.side_by_side.compare import SideBySide
from hone.side_by_side.curves import StageCurves, stage_curves
from hone.side_by_side.paired import Paired, is_better

COLOURS = ("#1f5a9e", "#c02f4a")  # of the first and of the second run
BETTER, WORSE, EVEN = "#1f7a4a", "#b3261e", "#5f5f66"
ROW = 0.32  # inches of a difference


def draw_picture(found: SideBySide, path: Path) -> None:
    """Write the PNG: above a panel a stage, below a line for each score of each set."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    stages = stage_curves(found.first, found.second)
    scores = [(one.name, name, each) for one in found.sets for name, each in one.scores.items()]
    heights = [HEIGHT if stages else 0.01, 1.0 + ROW * max(1, len(scores))]
    columns = max(1, len(stages))
    width = max(2 * WIDTH, WIDTH * columns)
    figure = pyplot.figure(figsize=(width, sum(heights)), layout="constrained")
    grid = figure.add_gridspec(2, columns, height_ratios=heights)
    names = [found.first.name, found.second.name]
    for place, stage in enumerate(stages):
        panel = figure.add_subplot(grid[0, place])
        _draw_stage(panel, stage, names)
        dress(panel, stage.name, stage.column)
        panel.set_xlabel("step")
        if place == 0:
            panel.legend(frameon=False, fontsize=9)
    panel = figure.add_subplot(grid[1, :])
    _draw_differences(panel, scores)
    dress(panel, f"{names[1]} minus {names[0]}, with 95 % intervals", "")
    panel.grid(axis="y", visible=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _draw_stage(panel: Any, stage: StageCurves, names: Sequence[str]) -> None:
    """Each step pale, the mean around it strong, held-out rows as dots."""
    for line in stage.lines:
        colour, name = COLOURS[line.run], names[line.run]
        steps, values = column(line.training, stage.column)
        # The first run is the wider line, so that it is seen below a second one that is the same.
        width, size = (3.2, 7) if line.run == 0 else (1.4, 4)
        panel.plot(steps, values, color=colour, linewidth=0.6, alpha=0.3)
        panel.plot(steps, smoothed(values)[0], color=colour, linewidth=width, label=name)
        if line.held_out:
            measured = column(line.held_out, stage.column)
            panel.plot(*measured, "o", color=colour, ms=size, label=f"{name}, held out")


def _draw_differences(panel: Any, scores: Sequence[tuple[str, str, Paired]]) -> None:
    panel.axvline(0, color=EVEN, linewidth=1)
    for place, (_, name, paired) in enumerate(scores):
        better = is_better(name, paired.difference)
        colour = EVEN if better is None else BETTER if better else WORSE
        found = paired.difference
        error = [[found.mean - found.low], [found.high - found.mean]]
        panel.errorbar(found.mean, place, xerr=error, fmt="o", color=colour, capsize=3, ms=5)
    panel.set_yticks(range(len(scores)), [f"{one}: {name}" for one, name, _ in scores])
    panel.set_ylim(len(scores) - 0.5, -0.5)
