"""Weights & Biases: one run, online or as a folder that `wandb sync` sends.

Points have their number as W&B's step: online, the server drops what it has already. Offline, the
folder is a copy of the metrics and is written anew, unless it was synced. What was sent cannot be
taken back. Nothing is collected but what is sent here: no code, console, machine or statistics.
"""

import netrc
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hone.errors import UserError
from hone.extras import import_extra
from hone.recipe.trackers import WandB
from hone.trackers.records import About, Point

WISH = "trackers: wandb"
SERVER = "https://api.wandb.ai"

QUIET = {
    "console": "off",
    "silent": True,
    "disable_code": True,
    "disable_git": True,
    "save_code": False,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_disable_machine_info": True,
    "x_disable_viewer": True,
    "x_save_requirements": False,
}


def check(settings: WandB) -> None:
    """Raises UserError where the server would not know who asks."""
    if settings.mode == "offline" or os.environ.get("WANDB_API_KEY") or _stored_key():
        return
    raise UserError(
        "trackers: wandb needs a key: WANDB_API_KEY is not set",
        hint="set WANDB_API_KEY, or write `mode: offline` and send the run later: wandb sync",
        exit_code=2,
    )


def _stored_key() -> bool:
    """True where `wandb login` has left a key for the server."""
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or SERVER).hostname or ""
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def connect(settings: WandB, about: About) -> "WandBRun":
    """Begin the run, or go on with it."""
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    folder = about.folder / "trackers"
    synced = False
    if settings.mode == "offline":
        synced = _clear_unsynced(folder / "wandb", about.identity)
    wandb: Any = import_extra("wandb", "wandb", WISH)
    run = wandb.init(
        project=settings.project,
        entity=settings.entity,
        name=settings.name or about.name,
        group=settings.group,
        tags=settings.tags,
        mode=settings.mode,
        id=about.identity,
        resume=None if settings.mode == "offline" else "allow",
        dir=str(folder),
        config={**about.parameters, **{f"version/{k}": v for k, v in about.versions.items()}},
        allow_val_change=True,
        settings=wandb.Settings(**QUIET),
    )
    return WandBRun(run, anew=not (synced or run.resumed))


def _clear_unsynced(folder: Path, identity: str) -> bool:
    """Remove what earlier attempts wrote and nobody has sent; True where something was sent."""
    synced = False
    for written in folder.glob(f"offline-run-*-{identity}"):
        if any(written.glob("*.synced")):
            synced = True
        else:
            shutil.rmtree(written)
    return synced


class WandBRun:
    """One run of the library."""

    def __init__(self, run: Any, *, anew: bool) -> None:
        self.run = run
        self.anew = anew
        self.stages: set[str] = set()
        self.remote = {"run_id": str(run.id), "folder": str(Path(run.dir).parent)}
        if run.url:
            self.remote["url"] = str(run.url)

    def send(self, points: Sequence[Point]) -> None:
        """Log the numbers as `1-sft/loss` over `1-sft/step`."""
        for point in points:
            stage = point.stage
            if stage not in self.stages:
                self.stages.add(stage)
                self.run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            values = {f"{stage}/{name}": value for name, value in point.values.items()}
            table = {**values, f"{stage}/step": point.step, "_timestamp": point.time_s}
            self.run.log(table, step=point.number)

    def take_back(self, stage: str, step: int) -> bool:
        """A server keeps what it has."""
        return False

    def confirm(self) -> bool:
        """The library keeps rows back until the end."""
        return False

    def close(self, state: str) -> None:
        """Send what is left, and whether all went well."""
        self.run.finish(exit_code=0 if state == "succeeded" else 1)
