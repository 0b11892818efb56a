"""Frozen linear layers in 4 or 8 bits, by bitsandbytes.

Called where a model is read for `adapter: {type: qlora}` and where its result is opened again. The
library packs and unpacks the weights; the products are torch's own in the format of the model, the
same in training and evaluation, with and without an accelerator. (The library's layers round the
inputs to 8 bits in evaluation, and unpack rows that are shorter than a block wrongly on CPUs with
AVX512.) Embeddings, norms and the head stay as they are. The packed weights are a function of the
base's own files, whatever format the arithmetic has.
"""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hone.extras import import_extra
from hone.targets import linear_layers

QUANTISATION = "quantization.json"  # beside an adapter: what its base was while it was trained
_PACKABLE = (torch.float32, torch.bfloat16, torch.float16)


def import_bitsandbytes(module: str, wish: str) -> ModuleType:
    """A module of bitsandbytes; raises UserError with the install command where it is missing."""
    return import_extra(f"bitsandbytes.{module}", "bitsandbytes", wish)


def _functions() -> ModuleType:
    return import_bitsandbytes("functional", "`adapter.type: qlora`")


class QuantisedLinear(nn.Linear):
    """y = x W^T + b with a frozen W that is kept in few bits and unpacked for each product.

    bits 4: NF4 in blocks of 64 weights, their scales quantised again (Dettmers et al. 2023,
    arXiv:2305.14314). bits 8: one scale for each row.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        bits: int,
        dtype: torch.dtype,
        transposed: bool = False,
    ) -> None:
        """weight: (O, I), on the device where it is to stay. dtype: what it is unpacked to.
        transposed: the model's files have it as (I, O).
        """
        nn.Module.__init__(self)
        self.transposed = transposed
        self.out_features, self.in_features = weight.shape
        self.bits, self.dtype = bits, dtype
        self.bias = None if bias is None else nn.Parameter(bias.to(dtype), requires_grad=False)
        if weight.dtype not in _PACKABLE:
            weight = weight.float()
        library = _functions()
        if bits == 8:
            self.packed, self.scales, _ = library.int8_vectorwise_quant(weight.half().contiguous())
        else:
            self.packed, self.scales = library.quantize_4bit(
                weight.contiguous().view(1, -1), quant_type="nf4", compress_statistics=True
            )
            self.scales.dtype = dtype

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """(O, I), unpacked."""
        library = _functions()
        if self.bits == 8:
            return library.int8_vectorwise_dequant(self.packed, self.scales).to(self.dtype)
        shape = (self.out_features, self.in_features)
        return library.dequantize_4bit(self.packed, self.scales).view(shape)

    @property
    def num_weights(self) -> int:
        """Weights that the packed numbers stand for."""
        return self.out_features * self.in_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _FrozenProduct.apply(x, self)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bits={self.bits}"


class _FrozenProduct(torch.autograd.Function):
    """x W^T + b, where W is unpacked again on the way back instead of being kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: QuantisedLinear) -> torch.Tensor:
        ctx.layer = layer
        return F.linear(x, layer.weight, layer.bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        return grad @ ctx.layer.weight, None


def quantise(
    model: PreTrainedModel, bits: int, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    """Pack all linear layers but the head, one after another, on `device`; the rest of the model
    gets the format `dtype`.
    """
    for name in linear_layers(model):
        layer = model.get_submodule(name)
        transposed = isinstance(layer, Conv1D)
        weight = layer.weight.detach().to(device)
        weight = weight.T if transposed else weight
        bias = None if layer.bias is None else layer.bias.detach().to(device)
        model.set_submodule(name, QuantisedLinear(weight, bias, bits, dtype, transposed))
    for parameter in model.parameters():  # buffers, such as those of positions, keep their format
        parameter.data = parameter.data.to(dtype)
    return model.to(device)


def has_transposed(model: nn.Module, *, packed: bool) -> bool:
    """True where linear layers keep their weights as (I, O); `packed`: or did before packing."""
    return any(
        isinstance(module, Conv1D)
        or (packed and isinstance(module, QuantisedLinear) and module.transposed)
        for module in model.modules()
    )


def quantised_bits(module: nn.Module) -> int | None:
    """The bits of the packed layers in `module`, None where there are none."""
    found = (layer.bits for layer in module.modules() if isinstance(layer, QuantisedLinear))
    return next(found, None)


def count_weights(module: nn.Module) -> int:
    """Parameters of a model, those in packed layers included."""
    packed = (layer.num_weights for layer in module.modules() if isinstance(layer, QuantisedLinear))
    return sum(p.numel() for p in module.parameters()) + sum(packed)


def write_quantisation(module: nn.Module, folder: Path) -> None:
    """Write into an adapter's folder what its base was packed to, where it was."""
    bits = quantised_bits(module)
    if bits is not None:
        form = {"bits": bits, "format": "nf4" if bits == 4 else "int8", "double": bits == 4}
        text = json.dumps({"schema": 1, "library": "bitsandbytes", **form}, indent=1)
        (folder / QUANTISATION).write_text(text)


def read_quantisation(folder: Path) -> int | None:
    """The bits of the base that an adapter's folder was trained on; None for its own weights."""
    path = folder / QUANTISATION
    return int(json.loads(path.read_text())["bits"]) if path.is_file() else None
