"""The run that verification is tested on, made once however many workers there are."""

import fcntl
import os
from pathlib import Path

import pytest

from hone.runs import Run, open_run
from tests.verify.ground import variant, write_ground


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, base and recipe, and a finished run `green` in its runs/. To be read
    only: all workers share it.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each worker has a folder of its own in here
        shared = shared.parent
    folder = shared / "verify-ground"
    with (shared / "verify-ground.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "runs" / "green" / "DONE").exists():
            folder.mkdir()
            write_ground(folder)
            variant(folder, "green")
    return folder


@pytest.fixture(scope="session")
def green(ground: Path) -> Run:
    """A finished run on which every check can be green. To be read only; see `copy_of`."""
    return open_run("green", ground / "runs")


@pytest.fixture
def workshop(ground: Path, tmp_path: Path) -> Path:
    """The same data, base and recipe in a folder of the test's own, to change before `variant`."""
    folder = tmp_path / "workshop"
    folder.mkdir()
    return copy_of_ground(ground, folder)


def copy_of_ground(ground: Path, folder: Path) -> Path:
    """Data, base and recipe in another folder, which is returned."""
    for path in ground.iterdir():
        if path.name == "base":
            (folder / "base").symlink_to(path)
        elif path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


PAIR = """
model: base
seed: 7
threads: 1
stages:
  - sft:
      data: sft.jsonl
      adapter: {rank: 16, alpha: 32}
      precision: fp32
      steps: 30
      learning_rate: 0.01
  - dpo:
      data: dpo.jsonl
      adapter: {rank: 16, alpha: 32, before: merge}
      precision: fp32
      batch: {samples: 8}
      steps: 4
      learning_rate: 0.001
"""


@pytest.fixture(scope="session")
def pair(ground: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A short run of two stages, the second on a base of its own. To be read only."""
    folder = copy_of_ground(ground, tmp_path_factory.mktemp("pair"))
    (folder / "recipe.yaml").write_text(PAIR)
    return variant(folder, "pair")
