"""An adapter in training, saved, and merged: the same model; or the check says that it is not."""

from pathlib import Path

import pytest
import torch
from peft.tuners.lora.layer import LoraLayer

from hone.device import Precision
from hone.doctor.adapter import adapter_checks, put_adapter, same_adapter_checks
from hone.doctor.computing import base_logprobs, compute_step, plain_logprobs
from hone.doctor.findings import logprob_distance, logprob_limit, run_check
from hone.models import LanguageModel, join_model, read_weights
from tests.tiny import FAMILIES, make_model, random_samples

FP32 = Precision(torch.float32, torch.float32, "for the test")
SAMPLES = random_samples(4)
LIMIT = logprob_limit(torch.float32)


def joined(name: str, folder: Path) -> LanguageModel:
    make_model(name).save_pretrained(folder)
    return join_model(read_weights(str(folder), torch.float32), FP32)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "mamba"])
def test_right_adapters_pass(name: str, tmp_path: Path) -> None:
    model = joined(name, tmp_path / "base")
    found = [run_check(c) for c in adapter_checks(model, SAMPLES, tmp_path / "adapter", 0)]
    assert [finding.name for finding in found] == ["adapter saved", "adapter merged"]
    assert all(finding.passes for finding in found)


def test_the_adapter_changes_what_the_model_says(tmp_path: Path) -> None:
    """Otherwise the checks would compare the base with itself."""
    model = joined("llama", tmp_path)
    base = plain_logprobs(model, SAMPLES)
    put_adapter(model, seed=0)
    adapted = compute_step(model, SAMPLES)
    assert logprob_distance(adapted.logprobs, base) > 100 * LIMIT
    assert all("lora" in name for name in adapted.gradients)
    torch.testing.assert_close(base_logprobs(model, SAMPLES), base)


def test_a_merge_that_is_off(tmp_path: Path) -> None:
    """A scale that is changed after training reaches neither the file nor the merged weights."""
    model = joined("llama", tmp_path / "base")
    put_adapter(model, seed=0)
    for layer in model.module.modules():
        if isinstance(layer, LoraLayer):
            layer.scaling["default"] *= 1.01
    found = [run_check(c) for c in adapter_checks(model, SAMPLES, tmp_path / "adapter", 0)]
    assert [finding.status for finding in found] == ["over", "over"]


@pytest.mark.parametrize("part", [0, 1])
def test_each_check_judges_its_own_state(part: int) -> None:
    logprobs = torch.randn(20)
    states = [logprobs, logprobs]
    states[part] = logprobs + 10 * LIMIT * torch.randn(20)
    checks = same_adapter_checks(
        lambda: logprobs, lambda: states[0], lambda: states[1], torch.float32
    )
    assert [run_check(check).passes for check in checks] == [part != 0, part != 1]


def test_what_cannot_be_done_is_a_finding(tmp_path: Path) -> None:
    model = joined("llama", tmp_path / "base")
    (tmp_path / "adapter").write_text("a file stands where the adapter is to be saved")
    found = [run_check(c) for c in adapter_checks(model, SAMPLES, tmp_path / "adapter", 0)]
    assert [finding.status for finding in found] == ["failed", "failed"]
    assert found[0].note
