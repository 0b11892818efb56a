"""Stopped and resumed: the same bytes; or the check says how many files differ."""

from pathlib import Path

import pytest
import torch

from hone.device import Precision
from hone.doctor.findings import run_check
from hone.doctor.resume import resume_checks, same_bytes_check
from hone.stages.start import Start
from tests.tiny import make_model, random_samples

FP32 = Precision(torch.float32, torch.float32, "for the test")


def examine(source: Path, folder: Path):
    (check,) = resume_checks(
        Start.at(str(source)),
        random_samples(4),
        folder,
        precision=FP32,
        device=torch.device("cpu"),
        layout="auto",
        seed=0,
    )
    return run_check(check)


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_a_resumed_training_ends_in_the_same_bytes(name: str, tmp_path: Path) -> None:
    make_model(name).save_pretrained(tmp_path / "base")
    finding = examine(tmp_path / "base", tmp_path / "work")
    assert (finding.status, finding.difference) == ("ok", 0)
    written = tmp_path / "work" / "resumed" / "checkpoints" / "step_000003"
    assert (written / "optimizer.safetensors").stat().st_size > 0


def test_files_that_differ_are_counted() -> None:
    right = {"weights": b"abc", "optimizer": b"def", "metrics": b"ghi"}
    other = {**right, "weights": b"abd"}
    del other["metrics"]
    assert run_check(same_bytes_check(lambda: right, lambda: right)).status == "ok"
    finding = run_check(same_bytes_check(lambda: other, lambda: right))
    assert (finding.status, finding.difference) == ("over", 2)


def test_base_weights_that_change_between_the_attempts(tmp_path: Path) -> None:
    """The frozen weights on disk are other ones when the training is resumed."""
    torch.manual_seed(0)
    (tmp_path / "base").mkdir()
    make_model("llama").save_pretrained(tmp_path / "base")
    (check,) = resume_checks(
        Start.at(str(tmp_path / "base")),
        ChangesTheBase(tmp_path / "base"),
        tmp_path / "work",
        precision=FP32,
        device=torch.device("cpu"),
        layout="auto",
        seed=0,
    )
    assert run_check(check).status == "over"


class ChangesTheBase(list):
    """Samples that put another model in the folder once the third step has begun."""

    def __init__(self, base: Path) -> None:
        super().__init__(random_samples(4))
        self.base, self.asked = base, 0

    def __getitem__(self, index):
        self.asked += 1
        if self.asked == 6:  # two samples in each of three steps
            make_model("llama", seed=1).save_pretrained(self.base)
        return super().__getitem__(index)
