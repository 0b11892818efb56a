"""Runs with trackers, by the real command: they change no byte, whatever becomes of them."""

import json
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hone.metrics import read_metrics
from hone.runs import Run
from hone.trackers.follow import everything_sent
from tests.trackers.reading import read_tensorboard, read_texts, read_wandb
from tests.workbench import NEW_MODEL, digest, fingerprint, hone, kill, start, write_data

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

STAGES = """
stages:
  - sft:
      data: chat.jsonl
      batch: {samples: 4}
      steps: 24
      evaluation: {share: 0.2, every: 6}
      checkpoint: {every: 4}
"""
TRACKERS = "trackers: [tensorboard, {type: wandb, mode: offline, finish_within_s: 60}]\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and a run named `plain` without trackers."""
    folder = tmp_path_factory.mktemp("tracked")
    write_data(folder)
    (folder / "recipe.yaml").write_text(NEW_MODEL + STAGES)
    hone(folder, "run", "recipe.yaml", "--name", "plain")
    return folder


def comparable(run: Path) -> dict[str, str]:
    """The run's bytes; an adapter's configuration names its base, which is in the run."""
    found = fingerprint(run)
    configuration = run / "stages/1-sft/model/adapter_config.json"
    text = configuration.read_text().replace(f"/{run.name}/", "/RUN/")
    found["stages/1-sft/model/adapter_config.json"] = digest(text.encode())
    return {key: value for key, value in found.items() if not key.endswith("manifest.json")}


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


def children_of(pid: int) -> list[int]:
    """The processes that a process has started."""
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(word) for path in found for word in path.read_text().split()]


def is_tracker(pid: int) -> bool:
    path = Path(f"/proc/{pid}/cmdline")
    return path.exists() and b"hone.trackers" in path.read_bytes()


def losses(run: Path) -> list[tuple[int, float]]:
    rows = read_metrics(run / "stages/1-sft/metrics.jsonl")
    return [(row["step"], row["loss"]) for row in rows if "split" not in row]


def check_trackers_have(run: Path) -> None:
    """Every step once, in both."""
    series = read_wandb(run / "trackers" / "wandb")
    assert [step for step, _ in series["1-sft/loss"]] == [step for step, _ in losses(run)]
    assert dict(series["1-sft/loss"]) == pytest.approx(dict(losses(run)))
    events = read_tensorboard(run / "trackers" / "tensorboard")
    assert [step for step, _ in events["1-sft/loss"]] == [step for step, _ in losses(run)]
    assert len(events["1-sft/evaluation/loss"]) == len(series["1-sft/evaluation/loss"]) == 5


def test_trackers_change_no_byte_and_a_killed_run_doubles_no_row(folder: Path) -> None:
    (folder / "tracked.yaml").write_text(NEW_MODEL + STAGES + TRACKERS)
    process = start(folder, "run", "tracked.yaml", "--name", "first")
    run = folder / "runs" / "first"
    metrics = run / "stages/1-sft/metrics.jsonl"
    wait_for(lambda: process.poll() is not None or len(read_metrics(metrics)) > 11)
    trackers = [pid for pid in children_of(process.pid) if is_tracker(pid)]
    assert len(trackers) == 2
    kill(process)  # its process group: the trackers are in groups of their own
    wait_for(lambda: not any(map(is_tracker, trackers)))
    printed = hone(folder, "resume", "first")
    assert "warning" not in printed
    assert comparable(run) == comparable(folder / "runs" / "plain")
    check_trackers_have(run)
    assert "everything is sent" in hone(folder, "track", "first")


def test_a_server_that_hangs_costs_one_warning_and_no_byte(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        hanging = f"{{type: mlflow, uri: 'http://127.0.0.1:{port}', finish_within_s: 0.5}}"
        (folder / "hanging.yaml").write_text(NEW_MODEL + STAGES + f"trackers: [{hanging}]\n")
        printed = hone(folder, "run", "hanging.yaml", "--name", "second")
    run = Run(folder / "runs" / "second")
    warnings = [event["message"] for event in run.events() if event["event"] == "warning"]
    expected = "tracker mlflow was not finished within 0.5 s; `hone track second` sends what is"
    assert len(warnings) == 1
    assert warnings[0].startswith(expected)
    assert printed.count(f"warning: {warnings[0]}") == 1
    log = (run.stage_folder(0, "sft") / "log.txt").read_text()
    assert log.count(f"warning: {warnings[0]}\n") == 1
    assert run.status()["state"] == "succeeded"
    assert comparable(run.path) == comparable(folder / "runs" / "plain")


def test_what_could_not_be_sent_is_sent_later(folder: Path) -> None:
    (folder / "blocked").write_text("")
    text = NEW_MODEL + STAGES + "trackers: [{type: tensorboard, folder: blocked/events}]\n"
    (folder / "blocked.yaml").write_text(text)
    printed = hone(folder, "run", "blocked.yaml", "--name", "third")
    assert printed.count("warning: tracker tensorboard failed: NotADirectoryError") == 1
    (told,) = json.loads(hone(folder, "track", "third", "--json", expect=1))
    assert "NotADirectoryError" in told["problem"]
    (folder / "blocked").unlink()
    (told,) = json.loads(hone(folder, "track", "third", "--json"))
    assert told["problem"] is None
    run = folder / "runs" / "third"
    events = read_tensorboard(folder / "blocked" / "events" / "third")
    assert [step for step, _ in events["1-sft/loss"]] == [step for step, _ in losses(run)]
    assert everything_sent(Run(run), "tensorboard", "succeeded")


def test_a_stopped_run_ends_its_trackers_and_they_know(folder: Path) -> None:
    text = (NEW_MODEL + STAGES).replace("steps: 24", "steps: 4000")
    (folder / "long.yaml").write_text(text + "trackers: [tensorboard]\n")
    process = start(folder, "run", "long.yaml", "--name", "stopped")
    run = folder / "runs" / "stopped"
    events = run / "trackers" / "tensorboard"
    wait_for(lambda: any(events.glob("1-sft/*.hone")))
    assert "is being worked on" in hone(folder, "track", "stopped", expect=2)
    trackers = [pid for pid in children_of(process.pid) if is_tracker(pid)]
    assert len(trackers) == 1
    printed = kill(process, signal.SIGINT)
    assert process.returncode == 130
    assert "warning" not in printed
    assert not any(map(is_tracker, trackers))
    assert read_texts(events)["state"] == "stopped"
    assert [step for step, _ in read_tensorboard(events)["1-sft/loss"]] == [
        step for step, _ in losses(run)
    ]


def test_without_trackers_there_is_nothing_to_send(folder: Path) -> None:
    printed = hone(folder, "track", "plain", expect=2)
    assert "names no trackers" in printed
    assert "trackers: [tensorboard]" in printed


def test_a_missing_key_is_found_before_training(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(folder / "no-netrc"))
    (folder / "online.yaml").write_text(NEW_MODEL + STAGES + "trackers: [wandb]\n")
    assert "WANDB_API_KEY is not set" in hone(folder, "check", "online.yaml", expect=1)
    printed = hone(folder, "run", "online.yaml", "--name", "fourth", expect=2)
    assert "WANDB_API_KEY is not set" in printed
    assert not (folder / "runs" / "fourth" / "stages").exists()
