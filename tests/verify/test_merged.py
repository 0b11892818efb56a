"""The check `merged`: an adapter folded into its base is the same model, or the check is red."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from hone.runs import Run
from hone.verify.distances import compute_logits, texts_of
from hone.verify.plain_load import load_plainly
from hone.verify.subject import Subject
from tests.verify.ground import copy_of
from tests.verify.tampering import Tensors, accept, edit_json, edit_tensors, examine, red, told

CPU = torch.device("cpu")


def test_all_adapters_are_green(green: Run) -> None:
    (found,) = examine(green, "merged").values()
    assert found.status == "passed", found.reason
    assert [part.of for part in found.parts] == ["1-sft", "2-dpo", "3-grpo"]
    assert all(0 < (part.value or 0) < 1e-5 and part.n == 16 for part in found.parts)


def test_factors_that_cancel_out(green: Run, tmp_path: Path) -> None:
    """Two large directions of opposite sign: beside the weights they cancel but for rounding,
    merged they round the weights away. Loaded in two ways it is the same model.
    """
    copy = copy_of(green, tmp_path)
    result = copy.path / "stages/3-grpo/model"

    def cancelling(tensors: Tensors) -> Tensors:
        made = {}
        for name, tensor in tensors.items():
            tensor = tensor.clone()
            if "lora_A" in name:
                tensor[-1] = tensor[-2]
            else:
                tensor[:, -2] = 3e5
                tensor[:, -1] = -3e5
            made[name] = tensor
        return made

    edit_tensors(result, cancelling)
    accept(copy, result)
    found = examine(copy, "artifacts", "merged")
    assert red(found) == {"merged"}
    assert [part.status for part in found["merged"].parts] == ["passed", "passed", "failed"]
    assert found["merged"].value is not None and found["merged"].value > 1e-3
    assert told(found["merged"]) == "3-grpo: merged, it says something else"


def test_another_threshold(green: Run, tmp_path: Path) -> None:
    copy = copy_of(green, tmp_path, thresholds={"merged": 1e-9})
    (found,) = examine(copy, "merged").values()
    assert found.status == "failed" and found.threshold == 1e-9


def test_the_plain_way_to_load_is_that_of_the_libraries(green: Run) -> None:
    """Against the calls that anyone would type."""
    subject = Subject(green)
    stage = subject.stages[0]
    base = AutoModelForCausalLM.from_pretrained(subject.sources[0], dtype=torch.float32)
    expected = PeftModel.from_pretrained(base, stage.model).eval()
    texts = texts_of(subject.material(stage))
    with torch.no_grad():
        rows = [
            expected(input_ids=torch.tensor([text.ids.tolist()])).logits[0, text.places.tolist()]
            for text in texts
        ]
    found = compute_logits(load_plainly(stage.model, CPU), texts)
    torch.testing.assert_close(found, torch.cat(rows), rtol=0, atol=0)


def test_a_base_named_by_a_variable(
    green: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe may name its base by ${NAME}, and so does the adapter's configuration."""
    folder = tmp_path / "model"
    shutil.copytree(green.path / "stages/1-sft/model", folder)
    base = Path(Subject(green).sources[0])
    edit_json(folder / "adapter_config.json", base_model_name_or_path="${PLACE}/base")
    monkeypatch.setenv("PLACE", str(base.parent))
    assert isinstance(load_plainly(folder, CPU), PeftModel)
