"""Every kind of adapter and optimizer, killed and resumed, ends in the bytes of a run that never
was; and its results answer.
"""

import json
from pathlib import Path

import pytest
import torch

from hone.metrics import read_metrics
from hone.quantisation import quantised_bits
from hone.sampling import load_artifact
from tests.test_exact import wait_for
from tests.workbench import NEW_MODEL, fingerprint, hone, kill, start, write_data

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

COMMON = "data: chat.jsonl, steps: 12, checkpoint: {every: 2}, batch: {samples: 4}"
STAGES = [
    "pretrain: {data: text.jsonl, steps: 12, checkpoint: {every: 2}, optimizer: {type: adafactor}}",
    f"sft: {{{COMMON}, adapter: {{type: qlora, rank: 2, dora: true, dropout: 0.1}}}}",
    f"sft: {{{COMMON}, adapter: {{type: lora, rank: 128, rslora: true, layers: [-1], "
    "before: merge}, optimizer: {type: adamw_8bit}}",
    f"sft: {{{COMMON}, adapter: {{type: lora, rank: 3, targets: [o_proj], before: stack}}, "
    "optimizer: {type: adafactor}}",
    f"sft: {{{COMMON}, adapter: {{type: full, layers: [0]}}, optimizer: {{type: adamw_8bit}}}}",
]


def test_killed_in_three_stages_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHDYNAMO_DISABLE")  # with compiled functions, as a person has them
    write_data(tmp_path)
    recipe = NEW_MODEL + "stages:\n" + "".join(f"  - {stage}\n" for stage in STAGES)
    (tmp_path / "recipe.yaml").write_text(recipe)
    printed = hone(tmp_path, "check", "recipe.yaml")
    assert "nothing is wrong" in printed
    printed = hone(tmp_path, "run", "recipe.yaml", "--name", "first")
    for words in (
        "is merged into the base in fp32",
        "it was trained beside packed weights and is merged",
        "with a new one on top",
    ):
        assert words in printed
    run = tmp_path / "runs" / "first"
    expected = fingerprint(run)
    stacked = json.loads((run / "stages/4-sft/model/adapter_config.json").read_text())
    assert stacked["r"] == 131
    assert json.loads((run / "stages/2-sft/model/quantization.json").read_text())["bits"] == 4
    for stage, bits in (("2-sft", 4), ("4-sft", None)):
        opened = load_artifact(str(run / "stages" / stage / "model"), torch.device("cpu"))
        assert quantised_bits(opened.module) == bits
        assert len(opened.generate_text(["What is 1 plus 1?"], max_new_tokens=3)) == 1

    (tmp_path / "runs").rename(tmp_path / "uninterrupted")
    words = ("run", "recipe.yaml", "--name", "first")
    for folder in ("2-sft", "4-sft", "5-sft"):
        metrics = run / "stages" / folder / "metrics.jsonl"
        process = start(tmp_path, *words)
        wait_for(process, lambda metrics=metrics: len(read_metrics(metrics)) >= 5)
        assert process.poll() is None
        kill(process)
        words = ("resume", "first")
    hone(tmp_path, *words)
    assert fingerprint(run) == expected
