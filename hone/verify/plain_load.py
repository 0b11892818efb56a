"""A result as anyone opens it: with transformers and PEFT, and nothing of Hone between.

Used by the checks that hold Hone's own way of loading against it.
"""

import os
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel


def load_plainly(
    folder: Path, device: torch.device, remote_code: bool = False
) -> PreTrainedModel | PeftModel:
    """The model of a folder, or the adapter of one on the base that it names, in fp32."""
    adapted = (folder / "adapter_config.json").exists()
    base = str(folder)
    if adapted:
        named = PeftConfig.from_pretrained(base).base_model_name_or_path
        base = os.path.expandvars(named or "")  # a recipe may have named it by ${NAME}
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, trust_remote_code=remote_code
    )
    if adapted:
        model = PeftModel.from_pretrained(model, str(folder))
    return model.to(device).eval()
