"""Plots of a run as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from hone.metrics import Row

TRAINING, HELD_OUT = "#9db8d9", "#d1495b"
SMOOTH, INK = "#1f5a9e", "#3a3a3a"


def plot_losses(stages: Mapping[str, Sequence[Row]], path: Path) -> None:
    """One panel a stage: training loss, its running mean, and the held-out loss.

    stages: the rows of metrics.jsonl under each stage's title.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(stages), figsize=(5.2 * len(stages), 3.6), squeeze=False, layout="constrained"
    )
    for panel, (title, rows) in zip(panels[0], stages.items(), strict=True):
        training = [(row["step"], row["loss"]) for row in rows if "split" not in row]
        held_out = [(row["step"], row["loss"]) for row in rows if row.get("split") == "evaluation"]
        steps, losses = [step for step, _ in training], [loss for _, loss in training]
        panel.plot(steps, losses, color=TRAINING, linewidth=0.8, label="training, each step")
        panel.plot(steps, running_mean(losses), color=SMOOTH, linewidth=1.8, label="training, mean")
        if held_out:
            panel.plot(*zip(*held_out, strict=True), "o-", color=HELD_OUT, ms=3.5, label="held out")
        panel.set_title(title, loc="left", fontweight="bold", color=INK)
        panel.set_xlabel("step", color=INK)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(colors=INK)
    panels[0][0].set_ylabel("loss per trained token (nats)", color=INK)
    panels[0][-1].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def running_mean(values: Sequence[float], share: float = 0.95) -> list[float]:
    """Exponential mean with the first values' bias taken out (Kingma & Ba 2015, section 3)."""
    means, mean = [], 0.0
    for count, value in enumerate(values, 1):
        mean = share * mean + (1 - share) * value
        means.append(mean / (1 - share**count))
    return means
