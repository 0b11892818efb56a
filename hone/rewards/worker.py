"""A process of the pool: `python -m hone.rewards.worker FD PID`, started by `pool.py`.

It takes pickled messages from the socket FD one at a time and answers each with JSON, until the
socket or the process PID ends. What the person's code prints goes to the log that is its standard
error, or nowhere. Numbers that are drawn are the same whichever process draws them. Ctrl-C is for
the run alone.
"""

import asyncio
import ctypes
import json
import os
import pickle
import random
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hone.environments import Environment, make_environment
from hone.errors import UserError
from hone.recipe.rewards import Reward
from hone.records import Task
from hone.rewards.channel import Ended, receive, send
from hone.rewards.functions import (
    BadAnswer,
    accepted,
    call_function,
    load_reward,
    name_of,
    number,
)
from hone.rewards.scores import Group
from hone.seeds import derive_seed

PR_SET_PDEATHSIG = 1
POLL_S = 1.0
LONGEST = 300  # characters of what an error says


class Called:
    """The sources, loaded, and what the pool may ask for."""

    def __init__(self) -> None:
        self.loaded: list[Any] = []
        self.loop = asyncio.new_event_loop()

    def load(self, sources: Sequence[Any]) -> dict[str, Any]:
        """Load all sources; answers with the names of the rewards of each."""
        names = []
        for source in sources:
            if isinstance(source, Reward):
                self.loaded.append(load_reward(source))
                names.append([name_of(source)])
            else:
                self.loaded.append(make_environment(source))
                names.append(list(self.loaded[-1].full_marks))
        return {"names": names}

    def call(self, index: int, group: Group, seed: int) -> dict[str, Any]:
        """Call the function of a source for a group."""
        draw_from(derive_seed(seed, group.step, group.task.index, index))
        return vars(call_function(self.loaded[index], group, self.loop))

    def score(
        self, index: int, task: Task, completion: str, ids: list[int], seed: int
    ) -> dict[str, Any]:
        """Score one completion in the environment of a source."""
        draw_from(seed)
        environment: Environment = self.loaded[index]
        known = accepted(environment.score, {"completion_ids": ids})
        given = environment.score(task, completion, **known)
        if not isinstance(given, Mapping):
            raise BadAnswer(f"returned {type(given).__name__}; expected rewards by name")
        names = list(environment.full_marks)
        unknown = [str(name) for name in given if name not in names]
        if unknown:
            raise BadAnswer(f"returned `{unknown[0]}`, which is not one of {', '.join(names)}")
        return {
            "rewards": {
                name: None if given.get(name) is None else number(given[name]) for name in names
            }
        }


def main(descriptor: str, parent: str) -> None:
    """Answer until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with(int(parent))
    with suppress(OSError):  # where memory runs out, this process goes before the training
        Path("/proc/self/oom_score_adj").write_text("1000")
    channel = socket.socket(fileno=int(descriptor))
    channel.set_inheritable(False)
    called = Called()
    while True:
        try:
            method, *arguments = pickle.loads(receive(channel))
        except Ended:
            return
        send(channel, answer(called, method, arguments))


def answer(called: Called, method: str, arguments: Sequence[Any]) -> bytes:
    """What a method returns as JSON, or `failure`; or `fault`, which a person can put right."""
    try:
        returned = getattr(called, method)(*arguments)
        return json.dumps(returned, default=plain, skipkeys=True).encode()
    except UserError as error:
        said = {"failure": said_by(error), "fault": error.message, "hint": error.hint}
    except BadAnswer as error:
        said = {"failure": str(error)}
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        said = {"failure": f"raised {said_by(error)}"}
    return json.dumps(said).encode()


def plain(value: Any) -> Any:
    """What JSON does not know: numbers of numpy and torch as numbers, the rest in words."""
    return value.tolist() if hasattr(value, "tolist") else repr(value)


def said_by(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def draw_from(seed: int) -> None:
    """Every call begins with the same state of the usual generators."""
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def end_with(parent: int) -> None:
    """End with the process that started this one, however that ends and whatever is called here."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_S)
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
