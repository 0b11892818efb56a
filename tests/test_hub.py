"""Models on the Hub: the local cache first, and a quick answer where there is no network."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hone.errors import UserError
from hone.hub import find_model, is_whole, wanted_files
from hone.model_files import Trust

NAME = "someone/tiny"


def put_in_cache(home: Path, files: dict[str, str]) -> Path:
    """What huggingface_hub would have left of a download."""
    root = home / "hub" / "models--someone--tiny"
    snapshot = root / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("a" * 40)
    for name, text in files.items():
        (snapshot / name).write_text(text)
    return snapshot


def ask(home: Path, code: str, **environment: str) -> str:
    """Run `code` in a fresh process with its own cache and no way to the Hub."""
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": "http://127.0.0.1:9", **environment}
    done = subprocess.run(
        [sys.executable, "-c", f"from hone.hub import *\n{code}"],
        env={"PATH": "/usr/bin:/bin", **settings},
        capture_output=True,
        text=True,
    )
    return done.stdout + done.stderr


@pytest.mark.quick
def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert find_model(str(tmp_path), weights=True) == tmp_path


@pytest.mark.quick
def test_what_cannot_be_an_id_is_refused() -> None:
    with pytest.raises(UserError, match="cannot be a Hub id"):
        find_model("a/b/c/d")


def test_the_local_snapshot_is_taken_without_a_network(tmp_path: Path) -> None:
    snapshot = put_in_cache(tmp_path, {"config.json": "{}", "model.safetensors": ""})
    found = ask(tmp_path, f"print(find_model({NAME!r}, weights=True))")
    assert found.strip() == str(snapshot)


def test_a_snapshot_without_weights_serves_only_who_needs_none(tmp_path: Path) -> None:
    snapshot = put_in_cache(tmp_path, {"config.json": "{}"})
    assert ask(tmp_path, f"print(find_model({NAME!r}))").strip() == str(snapshot)
    began = time.monotonic()
    assert "the Hub cannot be reached" in ask(tmp_path, f"find_model({NAME!r}, weights=True)")
    assert time.monotonic() - began < 10


@pytest.mark.quick
def test_every_shard_counts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "one.safetensors").write_text("")
    assert not is_whole(tmp_path, weights=True)
    (tmp_path / "two.safetensors").write_text("")
    assert is_whole(tmp_path, weights=True)


@pytest.mark.quick
def test_what_can_run_code_is_only_fetched_where_it_is_trusted() -> None:
    assert "*.py" not in wanted_files(True, Trust())
    assert "*.py" in wanted_files(True, Trust(remote_code=True))
    assert not any("bin" in pattern for pattern in wanted_files(True, Trust(pickle=True)))


@pytest.mark.quick
def test_pickled_weights_and_code_make_a_snapshot_whole_only_with_trust(tmp_path: Path) -> None:
    auto_map = {"AutoConfig": "configuration_own.Own", "AutoModel": "acme/other--modeling.Other"}
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": auto_map}))
    (tmp_path / "pytorch_model.bin").write_text("")
    assert not is_whole(tmp_path, weights=True)
    assert is_whole(tmp_path, weights=True, trust=Trust(pickle=True))
    assert not is_whole(tmp_path, weights=False, trust=Trust(remote_code=True))
    (tmp_path / "configuration_own.py").write_text("")
    assert is_whole(tmp_path, weights=False, trust=Trust(remote_code=True))


def test_a_snapshot_with_nothing_but_pickle_is_refused_for_that(tmp_path: Path) -> None:
    snapshot = put_in_cache(tmp_path, {"config.json": "{}", "pytorch_model.bin": ""})
    assert ask(tmp_path, f"print(find_model({NAME!r}, weights=True))").strip() == str(snapshot)
