"""One process of the pool at a time, and what is asked of it.

Used by `pool.py`, a thread for each. What is called in the process (`worker.py`) may hang, end it
or take all memory: it is then ended with all that it has started, and another takes its place with
the next call. Processes are fresh ones, never forks, since the caller has torch's threads.
"""

import json
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hone.errors import UserError
from hone.recipe.rewards import Custom, Reward
from hone.recipe.rewards import Environment as EnvironmentSettings
from hone.rewards.channel import Ended, receive, send
from hone.rewards.functions import name_of
from hone.rewards.scores import Group, Score, Scores
from hone.seeds import derive_seed

RewardSource = EnvironmentSettings | Reward

LOAD_WITHIN_S = 300.0  # for a person's imports, which may be a model's
NOTHING_APPLIES = "no reward applies"


class Closed(Exception):
    """The pool is being left."""


class Failed(Exception):
    """A call gave no answer that can be used; the text goes on after its name."""


@dataclass
class _Process:
    """A process with the socket to it."""

    popen: "subprocess.Popen[bytes]"
    channel: socket.socket

    def end(self) -> None:
        """End it and all it has started; whoever waits for its answer learns of that."""
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        with suppress(OSError):
            self.channel.shutdown(socket.SHUT_RDWR)

    def bury(self) -> int:
        """End it and let go of it; returns what it ended with."""
        self.end()
        self.channel.close()
        return self.popen.wait()

    def is_gone(self) -> bool:
        """True where it has ended while nobody asked it anything."""
        ready = select.poll()
        ready.register(self.channel, select.POLLIN)
        return bool(ready.poll(0))


@dataclass
class _Said:
    """What a source said of a group, for each completion."""

    rewards: list[dict[str, float | None]]
    failures: list[str | None]
    extra: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)


def source_name(source: RewardSource) -> str:
    """What a source is called in a message."""
    if isinstance(source, Reward):
        return name_of(source)
    return source.code.rpartition(":")[2] if isinstance(source, Custom) else source.type


