"""A policy stage that is killed at any moment, sampling and scoring included, ends in the bytes of
one that never was; and what has been scored is never scored again.
"""

import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hone.metrics import read_metrics
from hone.recorded import RolloutFile, groups_of, list_rollout_files
from tests.preferences import write_preferences
from tests.test_exact import wait_for
from tests.workbench import NEW_MODEL, digest, fingerprint, hone, kill, start, write_data

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

STAGE = "3-grpo"
RECIPE = (
    NEW_MODEL
    + """
stages:
  - sft: {data: chat.jsonl, steps: 4, batch: {samples: 4}, adapter: {rank: 4}}
  - dpo: {data: preferences.jsonl, steps: 4, batch: {samples: 4}, checkpoint: {every: 2}}
  - grpo:
      data: prompts.jsonl
      rewards: [reward.py:low, {function: reward.py:short, weight: 0.5}]
      steps: 16
      updates: 2
      group: 4
      completion_tokens: 12
      batch: {samples: 3}
      learning_rate: 0.01
      beta: 0.01
      no_spread: resample
      overlong: {penalty: 0.1}
      sequences_at_once: 5
      evaluation: {share: 0.2, every: 6, temperature: 0.7}
      checkpoint: {every: 3}
"""
)

# Both write down what they are asked; they take a while, so that kills arrive meanwhile.
REWARDS = """
import json
import time
from pathlib import Path


def told(name, number, completion_ids, step):
    with (Path(__file__).parent / "calls.txt").open("a") as file:
        file.write(json.dumps([name, step, number[0], completion_ids]) + "\\n")


def low(completions, number, completion_ids, trainer_state, log_metric, **columns):
    told("low", number, completion_ids, trainer_state.global_step)
    time.sleep(0.05)
    log_metric("group", len(completions))
    return [sum(token < 150 for token in ids) / len(ids) for ids in completion_ids]


async def short(number, completion_ids, trainer_state, **columns):
    told("short", number, completion_ids, trainer_state.global_step)
    return [None if len(ids) == 12 else 1 / len(ids) for ids in completion_ids]
"""


def write_bench(folder: Path) -> None:
    """Data of all three stages, the rewards, and the recipe."""
    write_data(folder)
    chats = [json.loads(line) for line in (folder / "chat.jsonl").read_text().splitlines()]
    asked = [
        {"prompt": [row["messages"][0]], "number": n, "answer": row["messages"][1]["content"]}
        for n, row in enumerate(chats[:20])
    ]
    lines = "".join(json.dumps(row) + "\n" for row in asked)
    (folder / "prompts.jsonl").write_text(lines)
    write_preferences(folder)
    (folder / "reward.py").write_text(REWARDS)
    (folder / "recipe.yaml").write_text(RECIPE)


def contents(run: Path) -> dict[str, str]:
    """The fingerprint of a run, its rollouts and what its KL term compares with included."""
    found = fingerprint(run)
    for path in (*run.glob("stages/*/rollouts/*"), *run.glob("stages/*/start/*")):
        found[str(path.relative_to(run))] = digest(path.read_bytes())
    return found


def calls(folder: Path) -> list[str]:
    """What the rewards were asked: step, task and completions."""
    path = folder / "calls.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.dumps(json.loads(line)[1:]) for line in lines]


def recorded(run: Path) -> set[str]:
    """What has been asked where the scores are on the disk."""
    found: set[str] = set()
    for file in files(run):
        for group in groups_of(file.read()):
            number = int(group[0].place.rpartition(":")[2]) - 1
            updates = max(file.step, 1) - 1
            found.add(json.dumps([updates, number, [list(rollout.ids) for rollout in group]]))
    return found


def files(run: Path) -> list[RolloutFile]:
    return list_rollout_files(sorted((run / "stages").glob("*")))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder, and what a run named `first` in it ends in when nothing happens to it."""
    folder = tmp_path_factory.mktemp("exact-policy")
    write_bench(folder)
    hone(folder, "run", "recipe.yaml", "--name", "first")
    run = folder / "runs" / "first"
    expected = contents(run)
    assert len(calls(folder)) == 2 * len(recorded(run))
    (folder / "runs").rename(folder / "uninterrupted")
    (folder / "calls.txt").unlink()
    return folder, expected


def moments(run: Path, draw: random.Random) -> Iterator[tuple[str, Callable[[], bool]]]:
    """What to wait for before each kill."""

    def whole(count: int) -> Callable[[], bool]:
        goal = count + sum(file.whole for file in files(run))
        return lambda: sum(file.whole for file in files(run)) >= goal

    def scoring() -> bool:
        return any(not file.whole for file in files(run))

    def after(seconds: float) -> Callable[[], bool]:
        begin = time.monotonic()
        return lambda: time.monotonic() - begin > seconds

    def stages(count: int) -> Callable[[], bool]:
        return lambda: len(list((run / "stages").glob("*/metrics.jsonl"))) >= count

    yield "another stage", stages(2)
    yield "held-out tasks", scoring
    yield "another step", whole(1)
    yield "scoring", scoring
    yield "a step", whole(draw.randint(1, 3))
    yield "any moment", after(draw.uniform(2, 6))


def test_killed_at_any_moment_and_resumed(reference: tuple[Path, dict[str, str]]) -> None:
    folder, expected = reference
    run = folder / "runs" / "first"
    draw = random.Random(time.time_ns())
    killed: list[str] = []
    for name, arrived in moments(run, draw):
        words = ("resume", "first") if run.exists() else ("run", "recipe.yaml", "--name", "first")
        known, before = recorded(run), len(calls(folder))
        process = start(folder, *words)
        wait_for(process, arrived)
        time.sleep(draw.uniform(0, 0.1))
        printed = kill(process)
        assert process.returncode in (0, -signal.SIGKILL), printed
        killed += [name] * bool(process.returncode)
        time.sleep(0.3)  # its workers end with it
        assert not known & set(calls(folder)[before:])
    assert len(killed) >= 5, killed
    known, before = recorded(run), len(calls(folder))
    if not (run / "DONE").exists():
        hone(folder, "resume", "first")
    assert not known & set(calls(folder)[before:])
    assert contents(run) == expected
    (folder / "runs").rename(folder / f"killed-{time.monotonic_ns()}")


def test_stopped_while_it_samples_and_scores(reference: tuple[Path, dict[str, str]]) -> None:
    """Within two seconds, with no process left, and nothing lost."""
    folder, expected = reference
    run = folder / "runs" / "first"
    process = start(folder, "run", "recipe.yaml", "--name", "first")
    wait_for(process, lambda: any(not file.whole for file in files(run)))
    began = time.monotonic()
    printed = kill(process, signal.SIGTERM)
    assert time.monotonic() - began < 2
    assert process.returncode == 143 and "hone resume first" in printed
    known, before = recorded(run), len(calls(folder))
    time.sleep(0.3)
    assert len(calls(folder)) == before
    hone(folder, "resume", "first")
    assert not known & set(calls(folder)[before:])
    assert contents(run) == expected
    last = read_metrics(run / "stages" / STAGE / "metrics.jsonl")[-1]
    assert last["split"] == "evaluation" and last["step"] == 16
