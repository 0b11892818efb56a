"""The story of a run through the real command: stopped early and late, resumed, talked to."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

# A person waits 2 s at most; the rest is room for a machine that does other work besides.
STOP_LIMIT_S = 6.0

RECIPE = """\
model:
  architecture: llama
  config: {hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2}
  tokenizer: {train_on: chat.jsonl, vocabulary: 300}
device: cpu
threads: 1
stages:
  - sft:
      {data: chat.jsonl, steps: 400, batch: {samples: 4}, adapter: {type: full}, precision: fp32}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with (tmp_path / "chat.jsonl").open("w") as file:
        for number in range(40):
            user = {"role": "user", "content": f"What comes after {number}?"}
            assistant = {"role": "assistant", "content": str(number + 1)}
            file.write(json.dumps({"messages": [user, assistant]}) + "\n")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(folder / "cache")}
    return subprocess.Popen(
        [sys.executable, "-m", "hone", *arguments],
        cwd=folder,
        env=settings,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def hone(folder: Path, *arguments: str, given: str | None = None) -> str:
    """What a command that succeeds prints."""
    with start(folder, *arguments) as process:
        out, err = process.communicate(given, timeout=120)
    assert process.returncode == 0, err
    return out


def stop(process: subprocess.Popen[str], signum: signal.Signals, after: str, pause_s: float) -> str:
    """Send a signal some time after a line that contains `after`; the last line of stderr."""
    assert process.stderr is not None
    with process:
        while after not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(pause_s)
        began = time.monotonic()
        process.send_signal(signum)
        _, err = process.communicate(timeout=60)
        assert time.monotonic() - began < STOP_LIMIT_S
    assert process.returncode == 128 + signum, err
    return err.splitlines()[-1]


def test_a_run_is_stopped_resumed_and_talked_to(folder: Path) -> None:
    def state() -> str:
        return str(json.loads(hone(folder, "show", "first", "--json"))["status"]["state"])

    said = stop(
        start(folder, "run", "recipe.yaml", "--name", "first"), signal.SIGTERM, "stages:", 0.2
    )
    assert (said, state()) == ("stopped by SIGTERM; go on: hone resume first", "stopped")
    said = stop(start(folder, "resume", "first"), signal.SIGINT, "run first", 1.0)
    assert (said, state()) == ("stopped by SIGINT; go on: hone resume first", "stopped")
    stop(start(folder, "resume", "first"), signal.SIGTERM, "step 1/400", 0.0)
    assert state() == "stopped"

    hone(folder, "resume", "first")
    (row,) = json.loads(hone(folder, "runs", "--json"))
    assert (row["state"], row["step"], row["steps"]) == ("succeeded", 400, 400)
    assert json.loads(hone(folder, "show", "first", "--json"))["status"]["attempt"] == 4

    asked = ["generate", "first", "--prompt", "What comes after 5?", "--max-tokens", "8", "--json"]
    (answer,) = json.loads(hone(folder, *asked))
    talked = hone(
        folder, "chat", "first", "--temperature", "0", "--max-tokens", "8", given=answer["prompt"]
    )
    assert talked == answer["completion"] + "\n"


def test_check_and_data_show_tell_the_same_counts(folder: Path) -> None:
    shown = json.loads(hone(folder, "data", "show", "recipe.yaml", "--samples", "2", "--json"))
    assert len(shown["samples"]) == 2
    assert shown["counts"]["samples"] == 40
    assert "40 samples" in hone(folder, "check", "recipe.yaml")
