"""The pool of processes: every fault of a reward is caused for real, and stays where it is."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hone.environments import make_environment
from hone.errors import UserError
from hone.recipe.rewards import Arithmetic, Custom, Reward
from hone.records import Task
from hone.rewards.lane import Closed
from hone.rewards.pool import Scorer, weights_of
from hone.rewards.scores import Group, Score, total
from tests.processes import running

OWN = '''
import ctypes, os, random, signal, subprocess, sys, time


def length(completions, **kwargs):
    return [float(len(each)) for each in completions]

def raises(completions):
    raise ValueError("no such thing\\nand more")

def leaves(completions):
    raise SystemExit("done")

def hangs(completions):
    if "hang" in completions:
        subprocess.Popen(["sleep", "1000"])
        time.sleep(1000)
    return length(completions)

def word(completions):
    return ["abc", 1, None, float("nan")]

def few(completions):
    return [1.0]

def nothing(completions):
    return None

def exits(completions):
    os._exit(3)

def crashes(completions):
    ctypes.string_at(0)

def is_killed(completions):
    os.kill(os.getpid(), signal.SIGKILL)

def is_stopped(completions):
    os.kill(os.getpid(), signal.SIGSTOP)

def eats(completions):
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
    return [float(len(bytes(2**31)))] * 4

def slow(completions):
    time.sleep(0.02 * float(completions[0]))
    return [float(each) for each in completions]

def draws(completions):
    return [random.random() + hash("text") % 1000 for _ in completions]

def noisy(completions):
    print("printed by a reward")
    sys.stderr.write("and complained\\n")
    os.system("echo by a process of its own")
    return length(completions)

def imports(completions, log_extra, log_metric):
    heavy = sorted({"torch", "transformers", "datasets", "pyarrow"} & set(sys.modules))
    log_extra("heavy", [heavy] * 4)
    log_metric("pid", os.getpid())
    return [None, 1, 2, 3]

def inherits(completions, log_extra):
    open_files = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
                  if os.path.lexists(f"/proc/self/fd/{fd}")]
    with open("/proc/self/oom_score_adj") as file:
        log_extra("first_to_go", [int(file.read())] * 4)
    log_extra("open", [open_files] * 4)
    return length(completions)

def counts(completions):
    with open(completions[0], "a") as file:
        file.write(f"{len(completions)}\\n")
    return [1.0] * len(completions)

def meets(completions):
    mine, other = completions
    open(mine, "w").close()
    while not os.path.exists(other):
        time.sleep(0.01)
    return [1.0, 1.0]

def odd_extras(completions, log_extra):
    circle = []
    circle.append(circle)
    log_extra("circle", [circle] * 4)
    return length(completions)

def array_extras(completions, log_extra):
    import numpy
    log_extra("array", [numpy.arange(2), numpy.float32(0.5), {1: object}, sys])
    return numpy.arange(4) / 2

def interrupted(completions):
    for each in (signal.SIGINT,):
        os.kill(os.getpid(), each)
    return length(completions)

def waits(completions):
    open(completions[0], "w").write(str(os.getpid()))
    time.sleep(1000)


class Fragile:
    """An environment that does what it is told."""

    full_marks = {"good": 1.0, "long": 1.0}

    def tasks(self, split):
        return []

    def score(self, task, completion, completion_ids):
        if completion == "hang":
            time.sleep(1000)
        if completion == "exit":
            os._exit(1)
        if completion == "raise":
            raise KeyError(completion)
        if completion == "typo":
            return {"god": 1.0}
        if completion == "word":
            return {"good": "yes"}
        if completion == "list":
            return [1.0]
        return {"good": random.random(), "long": len(completion_ids)}
'''
COMPLETIONS = ["a", "bb", "ccc", ""]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "reward.py"
    path.write_text(OWN)
    return path


def reward(own: Path, name: str, limit_s: float = 20.0, weight: float = 1.0) -> Reward:
    return Reward(function=f"{own}:{name}", limit_s=limit_s, weight=weight)


def group(*completions: str, index: int = 0, step: int = 1) -> Group:
    texts = list(completions or COMPLETIONS)
    return Group(Task(index, "2 + 3?", {"answer": "5"}), texts, [[1]] * len(texts), step=step)


def wait_for(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


def workers_of(pid: int) -> list[int]:
    """The scoring processes of a process, also those that are nobody's children any more."""
    rows = [(worker, command.split()) for worker, command in running().items()]
    return [worker for worker, row in rows if "hone.rewards.worker" in row and row[-1] == str(pid)]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert workers_of(os.getpid()) == []


