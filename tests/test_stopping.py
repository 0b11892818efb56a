"""SIGINT and SIGTERM in every phase of the real command, and a second process on its run."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hone.cli.commands import invoke
from hone.metrics import read_metrics
from hone.runs import Run
from tests.workbench import NEW_MODEL, kill, start, write_data

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

# Preparing and evaluating take seconds, so that a signal finds them at it.
RECIPE = """
stages:
  - pretrain:
      data: text.jsonl
      steps: 100000
      batch: {samples: 4}
      evaluation: {data: many.jsonl, samples: 1500, every: 100000}
      checkpoint: {every: 20}
"""
MANY = 8_000
STOPS_WITHIN_S = 2.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and a recipe; the tests use it one after another, with a run each."""
    folder = tmp_path_factory.mktemp("stopping")
    write_data(folder)
    row = json.dumps({"text": "12 plus 34 is 46. " * 3}) + "\n"
    (folder / "many.jsonl").write_text(row * MANY)
    (folder / "recipe.yaml").write_text(NEW_MODEL + RECIPE)
    return folder


def wait_for(process: subprocess.Popen[str], arrived: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not arrived():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the moment never came"
        time.sleep(0.002)


# For what does not have to be found preparing or evaluating.
SHORT = ("pretrain.evaluation.data=pairs.jsonl", "pretrain.evaluation.samples=8")


def words(run: Run, *overrides: str) -> tuple[str, ...]:
    """What is typed to work on the run."""
    if run.path.exists():
        return ("resume", run.name)
    return ("run", "recipe.yaml", *overrides, "--name", run.name)


def age_s(moment: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()


def phases(folder: Path, run: Run) -> dict[str, Callable[[], object]]:
    """What is there when a phase has begun, in the order in which a run goes through them."""
    stage = run.path / "stages/1-pretrain"

    def rows() -> int:
        return len(read_metrics(stage / "metrics.jsonl"))

    def is_evaluating() -> bool:
        log = stage / "log.txt"
        return log.exists() and "step 0 of" in log.read_text() and not rows()

    def is_importing() -> bool:
        began = run.status().get("started_at") if run.path.exists() else None
        return began is not None and age_s(began) > 0.2 and run.status()["state"] == "running"

    return {
        "imports": is_importing,
        "preparation": lambda: (
            len(list((folder / "cache/data").glob(".unfinished-*"))) == 1
            and run.read_lock_json().get("stages", {}).get("1", {}).get("data")
        ),
        "evaluation": is_evaluating,
        "training": lambda: rows() > 5,
        "saving": lambda: list((stage / "checkpoints").glob(".step_*.tmp")),
    }


def test_a_signal_stops_every_phase_within_two_seconds(folder: Path) -> None:
    run = Run(folder / "runs" / "phases")
    found = phases(folder, run)
    signums = [signal.SIGINT, signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGINT]
    for attempt, (phase, signum) in enumerate(zip(found, signums, strict=True), 1):
        process = start(folder, *words(run))
        wait_for(process, found[phase])
        began = time.monotonic()
        printed = kill(process, signum)
        taken = time.monotonic() - began
        assert process.returncode == 128 + signum, (phase, printed)
        assert taken < STOPS_WITHIN_S, (phase, taken)
        assert f"stopped by {signum.name}; go on: hone resume phases" in printed, phase
        assert (run.status()["state"], run.status()["attempt"]) == ("stopped", attempt), phase
        assert not list(folder.glob("cache/data/.unfinished-*")), phase
        assert not list(run.path.glob("stages/*/checkpoints/.*")), phase
        metrics = run.path / "stages/1-pretrain/metrics.jsonl"
        assert bool(read_metrics(metrics)) == (phase in ("training", "saving")), phase


@pytest.mark.parametrize("phase", ["imports", "saving"])
def test_a_second_signal_leaves_at_once_and_the_run_goes_on(folder: Path, phase: str) -> None:
    run = Run(folder / "runs" / f"twice-{phase}")
    process = start(folder, *words(run, *SHORT))
    wait_for(process, phases(folder, run)[phase])
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.001)
    began = time.monotonic()
    kill(process, signal.SIGTERM)
    assert time.monotonic() - began < 1
    assert process.returncode in (128 + signal.SIGTERM, 128 + signal.SIGINT)
    before = len(read_metrics(run.path / "stages/1-pretrain/metrics.jsonl"))
    process = start(folder, *words(run))
    wait_for(process, lambda: read_metrics(run.path / "stages/1-pretrain/metrics.jsonl")[before:])
    kill(process, signal.SIGINT)
    assert run.status()["state"] == "stopped"
    assert not list(run.path.glob("stages/*/checkpoints/.*"))


def test_a_run_has_one_process_until_that_is_dead(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    run = Run(folder / "runs" / "shared")
    process = start(folder, *words(run, *SHORT))
    try:
        wait_for(process, phases(folder, run)["training"])
        for asked in (["resume", "shared"], ["remove", "shared", "--yes"]):
            assert invoke(asked) == 2
            told = capsys.readouterr().err
            assert f"process {process.pid} on host `{socket.gethostname()}`" in told
        assert invoke(["run", "recipe.yaml", "--name", "shared", "--clean", "--yes"]) == 2
        assert f"process {process.pid}" in capsys.readouterr().err
        assert run.status()["state"] == "running"
    finally:
        kill(process)
    assert run.status()["state"] == "crashed"
    process = start(folder, "resume", "shared")  # at once, although the lock file is there
    wait_for(process, lambda: run.status()["attempt"] == 2 and run.status()["state"] == "running")
    assert run.holder() is not None
    kill(process, signal.SIGTERM)
    assert run.status()["state"] == "stopped"