class Lane:
    """All but `close` is for one thread at a time. names: of the rewards of each source."""

    def __init__(self, sources: Sequence[RewardSource], seed: int, log: Path | None) -> None:
        self.sources, self.seed, self.log = sources, seed, log
        self.names: list[list[str]] = []
        self._process: _Process | None = None
        self._closed = False
        self._lock = threading.Lock()

    def start(self) -> list[list[str]]:
        """Have a process with all sources loaded; returns the names of the rewards of each.

        Raises UserError where they cannot be loaded, Failed where the process does not live.
        """
        process = self._process
        if process is not None and process.is_gone():
            self.release()
            process = None
        if process is None:
            with self._lock:
                if self._closed:
                    raise Closed
                process = self._process = _start(self.log)
            answer = self._ask(process, LOAD_WITHIN_S, "load", self.sources)
            self.names = answer["names"]
        return self.names

    def close(self) -> None:
        """End the process for good, from another thread."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.end()

    def release(self) -> int | None:
        """End the process and let go of it; returns what it ended with."""
        with self._lock:
            process, self._process = self._process, None
        return None if process is None else process.bury()

    def score(self, group: Group) -> Scores:
        """Ask every source about a group; what fails is recorded, and the rest goes on."""
        scores = [Score({}) for _ in group.completions]
        metrics: dict[str, list[float]] = {}
        for index, source in enumerate(self.sources):
            ask = self._called if isinstance(source, Reward) else self._scored
            said = ask(index, source, group)
            name = source_name(source)
            for number, score in enumerate(scores):
                failure = said.failures[number]
                scores[number] = Score(
                    score.rewards | said.rewards[number],
                    score.failure or (failure and f"`{name}` {failure}"),
                    score.extra | {key: values[number] for key, values in said.extra.items()},
                )
            for key, values in said.metrics.items():
                metrics.setdefault(key, []).extend(values)
        return Scores([self._complete(score) for score in scores], metrics)

    def _complete(self, score: Score) -> Score:
        """With all names; a score to which no reward applies is a failure as well."""
        names = [name for each in self.names for name in each]
        rewards = {name: score.rewards.get(name) for name in names}
        applies = any(reward is not None for reward in rewards.values())
        return Score(rewards, score.failure or (None if applies else NOTHING_APPLIES), score.extra)

    def _called(self, index: int, source: RewardSource, group: Group) -> _Said:
        """One call of a function for the whole group."""
        count, name = len(group.completions), source_name(source)
        try:
            answer = self._answer(source.limit_s, "call", index, group, self.seed)
        except Failed as failure:
            return _Said([{} for _ in range(count)], [str(failure)] * count)
        failures = {int(number): text for number, text in answer["failures"].items()}
        return _Said(
            [{name: reward} for reward in answer["rewards"]],
            [failures.get(number) for number in range(count)],
            answer["extra"],
            answer["metrics"],
        )

    def _scored(self, index: int, source: RewardSource, group: Group) -> _Said:
        """One call of an environment for each completion."""
        said = _Said([], [])
        for number, completion in enumerate(group.completions):
            seed = derive_seed(self.seed, group.step, group.task.index, index, number)
            asked = (index, group.task, completion, group.completion_ids[number], seed)
            try:
                answer = self._answer(source.limit_s, "score", *asked)
            except Failed as failure:
                said.rewards.append({})
                said.failures.append(str(failure))
            else:
                said.rewards.append(answer["rewards"])
                said.failures.append(None)
        return said

    def _answer(self, limit_s: float, method: str, *arguments: Any) -> dict[str, Any]:
        """Ask a process that has all sources; raises Failed."""
        try:
            self.start()
        except UserError as error:
            raise Failed(f"cannot be loaded any more: {error.message}") from None
        except OSError as error:  # no memory, no process left
            raise Failed(f"got no process: {error.strerror}") from None
        assert self._process is not None, "it has just been started"
        return self._ask(self._process, limit_s, method, *arguments)

    def _ask(
        self, process: _Process, limit_s: float, method: str, *arguments: Any
    ) -> dict[str, Any]:
        """Send a call and wait for its answer; raises Failed, and UserError for what the person can
        put right while loading.
        """
        message = _pickled((method, *arguments))
        try:
            send(process.channel, message, limit_s)
            answer: dict[str, Any] = json.loads(receive(process.channel, limit_s))
        except TimeoutError:
            self.release()
            raise Failed(f"took longer than {limit_s:g} s") from None
        except (Ended, OSError):
            if self._closed:
                raise Closed from None
            raise Failed(_how_it_ended(self.release())) from None
        if "failure" not in answer:
            return answer
        if method == "load":
            self.release()
            if "fault" in answer:
                raise UserError(answer["fault"], hint=answer["hint"], exit_code=2)
        raise Failed(answer["failure"])


def _start(log: Path | None) -> _Process:
    """A process in a session of its own: Ctrl-C is for the run, which ends it when it leaves."""
    own, other = socket.socketpair()
    with other, open(log or os.devnull, "ab") as output:
        popen = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "hone.rewards.worker",
                str(other.fileno()),
                str(os.getpid()),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[other.fileno()],
            start_new_session=True,
            env=os.environ | {"PYTHONHASHSEED": "0", "PYTHONUNBUFFERED": "1"},
        )
    return _Process(popen, own)


def _pickled(message: tuple[Any, ...]) -> bytes:
    try:
        return pickle.dumps(message)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UserError(
            f"a task cannot be sent to the process that scores it: {error}",
            hint="let the columns of a task hold plain values: numbers, texts, lists",
        ) from error


def _how_it_ended(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended its process with code {code}"
    name = signal.Signals(-code).name
    memory = ", as for want of memory" if name == "SIGKILL" else ""
    return f"had its process ended by {name}{memory}"