FAULTS = {
    "raises": "raised ValueError: no such thing",
    "leaves": "raised SystemExit: done",
    "hangs": "took longer than 0.4 s",
    "few": "returned 1 rewards for 4 completions",
    "nothing": "returned None; expected a list of 4 numbers",
    "exits": "ended its process with code 3",
    "crashes": "had its process ended by SIGSEGV",
    "is_killed": "had its process ended by SIGKILL, as for want of memory",
    "is_stopped": "took longer than 0.4 s",
    "eats": "raised MemoryError",
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_call_that_fails_is_a_failure_of_its_group_and_of_no_other(own: Path, name: str) -> None:
    limit_s = 0.4 if "0.4" in FAULTS[name] else 20.0
    sources = [reward(own, "length"), reward(own, name, limit_s)]
    with Scorer(sources, workers=1) as scorer:
        scored = scorer.submit(group("hang", "b", "", "dd")).result()
        other = scorer.submit(group()).result()
        assert len(workers_of(os.getpid())) <= 1
    failure = f"`{name}` {FAULTS[name]}"
    assert scored == [
        Score({"length": length, name: None}, failure) for length in (4.0, 1.0, 0.0, 2.0)
    ]
    if name == "hangs":
        assert [score.failure for score in other] == [None] * 4
        assert [score.rewards[name] for score in other] == [1.0, 2.0, 3.0, 0.0]
    else:
        assert [score.failure for score in other] == [failure] * 4
    assert [score.rewards["length"] for score in other] == [1.0, 2.0, 3.0, 0.0]


def test_what_a_hung_reward_has_started_ends_with_it(own: Path) -> None:
    def sleepers() -> list[str]:
        return [command for command in running().values() if command == "sleep 1000"]

    with Scorer([reward(own, "hangs", 0.5)], workers=1) as scorer:
        future = scorer.submit(group("hang"))
        wait_for(sleepers)
        assert future.result()[0].failure == "`hangs` took longer than 0.5 s"
        wait_for(lambda: not sleepers())


def test_a_value_that_is_no_number_is_that_of_one_completion(own: Path) -> None:
    with Scorer([reward(own, "word")], workers=1) as scorer:
        scored = scorer.submit(group()).result()
    assert scored == [
        Score({"word": None}, "`word` returned 'abc'"),
        Score({"word": 1.0}),
        Score({"word": None}, "no reward applies"),
        Score({"word": None}, "`word` returned nan"),
    ]


def test_one_completion_that_fails_in_an_environment_leaves_the_others(own: Path) -> None:
    told = ["fine", "hang", "exit", "raise", "typo", "word", "list", "fine"]
    environment = Custom(code=f"{own}:Fragile", limit_s=0.5)
    with Scorer([environment, reward(own, "length")], workers=1) as scorer:
        scored = scorer.submit(group(*told)).result()
        assert scorer.names == ["good", "long", "length"]
    assert [score.failure for score in scored] == [
        None,
        "`Fragile` took longer than 0.5 s",
        "`Fragile` ended its process with code 1",
        "`Fragile` raised KeyError: 'raise'",
        "`Fragile` returned `god`, which is not one of good, long",
        "`Fragile` returned 'yes'",
        "`Fragile` returned list; expected rewards by name",
        None,
    ]
    assert scored[1].rewards == {"good": None, "long": None, "length": 4.0}
    assert scored[0].rewards["long"] == 1.0
    assert scored[0].rewards["good"] != scored[-1].rewards["good"]


def test_scores_are_those_of_their_group_whichever_process_is_first(own: Path) -> None:
    """The first groups take longest; what is drawn does not depend on the process either."""
    groups = [group(str(8 - n), str(n), index=n) for n in range(8)]
    found = []
    for workers in (1, 3):
        with Scorer([reward(own, "slow"), reward(own, "draws")], workers=workers) as scorer:
            futures = [scorer.submit(each) for each in groups]
            found.append([future.result() for future in futures])
    assert found[0] == found[1]
    assert [scores[1].rewards["slow"] for scores in found[0]] == [float(n) for n in range(8)]
    drawn = {score.rewards["draws"] for scores in found[0] for score in scores}
    assert len(drawn) == 16
    with Scorer([reward(own, "slow"), reward(own, "draws")], workers=1, seed=1) as scorer:
        assert scorer.submit(groups[0]).result() != found[0][0]


@pytest.mark.quick
def test_an_environment_scores_as_it_does_by_itself() -> None:
    settings = Arithmetic(weights={"format": 0.25}, train_tasks=3)
    environment = make_environment(settings)
    with Scorer([settings], workers=2) as scorer:
        for task in environment.tasks("train"):
            said = [str(task.gold), "12", f"{task.gold} apples", "x"]
            scores = scorer.submit(Group(task, said, [[1]] * 4)).result()
            assert [score.rewards for score in scores] == [environment.score(task, s) for s in said]
            assert total(scores[0], scorer.weights) == 1.25


@pytest.mark.quick
def test_weights_are_those_of_the_recipe(own: Path) -> None:
    sources = [Arithmetic(weights={"format": 0.25}), reward(own, "length", weight=-2.0)]
    assert weights_of(sources) == {"format": 0.25, "length": -2.0}


def test_a_function_is_called_once_for_a_group(own: Path, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    with Scorer([reward(own, "counts")], workers=2) as scorer:
        futures = [scorer.submit(group(str(calls), "b", index=n)) for n in range(5)]
        assert all(future.result()[0].failure is None for future in futures)
    assert calls.read_text() == "2\n" * 5


def test_groups_are_scored_beside_each_other(own: Path, tmp_path: Path) -> None:
    """Each of two calls waits for the other one to begin."""
    one, two = f"{tmp_path}/one", f"{tmp_path}/two"
    with Scorer([reward(own, "meets")], workers=2) as scorer:
        futures = [scorer.submit(group(one, two)), scorer.submit(group(two, one))]
        assert [future.result()[0].failure for future in futures] == [None, None]


def test_processes_inherit_nothing_and_go_first_where_memory_runs_out(
    own: Path, tmp_path: Path
) -> None:
    with (tmp_path / "lock").open("w") as lock:
        os.set_inheritable(lock.fileno(), True)
        with Scorer([reward(own, "inherits")], workers=1) as scorer:
            score = scorer.submit(group()).result()[0]
    assert score.failure is None
    held = [name for name in score.extra["open"] if not name.startswith("/proc/")]
    # The event loop has its own pair of sockets and its epoll.
    assert {name.partition(":")[0] for name in held} <= {"/dev/null", "socket", "anon_inode"}
    assert score.extra["first_to_go"] == 1000


def test_extras_of_any_kind_come_back_or_are_a_failure(own: Path) -> None:
    with Scorer([reward(own, "array_extras")], workers=1) as scorer:
        scores = scorer.submit(group()).result()
    assert [score.rewards["array_extras"] for score in scores] == [0.0, 0.5, 1.0, 1.5]
    extras = [score.extra["array"] for score in scores]
    assert extras[:2] == [[0, 1], 0.5]
    assert extras[2] == {"1": "<class 'object'>"}
    with Scorer([reward(own, "odd_extras")], workers=1) as scorer:
        scores = scorer.submit(group()).result()
    assert scores[0].failure == "`odd_extras` raised ValueError: Circular reference detected"


def test_nothing_heavy_is_imported_and_extras_come_back(own: Path) -> None:
    with Scorer([reward(own, "imports")], workers=1) as scorer:
        scores = scorer.submit(group()).result()
        (pid,) = workers_of(os.getpid())
    assert [score.extra for score in scores] == [{"heavy": []}] * 4
    assert scores.metrics == {"pid": [pid]}
    assert [score.failure for score in scores] == ["no reward applies", None, None, None]


def test_what_is_printed_goes_to_the_log_and_nowhere_else(
    own: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "rewards.log"
    with Scorer([reward(own, "noisy"), reward(own, "raises")], workers=1, log=log) as scorer:
        scorer.submit(group()).result()
    text = log.read_text()
    assert text.startswith("printed by a reward\nand complained\nby a process of its own\n")
    assert text.endswith("ValueError: no such thing\nand more\n")
    with Scorer([reward(own, "noisy")], workers=1) as scorer:
        scorer.submit(group()).result()
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_a_process_that_was_killed_while_idle_is_replaced(own: Path) -> None:
    with Scorer([reward(own, "length")], workers=1) as scorer:
        scorer.submit(group()).result()
        (pid,) = workers_of(os.getpid())
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: workers_of(os.getpid()) == [])
        scores = scorer.submit(group()).result()
    assert [score.rewards["length"] for score in scores] == [1.0, 2.0, 3.0, 0.0]
    assert [score.failure for score in scores] == [None] * 4


def test_ctrl_c_is_not_for_the_processes(own: Path) -> None:
    with Scorer([reward(own, "interrupted")], workers=1) as scorer:
        (pid,) = workers_of(os.getpid())
        assert os.getsid(pid) == pid
        scores = scorer.submit(group()).result()
    assert [score.failure for score in scores] == [None] * 4


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (["lenght"], r"there is no `lenght` in .*; did you mean `length`\?"),
        (["length", "length"], "two rewards are called `length`; expected names that differ"),
    ],
)
def test_what_cannot_be_loaded_is_told_before_anything_begins(
    own: Path, sources: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message), Scorer([reward(own, each) for each in sources]):
        pass


