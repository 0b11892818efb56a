"""A run that is killed at any moment and resumed ends in the bytes of one that never was."""

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hone.checkpoints import list_checkpoints
from hone.metrics import read_metrics
from tests.workbench import NEW_MODEL, fingerprint, hone, kill, start, write_data

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

RECIPE = (
    NEW_MODEL
    + """
stages:
  - pretrain:
      data: text.jsonl
      batch: {tokens: 256}
      epochs: 2
      evaluation: {share: 0.2, every: 5}
      checkpoint: {every: 3}
      optimizer: {type: adamw, weight_decay: 0.1}
      token_budget: 96
  - sft:
      data: chat.jsonl
      batch: {samples: 6}
      steps: 40
      warmup: 0.1
      adapter: {type: lora, rank: 4, dropout: 0.2}
      add_tokens: [It is]
      evaluation: {share: 0.3, every: 4}
      checkpoint: {every: 3, keep: 1}
      token_budget: 64
"""
)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder, and what a run named `first` in it ends in when nothing happens to it."""
    folder = tmp_path_factory.mktemp("exact")
    write_data(folder)
    (folder / "recipe.yaml").write_text(RECIPE)
    hone(folder, "run", "recipe.yaml", "--name", "first")
    expected = fingerprint(folder / "runs" / "first")
    (folder / "runs").rename(folder / "uninterrupted")
    return folder, expected


def fresh(reference: tuple[Path, dict[str, str]]) -> Path:
    """The folder without runs: the same paths again, since adapters name their base by path."""
    folder = reference[0]
    if (folder / "runs").exists():
        (folder / "runs").rename(folder / f"runs-{time.monotonic_ns()}")
    return folder


def rows(run: Path) -> int:
    return sum(len(read_metrics(path)) for path in run.glob("stages/*/metrics.jsonl"))


def moments(run: Path, draw: random.Random) -> Iterator[tuple[str, Callable[[], bool]]]:
    """What to wait for before each kill: at least five different moments of the work."""

    def after(seconds: float) -> Callable[[], bool]:
        begin = time.monotonic()
        return lambda: time.monotonic() - begin > seconds

    def more_rows(count: int) -> Callable[[], bool]:
        goal = rows(run) + count
        return lambda: rows(run) >= goal

    def saving() -> bool:
        return any(run.glob("stages/*/checkpoints/.step_*.tmp"))

    def evaluating() -> bool:
        for path in run.glob("stages/*/metrics.jsonl"):
            found = read_metrics(path)
            every = 5 if "pretrain" in str(path) else 4
            if found and "split" not in found[-1] and found[-1]["step"] % every == 0:
                return True
        return False

    yield "imports", after(draw.uniform(0.2, 1.5))
    yield "a step", more_rows(draw.randint(3, 8))
    yield "a save", saving
    yield "evaluation", evaluating
    yield "a step", more_rows(draw.randint(12, 20))
    yield "a save", saving
    yield "any moment", after(draw.uniform(2, 5))


def wait_for(process: subprocess.Popen[str], arrived: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and not arrived():
        assert time.monotonic() < deadline, "the moment never came"
        time.sleep(0.002)


def test_killed_at_any_moment_and_resumed(reference: tuple[Path, dict[str, str]]) -> None:
    folder = fresh(reference)
    run = folder / "runs" / "first"
    killed: list[str] = []
    for name, arrived in moments(run, random.Random(time.time_ns())):
        words = ("resume", "first") if run.exists() else ("run", "recipe.yaml", "--name", "first")
        process = start(folder, *words)
        wait_for(process, arrived)
        printed = kill(process)
        assert process.returncode in (0, -signal.SIGKILL), printed
        if process.returncode:
            killed.append(name)
    assert len(killed) >= 5, killed
    if not (run / "DONE").exists():
        hone(
            folder,
            *(("resume", "first") if run.exists() else ("run", "recipe.yaml", "--name", "first")),
        )
    assert fingerprint(run) == reference[1]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_and_resumed(
    reference: tuple[Path, dict[str, str]], signum: signal.Signals, code: int
) -> None:
    """A signal saves the last whole step within two seconds and says how to go on."""
    folder = fresh(reference)
    run = folder / "runs" / "first"
    process = start(folder, "run", "recipe.yaml", "--name", "first")
    metrics = run / "stages/2-sft/metrics.jsonl"
    wait_for(process, lambda: len(read_metrics(metrics)) >= 8)
    began = time.monotonic()
    printed = kill(process, signum)
    assert time.monotonic() - began < 2
    assert process.returncode == code
    assert "hone resume first" in printed
    assert json.loads((run / "status.json").read_text())["state"] == "stopped"
    last = max(row["step"] for row in read_metrics(metrics))
    newest = list_checkpoints(run / "stages/2-sft/checkpoints")[-1]
    assert newest.name == f"step_{last:06d}"
    hone(folder, "resume", "first")
    assert fingerprint(run) == reference[1]


def test_a_flipped_byte_is_named_and_the_checkpoint_before_is_used(
    reference: tuple[Path, dict[str, str]],
) -> None:
    folder = fresh(reference)
    run = folder / "runs" / "first"
    process = start(folder, "run", "recipe.yaml", "--name", "first")
    checkpoints = run / "stages/1-pretrain/checkpoints"
    wait_for(process, lambda: len(list_checkpoints(checkpoints)) >= 2)
    kill(process)
    newest = list_checkpoints(checkpoints)[-1]
    path = newest / "optimizer.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    printed = hone(folder, "resume", "first")
    assert newest.name in printed and "optimizer.safetensors" in printed
    assert fingerprint(run) == reference[1]


def test_resuming_neither_reads_nor_tokenises_again(
    reference: tuple[Path, dict[str, str]],
) -> None:
    """With the data files gone, a resumed run ends the same: all it needs is in the cache."""
    folder = fresh(reference)
    run = folder / "runs" / "first"
    process = start(folder, "run", "recipe.yaml", "--name", "first")
    wait_for(process, (run / "stages/2-sft/metrics.jsonl").exists)
    kill(process)
    for name in ("chat", "text"):
        (folder / f"{name}.jsonl").rename(folder / f"{name}.away")
    try:
        hone(folder, "resume", "first")
    finally:
        for name in ("chat", "text"):
            (folder / f"{name}.away").rename(folder / f"{name}.jsonl")
    assert fingerprint(run) == reference[1]
