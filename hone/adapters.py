"""Low-rank adapters: which layers get one, PEFT's injection, and a faster plain forward.

PEFT owns the file format and the modules. Its forward casts activations around fp32 adapters and
keeps several copies of them; `_LoraLinear` computes the same with one copy, the low-rank products
joined to the frozen layer's own. Variants that are not plain LoRA keep PEFT's forward.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hone.errors import UserError, nearest
from hone.recipe.schema import Lora


def linear_layer_names(model: PreTrainedModel) -> list[str]:
    """The last parts of the names of all linear layers, the output head aside, sorted."""
    head = model.get_output_embeddings()
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and module is not head
        }
    )


def choose_targets(model: PreTrainedModel, wished: list[str] | str) -> list[str]:
    """The layer names that get an adapter; raises UserError for a name no linear layer has."""
    found = linear_layer_names(model)
    if wished == "all":
        return found
    for name in wished:
        if name not in found:
            near = nearest(name, found)
            raise UserError(
                f'adapter.targets: "{name}" is not a linear layer of this model; expected some of: '
                f"{', '.join(found)}" + (f'; did you mean "{near}"?' if near else ""),
                hint="leave `targets` out to adapt all linear layers",
                exit_code=2,
            )
    return sorted(wished)


def add_lora(
    model: PreTrainedModel, settings: Lora, token_rows: dict[str, list[int]] | None = None
) -> PeftModel:
    """Wrap `model` with fresh fp32 adapters from torch's current seed; the base is frozen.

    token_rows: rows of embeddings and head that are trained besides (vocabulary.py).
    """
    targets = choose_targets(model, settings.targets)
    alpha = int(settings.alpha) if float(settings.alpha).is_integer() else settings.alpha
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT takes any number
        lora_dropout=settings.dropout,
        target_modules=targets,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM",
        trainable_token_indices=token_rows,
    )
    return get_peft_model(model, config)  # type: ignore[return-value]


def use_fast_forward(model: PeftModel) -> int:
    """Give every plain LoRA layer the faster forward; returns how many."""
    changed = 0
    for module in model.modules():
        if type(module) is PeftLinear and not module.lora_variant and len(module.lora_A) == 1:
            module.forward = partial(_adapted_forward, module)  # type: ignore[method-assign]
            changed += 1
    return changed


def _adapted_forward(layer: PeftLinear, x: torch.Tensor) -> torch.Tensor:
    (name,) = layer.lora_A
    base = layer.get_base_layer()
    if layer.disable_adapters or layer.merged:
        return base(x)
    weight = base.weight.T if isinstance(base, Conv1D) else base.weight
    return _LoraLinear.apply(
        x,
        layer.lora_dropout[name](x),
        weight,
        base.bias,
        layer.lora_A[name].weight,
        layer.lora_B[name].weight,
        layer.scaling[name],
    )


class _LoraLinear(torch.autograd.Function):
    """y = x W^T + b + s * (d A^T) B^T with d = dropout(x); W and b frozen (arXiv:2106.09685,
    equation 3).

    x, d: (..., I). weight: (O, I). A: (r, I), B: (O, r), in their own format, cast to x's for the
    products.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        dropped: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        lora_a: torch.Tensor,
        lora_b: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        flat = dropped.reshape(-1, dropped.shape[-1])
        a, b = lora_a.to(x.dtype), lora_b.to(x.dtype)
        low = flat @ a.T
        out = F.linear(x.reshape(-1, x.shape[-1]), weight, bias)
        out.addmm_(low, b.T, alpha=scaling)
        ctx.save_for_backward(flat, low, weight, lora_a, lora_b)
        ctx.scaling, ctx.separate = scaling, dropped is not x
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        flat, low, weight, lora_a, lora_b = ctx.saved_tensors
        shape = (*grad.shape[:-1], weight.shape[1])
        grad = grad.reshape(-1, grad.shape[-1])
        a, b = lora_a.to(grad.dtype), lora_b.to(grad.dtype)
        grad_low = (grad @ b).mul_(ctx.scaling)
        grad_b = (grad.T @ low).to(lora_b.dtype).mul_(ctx.scaling)
        grad_a = (grad_low.T @ flat).to(lora_a.dtype)
        grad_x = grad_dropped = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight
            if not ctx.separate:
                grad_x.addmm_(grad_low, a)
            grad_x = grad_x.view(shape)
        if ctx.separate and ctx.needs_input_grad[1]:
            grad_dropped = (grad_low @ a).view(shape)
        return grad_x, grad_dropped, None, None, grad_a, grad_b, None
