"""What `${NAME}` stands for never reaches the run directory."""

import os
from pathlib import Path

import pytest

from tests.workbench import NEW_MODEL, hone, write_data

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def test_a_value_from_the_environment_is_in_no_file_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_data(tmp_path)
    stages = "stages:\n  - pretrain: {data: text.jsonl, steps: 2}\n"
    (tmp_path / "base.yaml").write_text(NEW_MODEL + stages)
    hone(tmp_path, "run", "base.yaml", "--name", "base")
    hidden = tmp_path / "very-secret-place"
    (tmp_path / "runs/base/stages/1-pretrain/model").rename(hidden)
    monkeypatch.setenv("SECRET_MODEL", str(hidden))
    (tmp_path / "recipe.yaml").write_text(
        "model: ${SECRET_MODEL}\nthreads: 1\n"
        "stages:\n  - sft: {data: chat.jsonl, steps: 3, checkpoint: {every: 1}}\n"
    )
    printed = hone(tmp_path, "run", "recipe.yaml", "--name", "first")
    run = tmp_path / "runs" / "first"
    files = [path for path in run.rglob("*") if path.is_file()]
    assert len(files) > 15
    assert [path for path in files if hidden.name.encode() in path.read_bytes()] == []
    assert hidden.name not in printed
    assert "${SECRET_MODEL}" in (run / "stages/1-sft/model/adapter_config.json").read_text()
    assert hone(tmp_path, "generate", "first", "--prompt", "What is 1 plus 1?") is not None
    assert os.environ["SECRET_MODEL"]
