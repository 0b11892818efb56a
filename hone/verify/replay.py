"""Slices of stages, done again: `python -m hone.verify.replay RUN STAGE STEP ...`, a fresh process.

Each three words are the folder of a run that was made for it, a stage from 1, and the step after
which it ends; with --kill in front, the process group has SIGKILL sent to itself there, as soon as
the step's row is written. Started by `resume.py`, and ended with it.
"""

import os
import signal
import sys
from pathlib import Path

from rich.console import Console

from hone import signals
from hone.device import use_threads
from hone.rewards.worker import end_with
from hone.runs import Run
from hone.stages.run import run_recipe
from hone.stages.work import stop_there

KILL = "--kill"


def replay(run: Run, until: tuple[int, int], kill: bool) -> None:
    """One attempt at a run, ended after (stage, step)."""
    use_threads(run.read_lock_json()["threads"])
    reached = kill_all if kill else stop_there
    try:
        with run.attempt():
            run_recipe(run, console=Console(quiet=True), until=until, reached=reached, tracks=False)
    except signals.StepReached:
        return


def kill_all(step: int) -> None:
    """What an out-of-memory killer or a power cut does to a run: nothing is written any more."""
    os.killpg(os.getpgrp(), signal.SIGKILL)


def main(words: list[str]) -> None:
    """Do the slices, one after the other."""
    end_with(os.getppid())
    signals.install()
    kill = words[0] == KILL
    words = words[kill:]
    for folder, stage, step in zip(words[::3], words[1::3], words[2::3], strict=True):
        replay(Run(Path(folder)), (int(stage), int(step)), kill)


if __name__ == "__main__":
    main(sys.argv[1:])
