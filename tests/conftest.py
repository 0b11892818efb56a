"""What every test stands on: one thread, no network, caches of its own.

The environment is set before anything imports torch or transformers; commands that a test starts
inherit it.
"""

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

gc.set_threshold(50_000, 50, 50)  # a sixth of the time that the libraries take to be imported

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ[name] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["MPLBACKEND"] = "agg"
# bitsandbytes, which PEFT imports where it is installed, has functions compiled as it is imported:
# a second of every command. `test_exact_kinds.py` and `test_gpu.py` leave them compiled.
os.environ["TORCHDYNAMO_DISABLE"] = "1"

# The same examples in every run, but with HONE_FUZZ (tests/fuzz.py); a shared machine must not make
# a test fail for its pace.
hypothesis.settings.register_profile(
    "hone",
    derandomize="HONE_FUZZ" not in os.environ,
    max_examples=100 * int(os.environ.get("HONE_FUZZ", "1")),
    deadline=None,
    database=None,
)
hypothesis.settings.load_profile("hone")


@pytest.fixture(scope="session", autouse=True)
def own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hone's and Hugging Face's caches of this worker are empty at the start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HONE_CACHE", str(tmp_path_factory.mktemp("hone-cache")))
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf-home")))
        yield


@pytest.fixture(autouse=True)
def one_torch_thread() -> None:
    """A worker keeps to one core, also after a test that took more."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)],
        capture_output=True,
        text=True,
    )
    if made.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)
