"""Hashes of a model's files: taken once, and what has changed since is found by content."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from huggingface_hub import constants

from hone.provenance import find_file_changes, find_model_changes, record_files, record_model

pytestmark = pytest.mark.quick

OLD_NS = 10**18  # long ago: a time stamp that can be trusted


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, ns=(OLD_NS, OLD_NS))
    return path


def test_hashes_are_those_of_the_content_and_are_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HONE_CACHE", str(tmp_path / "cache"))
    path = write(tmp_path / "model.safetensors", b"weights")
    (record,) = record_files([path])
    assert record["sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert record["size"] == 7
    write(path, b"WEIGHTS")  # the same size and stamp: not read again
    assert record_files([path]) == [record]
    assert find_file_changes([record]) == []
    (change,) = find_file_changes([record], anew=True)
    assert change.after is not None
    assert change.after["sha256"] == hashlib.sha256(b"WEIGHTS").hexdigest()
    assert "7 bytes" in change.in_words()
    os.utime(path)
    assert find_file_changes([record]) == find_file_changes([record], anew=True)
    path.unlink()
    (change,) = find_file_changes([record])
    assert change.after is None and change.in_words().endswith("it is gone")


def test_a_young_file_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HONE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "config.json"
    path.write_text("{}")
    record_files([path])
    assert not (tmp_path / "cache" / "files.json").exists()
    os.utime(path, ns=(OLD_NS, OLD_NS))
    record_files([path])
    assert str(path) in json.loads((tmp_path / "cache" / "files.json").read_text())


def test_a_model_of_the_hub_is_its_snapshot(tmp_path: Path) -> None:
    model = Path(constants.HF_HUB_CACHE) / "models--acme--provenance"

    def publish(commit: str, weights: bytes) -> None:
        write(model / "snapshots" / commit / "config.json", b"{}")
        write(model / "snapshots" / commit / "model.safetensors", weights)
        write(model / "snapshots" / commit / "notes.md", b"not read by anything")
        write(model / "refs" / "main", commit.encode())

    publish("a" * 40, b"first")
    recorded = record_model("acme/provenance")
    assert recorded["revision"] == "a" * 40
    names = [Path(file["path"]).name for file in recorded["files"]]
    assert names == ["config.json", "model.safetensors"]
    assert find_model_changes(recorded, anew=True) == []
    publish("b" * 40, b"other")
    (change,) = find_model_changes(recorded)
    assert "b" * 40 in change.path and change.path.endswith("model.safetensors")


def test_a_model_that_is_nowhere_has_no_files(tmp_path: Path) -> None:
    assert record_model("acme/nowhere")["files"] == []
    path = write(tmp_path / "tiny" / "config.json", b"{}")
    recorded = record_model(str(path.parent))
    assert recorded["revision"] is None
    path.unlink()
    path.parent.rmdir()
    (change,) = find_model_changes(recorded)
    assert change.after is None
