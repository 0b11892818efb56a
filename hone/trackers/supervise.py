"""Starts a process for each tracker beside a run, and ends it with the run.

Called by `run_recipe` (`tracked`) and `hone track` (`Follower`). A thread listens to each process;
training itself never waits. A tracker that fails, dies or hangs is ended with one warning: on the
screen, in `events.jsonl` and in the stage's log. It is not begun again in the same attempt.
"""

import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from hone.files import append_line
from hone.recipe.trackers import Tracker as Settings
from hone.runs import Run
from hone.signals import StopRequested, uninterrupted
from hone.trackers import check_trackers

if TYPE_CHECKING:
    from rich.console import Console

STOP_WITHIN_S = 1.0  # after a stop signal, for the last rows


@contextmanager
def tracked(run: Run, trackers: Sequence[Settings], console: "Console") -> Iterator[None]:
    """Have a run followed by its trackers. Raises UserError before anything is begun."""
    check_trackers(trackers)
    tell = partial(warn, run, console)
    followers = [follower for settings in trackers if (follower := _follow(run, settings, tell))]
    state = "failed"
    try:
        yield
        state = "succeeded"
        for follower in followers:
            follower.ask_to_finish(state)
        for follower in followers:
            follower.wait(follower.settings.finish_within_s)
    except (StopRequested, KeyboardInterrupt):
        state = "stopped"
        raise
    finally:
        with uninterrupted():
            for follower in followers:
                follower.ask_to_finish(state)
            for follower in followers:
                follower.wait(STOP_WITHIN_S)


def _follow(run: Run, settings: Settings, warn: Callable[[str], None]) -> "Follower | None":
    try:
        return Follower(run, settings, warn)
    except OSError as error:  # no process left, no memory for one
        warn(f"tracker {settings.type} cannot be started: {error.strerror}")
        return None


def warn(run: Run, console: "Console", text: str) -> None:
    """Say something about a tracker on the screen, in the events and in the stage's log."""
    text = f"{run.conceal(text)}; `hone track {run.reference}` sends what is missing"
    with suppress(OSError):  # a full disk, a closed terminal: training will say so itself
        run.event("warning", message=text)
        for folder in run.stage_folders()[-1:]:
            append_line(folder / "log.txt", f"warning: {text}")
        console.print(f"warning: {text}", highlight=False, soft_wrap=True, markup=False)


class Follower:
    """The process of one tracker, and the thread that listens to it."""

    def __init__(self, run: Run, settings: Settings, warn: Callable[[str], None]) -> None:
        self.settings = settings
        self.done = False
        self.asked_at: float | None = None
        self._warn, self._warned, self._lock = warn, False, threading.Lock()
        command = [sys.executable, "-m", "hone.trackers", settings.type, str(run.path)]
        self.process = subprocess.Popen(
            [*command, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the run
            bufsize=0,
        )
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def ask_to_finish(self, state: str) -> None:
        """Tell it how the run ended; only the first time counts."""
        if self.asked_at is not None:
            return
        self.asked_at = time.monotonic()
        assert self.process.stdin is not None
        with suppress(OSError):  # it has ended already
            self.process.stdin.write(f"{state}\n".encode())

    def wait(self, seconds: float | None = None) -> None:
        """Wait for it to end by itself, so many seconds after it was asked to; then end it."""
        assert self.asked_at is not None
        left = None if seconds is None else self.asked_at + seconds - time.monotonic()
        try:
            self._thread.join(left if left is None else max(0.0, left))
            if self._thread.is_alive():
                self._fail(f"was not finished within {seconds:g} s")
        finally:
            self.process.kill()
            self._thread.join()
            self.process.wait()
            for stream in (self.process.stdin, self.process.stdout):
                if stream is not None:
                    stream.close()

    def _listen(self) -> None:
        """Read its signs of life until it ends, or until there has been none for too long."""
        stream, limit = self.process.stdout, self.settings.answer_within_s
        assert stream is not None
        heard, failure = b"", "ended without a word"
        while select.select([stream], [], [], limit)[0]:
            piece = os.read(stream.fileno(), 4096)
            if not piece:
                if not self.done:
                    self._fail(failure)
                return
            *lines, heard = (heard + piece).split(b"\n")
            for line in lines:
                self.done |= line == b"done"
                if line.startswith(b"failed "):
                    failure = line.decode(errors="replace").replace("failed", "failed:", 1)
        self._fail(f"has not answered for {limit:g} s")
        self.process.kill()

    def _fail(self, problem: str) -> None:
        with self._lock:
            first, self._warned = not self._warned, True
        if first:
            self._warn(f"tracker {self.settings.type} {problem}")
