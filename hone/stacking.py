"""An adapter on top of a frozen one, and both as one adapter on disk.

While it is trained, a layer adds up two low-rank updates: s1 B1 A1 of the adapter before, which is
frozen, and s2 B2 A2 of the new one. What is saved, checkpoints included, is one adapter of rank
r1 + r2 with A = [A1; A2], B = [s1/s2 B1, B2] and the scale s2, which is the same sum
(arXiv:2106.09685, equation 3). The new factors are in it bit for bit, so that resuming cuts them
out again.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora.layer import LoraLayer
from safetensors.torch import load_file, save_file

from hone.quantisation import has_transposed

BEFORE, NEW = "before", "default"
_WEIGHTS = "adapter_model.safetensors"


def stack(model: PeftModel, before: Path) -> None:
    """Put the adapter of a folder, frozen and without dropout, beside the new one."""
    config = LoraConfig.from_pretrained(str(before))
    config.lora_dropout, config.inference_mode = 0.0, True
    config.fan_in_fan_out = has_transposed(model, packed=False)
    model.add_adapter(BEFORE, config)
    model.load_adapter(str(before), BEFORE)
    model.base_model.set_adapter([NEW, BEFORE])
    for _, layer in _layers(model):
        for factors in (layer.lora_A, layer.lora_B):
            if BEFORE in factors:
                factors[BEFORE].requires_grad_(False)


def is_stacked(model: PeftModel) -> bool:
    """True where the model has an adapter on top of a frozen one."""
    return BEFORE in model.peft_config


def save_stacked(model: PeftModel, folder: Path, conceal: Callable[[str], str] = str) -> None:
    """Write both adapters as one, in PEFT's files and always the same bytes."""
    tensors: dict[str, torch.Tensor] = {}
    new, layers = model.peft_config[NEW], _layers(model)
    rank = new.r + model.peft_config[BEFORE].r
    scale = next(layer.scaling[NEW] for _, layer in layers if NEW in layer.scaling)
    for name, layer in layers:
        a, b = _joined(model, layer, scale)
        tensors[f"base_model.model.{name}.lora_A.weight"] = a
        tensors[f"base_model.model.{name}.lora_B.weight"] = b
    config = LoraConfig(
        r=rank,
        lora_alpha=scale * rank,
        lora_dropout=new.lora_dropout,
        target_modules=[name for name, _ in layers],
        fan_in_fan_out=new.fan_in_fan_out,
        task_type="CAUSAL_LM",
        base_model_name_or_path=conceal(new.base_model_name_or_path),
        inference_mode=True,
    )
    config.target_modules = sorted(config.target_modules or ())
    config.save_pretrained(str(folder))
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})


def restore_new(model: PeftModel, checkpoint: Path) -> None:
    """Put the new factors back from what `save_stacked` wrote."""
    tensors = load_file(checkpoint / _WEIGHTS)
    with torch.no_grad():
        for name, layer in _layers(model):
            if NEW in layer.lora_A:
                rank = layer.r[NEW]
                a = tensors[f"base_model.model.{name}.lora_A.weight"][-rank:]
                b = tensors[f"base_model.model.{name}.lora_B.weight"][:, -rank:]
                layer.lora_A[NEW].weight.copy_(a)
                layer.lora_B[NEW].weight.copy_(b)


def _layers(model: PeftModel) -> list[tuple[str, LoraLayer]]:
    """The layers with adapters by their names in the base model."""
    base = model.get_base_model()
    return [(name, layer) for name, layer in base.named_modules() if isinstance(layer, LoraLayer)]


def _joined(model: PeftModel, layer: LoraLayer, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A: (r1 + r2, I) and B: (O, r1 + r2); zeros where the layer has only one of the adapters."""
    parts_a, parts_b = [], []
    for name in (BEFORE, NEW):
        rank = model.peft_config[name].r
        if name in layer.lora_A:
            a, b = layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach()
            b = b if name == NEW else b * (layer.scaling[name] / scale)
        else:
            like = next(iter(layer.lora_A.values())).weight
            a = like.new_zeros(rank, layer.in_features)
            b = like.new_zeros(layer.out_features, rank)
        parts_a.append(a)
        parts_b.append(b)
    return torch.cat(parts_a), torch.cat(parts_b, dim=1)
