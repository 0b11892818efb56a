"""A person's folder for the end-to-end tests: data, a recipe, and the real command."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from hone.metrics import canonical_metrics
from hone.recipe.load import load_recipe
from hone.runs import Run, create_run
from hone.signals import StepReached

HONE = [sys.executable, "-m", "hone"]

NEW_MODEL = """
model:
  architecture: llama
  config: {hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, intermediate_size: 64}
  tokenizer: {train_on: text.jsonl, vocabulary: 320}
seed: 5
threads: 1
"""


def write_data(folder: Path) -> None:
    """chat.jsonl, pairs.jsonl and text.jsonl: sums, in the three ways rows may be written."""
    draw = random.Random(0)
    sums = [(draw.randint(0, 99), draw.randint(0, 99)) for _ in range(160)]
    chats = [
        {
            "messages": [
                {"role": "user", "content": f"What is {a} plus {b}?"},
                {"role": "assistant", "content": f"It is {a + b}."},
            ]
        }
        for a, b in sums
    ]
    pairs = [{"prompt": f"{a} plus {b} is", "completion": f" {a + b}"} for a, b in sums]
    texts = [{"text": f"{a} plus {b} is {a + b}. " * (1 + a % 3)} for a, b in sums]
    for name, rows in (("chat", chats), ("pairs", pairs), ("text", texts)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)


SMALL = """
model: base
threads: 1
stages:
  - sft:
      data: shards
      steps: 6
      batch: {samples: 30}  # so that every sample counts
      adapter: {rank: 4}
      checkpoint: {every: 2}
      evaluation: {data: pairs.jsonl, every: 3, samples: 8}
"""


def write_bench(folder: Path) -> None:
    """The data, two files of them in shards/, a model in base/, and SMALL as recipe.yaml."""
    write_data(folder)
    lines = (folder / "chat.jsonl").read_text().splitlines(keepends=True)
    (folder / "shards").mkdir()
    for name, part in (("a", lines[:80]), ("b", lines[80:])):
        (folder / "shards" / f"{name}.jsonl").write_text("".join(part))
    stages = "stages:\n  - pretrain: {data: text.jsonl, steps: 1}\n"
    (folder / "base.yaml").write_text(NEW_MODEL + stages)
    made = create_run(load_recipe(folder / "base.yaml"), "base", folder / "made")
    work(made)
    (made.path / "stages/1-pretrain/model").rename(folder / "base")
    (folder / "recipe.yaml").write_text(SMALL)


def work(run: Run, until: tuple[int, int] | None = None) -> None:
    """One attempt in this process, ended after (stage from 1, step) where `until` says so."""
    from hone.stages.run import run_recipe

    try:
        with run.attempt():
            run_recipe(run, console=Console(quiet=True), until=until)
    except StepReached:
        pass


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    """`hone WORDS` in `folder`, as the leader of its own process group."""
    return subprocess.Popen(
        [*HONE, *words],
        cwd=folder,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "HONE_CACHE": str(folder / "cache"), "COLUMNS": "200"},
    )


def hone(folder: Path, *words: str, expect: int = 0) -> str:
    """Run `hone WORDS` to its end; returns what it printed."""
    process = start(folder, *words)
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == expect, printed
    return printed


def kill(process: subprocess.Popen[str], signum: int = signal.SIGKILL) -> str:
    """Send a signal to the whole process group and wait; returns what was printed."""
    if process.poll() is None:
        os.killpg(process.pid, signum)
    printed, _ = process.communicate(timeout=60)
    return printed


def fingerprint(run: Path) -> dict[str, str]:
    """SHA-256 of each stage's result, newest optimizer state and canonical metrics."""
    found = {}
    for stage in sorted((run / "stages").iterdir()):
        for path in sorted((stage / "model").rglob("*")):
            found[str(path.relative_to(run))] = digest(path.read_bytes())
        newest = max((stage / "checkpoints").glob("step_*"))
        found[f"{stage.name}/optimizer"] = digest((newest / "optimizer.safetensors").read_bytes())
        found[f"{stage.name}/metrics"] = digest(canonical_metrics(stage / "metrics.jsonl"))
    return found


def results(found: dict[str, str]) -> dict[str, str]:
    """Of a fingerprint, what does not name the base model's folder."""
    named = ("adapter_config.json", "manifest.json")
    return {name: value for name, value in found.items() if not name.endswith(named)}


def digest(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def fill(disk: Path, leave: int) -> Path:
    """A file, grown so that it leaves `leave` bytes of the disk."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file, suppress(OSError):
        while (free := shutil.disk_usage(disk).free - leave) > 0:
            file.write(bytes(free))
    return filler
