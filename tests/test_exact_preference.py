"""Stages that learn from preferences, killed at any moment and resumed, end in the bytes of a run
that never was; the reference is computed once, and what a kill leaves of it is gone on with.
"""

import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from hone.checkpoints import write_folder
from hone.errors import UserError
from hone.recipe.load import load_recipe
from hone.runs import Run, create_run
from hone.stages.reference import PART
from tests.preferences import write_preferences
from tests.test_checkpoints import flip
from tests.test_exact import rows, wait_for
from tests.workbench import (
    NEW_MODEL,
    fingerprint,
    hone,
    kill,
    results,
    start,
    work,
    write_data,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

PAIRS = 2 * PART + 60  # three parts
RECIPE = (
    NEW_MODEL
    + """
stages:
  - sft:
      data: chat.jsonl
      steps: 4
      adapter: {type: lora, rank: 4, dropout: 0.2}
  - dpo:
      data: preferences.jsonl
      loss: {sigmoid: 1.0, sft: 0.2}
      batch: {samples: 12}
      learning_rate: 2e-3
      evaluation: {share: 0.1, every: 10, samples: 20}
      checkpoint: {every: 4, keep: 1}
      token_budget: 128
  - dpo:
      data: judged.jsonl
      loss: kto
      batch: {samples: 6}
      epochs: 0.3
      learning_rate: 2e-3
      adapter: {type: full}
      evaluation: {share: 0.1, every: 10, samples: 20}
      checkpoint: {every: 4}
      token_budget: 128
"""
)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder, and what a run named `first` in it ends in when nothing happens to it."""
    folder = tmp_path_factory.mktemp("exact")
    write_data(folder)
    write_preferences(folder, PAIRS)
    (folder / "recipe.yaml").write_text(RECIPE)
    hone(folder, "run", "recipe.yaml", "--name", "first")
    expected = fingerprint(folder / "runs" / "first")
    (folder / "runs").rename(folder / "uninterrupted")
    return folder, expected


def moments(run: Path, draw: random.Random) -> Iterator[tuple[str, Callable[[], bool]]]:
    """What to wait for before each kill."""

    def parts(stage: str) -> Callable[[], bool]:
        folder = run / "stages" / stage / "reference"
        present = len(list(folder.glob("part_*")))
        return lambda: len(list(folder.glob("part_*"))) > present

    def more_rows(count: int) -> Callable[[], bool]:
        goal = rows(run) + count
        return lambda: rows(run) >= goal

    def saving() -> bool:
        return any(run.glob("stages/*-dpo/checkpoints/.step_*.tmp"))

    yield "the reference of pairs", parts("2-dpo")
    yield "the reference of pairs again", parts("2-dpo")
    yield "a step", more_rows(draw.randint(3, 8))
    yield "a save", saving
    yield "the reference point's reference", parts("3-dpo")
    yield "a save", saving


def test_killed_at_any_moment_and_resumed(reference: tuple[Path, dict[str, str]]) -> None:
    folder, expected = reference
    run, killed, seen = folder / "runs" / "first", list[str](), dict[Path, int]()
    for name, arrived in moments(run, random.Random(time.time_ns())):
        words = ("resume", "first") if run.exists() else ("run", "recipe.yaml", "--name", "first")
        process = start(folder, *words)
        wait_for(process, arrived)
        printed = kill(process)
        assert process.returncode in (0, -signal.SIGKILL), printed
        if process.returncode:
            killed.append(name)
        for path, written in seen.items():
            assert path.stat().st_mtime_ns == written, f"{path} was computed again"
        for path in run.glob("stages/*/reference/part_*/values.npy"):
            seen.setdefault(path, path.stat().st_mtime_ns)
    assert len(killed) >= 5, killed
    assert len(seen) >= 3
    hone(folder, "resume", "first")
    assert fingerprint(run) == expected
    pairs = list((run / "stages/2-dpo/reference").glob("part_*"))
    assert len(pairs) == 3, "every pair once, in parts of a fixed size"


# --- What is wrong with a reference --------------------------------------------------------------

SMALL = """
model: base
threads: 1
stages:
  - dpo:
      data: preferences.jsonl
      steps: 4
      batch: {samples: 8}
      learning_rate: 2e-3
      checkpoint: {every: 1}
"""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder with a base model and pairs, and what SMALL ends in."""
    folder = tmp_path_factory.mktemp("bench")
    write_data(folder)
    write_preferences(folder, 40)
    (folder / "base.yaml").write_text(
        NEW_MODEL + "stages:\n  - pretrain: {data: text.jsonl, steps: 1}\n"
    )
    made = create_run(load_recipe(folder / "base.yaml"), "base", folder / "made")
    work(made)
    (made.path / "stages/1-pretrain/model").rename(folder / "base")
    (folder / "recipe.yaml").write_text(SMALL)
    return folder, results(fingerprint(stopped(folder, "whole", None)))


def stopped(folder: Path, name: str, step: int | None) -> Path:
    """A run that was stopped after this step of SMALL, or never."""
    run = create_run(load_recipe(folder / "recipe.yaml"), name, folder / "runs")
    work(run, (1, step) if step else None)
    return run.path


def resumed(path: Path) -> dict[str, str]:
    work(Run(path))
    return results(fingerprint(path))


def test_a_broken_reference_is_computed_again_where_no_step_was_kept(bench) -> None:
    folder, expected = bench
    run = stopped(folder, "early", 2)
    shutil.rmtree(run / "stages/1-dpo/checkpoints")
    whole = (run / "stages/1-dpo/reference/part_000000/values.npy").read_bytes()
    path = run / "stages/1-dpo/reference/part_000000/values.npy"
    flip(path)
    assert resumed(run) == expected
    assert path.read_bytes() == whole
    assert "differs from its SHA-256" in (run / "stages/1-dpo/log.txt").read_text()


@pytest.mark.parametrize("lost", ["broken", "gone"])
def test_a_reference_that_is_lost_after_steps_is_no_guess(lost: str, bench) -> None:
    """The weights have moved on: what would be computed now is not the reference."""
    folder, expected = bench
    run = stopped(folder, f"late-{lost}", 2)
    if lost == "broken":
        flip(run / "stages/1-dpo/reference/part_000000/values.npy")
    else:
        shutil.rmtree(run / "stages/1-dpo/reference")
    with pytest.raises(UserError, match="part_000000 cannot be used") as refused:
        work(Run(run))
    assert refused.value.hint is not None and str(run / "stages/1-dpo") in refused.value.hint
    shutil.rmtree(run / "stages/1-dpo")
    assert resumed(run) == expected


def test_the_reference_is_read_and_not_computed_by_a_resumed_run(bench) -> None:
    """The control: with other values on the disk, whole ones, a resumed run ends elsewhere."""
    folder, expected = bench
    run = stopped(folder, "other", 2)
    part = run / "stages/1-dpo/reference/part_000000"
    kept = shutil.copytree(part, folder / "kept", ignore=shutil.ignore_patterns("manifest.json"))
    values = np.load(kept / "values.npy")

    def write(temporary: Path) -> None:
        shutil.copytree(kept, temporary, dirs_exist_ok=True)
        draw = np.random.default_rng(0)
        np.save(temporary / "values.npy", values + draw.normal(size=len(values)).astype("float32"))

    write_folder(part, write)
    assert resumed(run) != expected
