"""`hone info` against what the system says of itself."""

import importlib.metadata
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from hone.cli.commands import invoke
from hone.extras import EXTRAS, Extra

pytestmark = pytest.mark.quick


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert invoke(["info", *words]) == 0
    return capsys.readouterr().out


def test_info_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HONE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "data").mkdir(parents=True)
    (tmp_path / "cache" / "data" / "tokens").write_bytes(b"x" * 3000)
    monkeypatch.setitem(EXTRAS, "wandb", Extra(("no_such_module",), "trackers: [wandb]"))
    found = json.loads(told(capsys, "--json", "--runs", str(tmp_path / "runs")))
    assert found["device"] == ("cuda" if torch.cuda.is_available() else "cpu")
    assert len(found["gpus"]) == torch.cuda.device_count()
    assert found["cpu"]["usable_cores"] == len(os.sched_getaffinity(0))
    assert set(found["cpu"]["features"]) <= set(Path("/proc/cpuinfo").read_text().split())
    kilobytes = int(Path("/proc/meminfo").read_text().split()[1])
    assert found["memory"]["machine"] == kilobytes * 1024
    assert found["memory"]["limit"] is None or found["memory"]["limit"] < kilobytes * 1024
    assert found["precision"]["format"] in ("float32", "bfloat16")
    assert found["versions"]["peft"] == importlib.metadata.version("peft")
    assert found["cache"]["folder"] == str(tmp_path / "cache")
    assert found["cache"]["size"] == 3000
    assert found["cache"]["free"] == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.2)
    assert found["runs"] == {"folder": str(tmp_path / "runs"), "count": 0}
    assert found["extras"]["mlflow"]["installed"]
    assert not found["extras"]["wandb"]["installed"]
    assert found["extras"]["wandb"]["command"] == "pip install 'hone-llm[wandb]'"


def test_info_as_text(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(EXTRAS, "wandb", Extra(("no_such_module",), "trackers: [wandb]"))
    lines = told(capsys).splitlines()
    assert lines[0].split()[0] == "device"
    assert ["torch", torch.__version__] in [line.split() for line in lines]
    (wandb,) = (line for line in lines if line.startswith("wandb"))
    assert "pip install 'hone-llm[wandb]'" in wandb
    assert wandb.endswith("trackers: [wandb]")


def test_a_cache_that_does_not_exist_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HONE_CACHE", str(tmp_path / "not" / "there"))
    assert json.loads(told(capsys, "--json"))["cache"]["size"] == 0
    assert not (tmp_path / "not").exists()
