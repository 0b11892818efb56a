"""Trackers: what others already look at, fed from `metrics.jsonl` by a process for each.

Training never calls a tracker. `supervise.py` starts `python -m hone.trackers NAME RUN PID`, which
is `__main__.py`; that follows the rows (`follow.py`) and hands them to `tensorboard.py`, `wandb.py`
or `mlflow.py`. How far it got stands in `trackers/NAME.json` of the run. Called by `run_recipe` and
`hone track`. Left out: anything but numbers, parameters, versions and the final state.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from hone.extras import check_extra
from hone.recipe.trackers import Tracker as Settings
from hone.trackers.records import About, Tracker

# The extra of a tracker has its name. Each module has `check(settings)` and
# `connect(settings, about)`.
TRACKERS = {
    "tensorboard": "hone.trackers.tensorboard",
    "wandb": "hone.trackers.wandb",
    "mlflow": "hone.trackers.mlflow",
}


def check_trackers(trackers: Sequence[Settings]) -> None:
    """Raises UserError for a tracker that could not even be begun with: not installed, no key."""
    for settings in trackers:
        check_extra(settings.type, f"trackers: {settings.type}")
        _module(settings).check(settings)


def connect(settings: Settings, about: About) -> Tracker:
    """The tracker, ready for rows; takes as long as its library and its server take."""
    tracker: Tracker = _module(settings).connect(settings, about)
    return tracker


def _module(settings: Settings) -> Any:
    return import_module(TRACKERS[settings.type])