def test_a_file_that_ends_its_process_on_import(tmp_path: Path) -> None:
    own = tmp_path / "reward.py"
    own.write_text("import os; os._exit(7)")
    with (
        pytest.raises(UserError, match="their process ended its process with code 7"),
        Scorer([reward(own, "length")]),
    ):
        pass


def test_a_file_that_cannot_be_loaded_any_more(own: Path) -> None:
    with Scorer([reward(own, "exits"), reward(own, "length")], workers=1) as scorer:
        own.unlink()
        scores = scorer.submit(group("a", "b")).result()
        assert scores[0].rewards == {"exits": None, "length": None}
        again = scorer.submit(group("a")).result()
    assert scores[0].failure == "`exits` ended its process with code 3"
    assert str(again[0].failure).startswith("`exits` cannot be loaded any more: rewards: there is")


def test_leaving_does_not_wait_for_a_reward(own: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(ZeroDivisionError), Scorer([reward(own, "waits", 900)], workers=1) as scorer:
        running = scorer.submit(group(f"{tmp_path}/running"))
        waiting = scorer.submit(group(f"{tmp_path}/waiting"))
        wait_for((tmp_path / "running").exists)
        _ = 1 / 0
    assert time.monotonic() - began < 60
    with pytest.raises(Closed):
        running.result()
    with pytest.raises(CancelledError):
        waiting.result()


def test_a_task_that_cannot_be_sent_is_told(own: Path) -> None:
    task = Task(0, "a", {"open": sys.stdout})
    with Scorer([reward(own, "length")], workers=1) as scorer:
        future = scorer.submit(Group(task, ["a"], [[1]]))
        with pytest.raises(UserError, match="a task cannot be sent to the process that scores"):
            future.result()


@pytest.mark.parametrize("busy", [True, False])
def test_processes_end_with_a_parent_that_is_killed(own: Path, tmp_path: Path, busy: bool) -> None:
    """SIGKILL of the run, while rewards are computed and while none are."""
    script = f"""
import sys, time
from hone.recipe.rewards import Reward
from hone.records import Task
from hone.rewards.pool import Scorer
from hone.rewards.scores import Group
with Scorer([Reward(function={f"{own}:waits"!r}, limit_s=900.0)], workers=2) as scorer:
    if {busy}:
        for n in range(2):
            name = f"{tmp_path}/running{{n}}"
            scorer.submit(Group(Task(n, "a"), [name], [[1]]))
    open("{tmp_path}/begun", "w").close()
    time.sleep(1000)
"""
    process = subprocess.Popen([sys.executable, "-c", script])
    try:
        wait_for((tmp_path / "begun").exists)
        wait_for(lambda: len(workers_of(process.pid)) == 2)
        if busy:
            wait_for(lambda: len(list(tmp_path.glob("running*"))) == 2)
        process.kill()
        process.wait()
        wait_for(lambda: workers_of(process.pid) == [])
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()
