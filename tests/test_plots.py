"""Plots are drawn from the rows that are there."""

from pathlib import Path

import pytest

from hone.intervals import Measure
from hone.plots import LOSS, Curve, plot_stages, running_mean

pytestmark = pytest.mark.quick


def test_a_panel_for_each_stage_and_one_for_what_was_measured(tmp_path: Path) -> None:
    from matplotlib import image

    rows = [{"step": step, "loss": 1 / step, "reward": step / 9} for step in range(1, 9)]
    rows += [{"step": 8, "split": "evaluation", "loss": 0.2}, {"resumed_from": 8}]
    stages = {"sft": (rows, LOSS), "grpo": (rows, Curve("reward", "mean reward"))}
    one, two = Measure(0.2, 0.1, 0.3, 50), Measure(0.9, 0.8, 1.0, 50)
    plot_stages(stages, {"right": [one, two], "well formed": [two, one]}, tmp_path / "a.png")
    plot_stages({"sft": stages["sft"]}, {"right": [one]}, tmp_path / "b.png")
    wide, narrow = (image.imread(tmp_path / name) for name in ("a.png", "b.png"))
    assert wide.shape[1] == 2 * narrow.shape[1]
    assert wide.std() > 0.05, "something is drawn"


def test_the_running_mean_begins_without_bias() -> None:
    assert running_mean([2.0, 2.0, 2.0]) == pytest.approx([2.0] * 3)
    # The weights of the values, latest first, are 1/2 and 1/4.
    assert running_mean([1.0, 3.0], share=0.5)[1] == pytest.approx((3 / 2 + 1 / 4) / (3 / 4))
