"""The pool: groups go in, scores come out, beside whatever the caller does meanwhile.

Called by the stages. What is asked of a process, and what happens when it does not answer, is in
`lane.py`. Scores do not depend on which process makes them, or when.
"""

import os
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from hone.errors import UserError
from hone.recipe.rewards import Reward
from hone.rewards.functions import name_of
from hone.rewards.lane import Closed, Failed, Lane, RewardSource
from hone.rewards.scores import Group, Scores
from hone.signals import uninterrupted

Job = tuple[Group, "Future[Scores]"]


def usual_workers() -> int:
    """Half the cores, at most eight: the other half samples."""
    return max(1, min(8, (os.cpu_count() or 1) // 2))


def weights_of(sources: Sequence[RewardSource]) -> dict[str, float]:
    """The weight of each reward that the recipe gives one, for `total`; others weigh 1."""
    weights: dict[str, float] = {}
    for source in sources:
        if isinstance(source, Reward):
            weights[name_of(source)] = source.weight
        else:
            weights |= source.weights
    return weights


def check_names(names: Sequence[str]) -> None:
    """Raises UserError for two rewards of one name."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f"two rewards are called `{twice[0]}`; expected names that differ",
            hint=f"name one of them: rewards: [{{function: ..., name: {twice[0]}_2}}]",
            exit_code=2,
        )


class Scorer:
    """A pool of processes that score groups; a context manager.

    sources: the environment, reward functions, or both. seed: what random numbers in them begin
    with. log: a file for what they print; nowhere when left out. names: of all rewards, in order.
    Entering raises UserError for a source that cannot be loaded. Leaving ends all processes,
    whatever they are doing.
    """

    def __init__(
        self,
        sources: Sequence[RewardSource],
        *,
        workers: int | None = None,
        seed: int = 0,
        log: Path | None = None,
    ) -> None:
        self.sources = list(sources)
        self.names: list[str] = []
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lanes = [Lane(self.sources, seed, log) for _ in range(workers or usual_workers())]
        self._threads: list[threading.Thread] = []

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each reward that the recipe gives one, for `total`; others weigh 1."""
        return weights_of(self.sources)

    def __enter__(self) -> "Scorer":
        try:
            self.names = self._load()
            for lane in self._lanes:
                thread = threading.Thread(
                    target=self._serve, args=(lane,), name="scoring", daemon=True
                )
                thread.start()
                self._threads.append(thread)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def submit(self, group: Group) -> "Future[Scores]":
        """Have a group scored; its future gets the scores in the order of the completions."""
        assert self._threads, "groups are submitted between entering and leaving"
        future: Future[Scores] = Future()
        self._jobs.put((group, future))
        return future

    def _load(self) -> list[str]:
        """Load the sources in the first process; returns the names of all rewards."""
        try:
            of_sources = self._lanes[0].start()
        except Failed as failure:
            raise UserError(f"the rewards cannot be loaded: their process {failure}") from None
        except OSError as error:
            raise UserError(f"no process for the rewards: {error.strerror}") from error
        names = [name for each in of_sources for name in each]
        check_names(names)
        for lane in self._lanes:
            lane.names = of_sources
        return names

    def _serve(self, lane: Lane) -> None:
        """Score one group after the other."""
        with suppress(Failed, UserError, Closed, OSError):  # a group will say so
            lane.start()
        while job := self._jobs.get():
            group, future = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                scores = lane.score(group)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(scores)
        lane.release()

    def _end(self) -> None:
        with uninterrupted():
            with suppress(queue.Empty):
                while job := self._jobs.get_nowait():
                    job[1].cancel()
            for lane in self._lanes:
                lane.close()
                self._jobs.put(None)
            for thread in self._threads:
                thread.join()
            self._threads = []
            for lane in self._lanes:
                lane.release()
