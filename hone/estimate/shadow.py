"""A stage's model with all its modules and no numbers: what `stages/start.py` builds, on tensors
that have a shape and a device only.

Made inside `storages.counted`, from the model on the meta device. The layout is found from which
rules of attention the model asks for; the probe of the loaded model compares numbers besides. Left
out: rows of added tokens.
"""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hone.adapters import Kind, add_lora, use_fast_forward
from hone.attention import (
    FOREST,
    UnsupportedAttention,
    attend_by,
    attend_spans,
    plain_attention,
)
from hone.device import Precision
from hone.forest import ROW_MULTIPLE, Batch, count_step, make_batch
from hone.models import LanguageModel, find_head
from hone.quantisation import QuantisedLinear
from hone.recipe.training import Full, QLora, TrainingStage
from hone.records import Sample, Segment
from hone.stages.policy import turn_off_dropout
from hone.targets import linear_layers, train_blocks

CPU = torch.device("cpu")  # fake tensors say so on every machine
BLOCK_4BIT, NESTED_BLOCK = 64, 256  # weights that share a scale, and scales that share another


class PackedLinear(QuantisedLinear):
    """A packed layer without numbers."""

    def __init__(self, layer: nn.Linear | Conv1D, bits: int, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.transposed = isinstance(layer, Conv1D)
        rows, columns = layer.weight.shape[::-1] if self.transposed else layer.weight.shape
        self.out_features, self.in_features = rows, columns
        self.bits, self.dtype = bits, dtype
        self.bias = layer.bias
        self.register_buffer(
            "packed", torch.empty(packed_bytes(rows, columns, bits), dtype=torch.uint8)
        )

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        return torch.empty(
            self.out_features, self.in_features, dtype=self.dtype, device=self.packed.device
        )


def packed_bytes(rows: int, columns: int, bits: int) -> int:
    """Bytes of packed weights and of their scales, as bitsandbytes keeps them."""
    count = rows * columns
    if bits == 8:
        return count + 4 * rows
    scales = -(-count // BLOCK_4BIT)
    return -(-count // 2) + scales + 4 * -(-scales // NESTED_BLOCK) + 4 * (256 + 16)


def prepare(
    meta: PreTrainedModel, settings: TrainingStage, precision: Precision, before: Kind | None
) -> nn.Module:
    """The stage's modules on the meta device: packed, with adapters, with what is trained.

    before: the adapter that stays frozen beside the new one.
    """
    adapter = settings.trains
    meta.eval()
    if isinstance(adapter, Full):
        train_blocks(meta, adapter.layers)
        return meta
    if isinstance(adapter, QLora):
        with torch.device("meta"):
            for name in linear_layers(meta):
                layer: Any = meta.get_submodule(name)
                meta.set_submodule(name, PackedLinear(layer, adapter.bits, precision.weights))
    if before is not None:  # computed as one adapter of both ranks
        adapter = adapter.model_copy(update={"rank": adapter.rank + before.rank})
    with torch.device("meta"):
        wrapped = add_lora(meta, adapter)
    if before is None:
        use_fast_forward(wrapped)
    return wrapped


def give_memory(module: nn.Module, weights: torch.dtype) -> None:
    """Put fake tensors of the CPU in the place of all meta ones; frozen parameters get the format
    `weights`, trained ones keep fp32. Tied parameters stay tied.
    """
    made: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, old in part._parameters.items():
            if old is None:
                continue
            if id(old) not in made:
                dtype = torch.float32 if old.requires_grad else weights
                made[id(old)] = nn.Parameter(
                    torch.empty(old.shape, dtype=dtype, device=CPU), requires_grad=old.requires_grad
                )
            part._parameters[name] = made[id(old)]
        for name, old in part._buffers.items():
            if old is not None:
                part._buffers[name] = torch.empty(old.shape, dtype=old.dtype, device=CPU)
        for name, old in vars(part).items():  # rotary frequencies kept beside the buffer
            if isinstance(old, torch.Tensor) and old.device.type == "meta":
                setattr(part, name, torch.empty(old.shape, dtype=old.dtype, device=CPU))


def make_shadow(
    module: nn.Module,
    causal: PreTrainedModel,
    settings: TrainingStage,
    precision: Precision,
) -> LanguageModel:
    """The language model of prepared modules, ready to be computed with."""
    give_memory(module, precision.weights)
    model = LanguageModel(module, find_head(causal), precision)  # type: ignore[arg-type]
    if settings.layout == "padded" or not _takes_forest(model):
        causal.set_attn_implementation(plain_attention(causal))
        model.layout = "padded"
    if settings.gradient_checkpointing:
        # Random states are real tensors, which have no place here.
        causal.activation_checkpointing_enable(
            {"use_reentrant": False, "preserve_rng_state": False}
        )
    if getattr(settings, "group", None):
        turn_off_dropout(causal)
    return model


def _takes_forest(model: LanguageModel) -> bool:
    """True where every layer asks for the attention that the forest has."""
    config = model.causal.config.get_text_config()
    asked: list[int] = []
    ids = np.zeros(8, dtype=np.int32)
    sample = Sample(0, (Segment(ids, np.ones(8, dtype=bool)),))
    batch = faked(make_batch([sample], count_step([sample]), multiple=ROW_MULTIPLE))

    def attend(query: Any, key: Any, value: Any, scaling: Any, window: Any) -> torch.Tensor:
        asked.append(1)
        return attend_spans(query, key, value, batch.spans, scaling, window=window)

    try:
        model.causal.set_attn_implementation(FOREST)
        with torch.no_grad(), attend_by(attend):
            model.hidden(batch)
    except (UnsupportedAttention, ValueError, TypeError, AttributeError):
        return False
    return len(asked) == config.num_hidden_layers


def faked(batch: Batch) -> Batch:
    """The batch with fake tensors."""
    tensors = {
        each.name: _like(getattr(batch, each.name))
        for each in fields(batch)
        if isinstance(getattr(batch, each.name), torch.Tensor)
    }
    return replace(batch, **tensors, constants={})


def _like(real: torch.Tensor) -> torch.Tensor:
    return torch.empty(real.shape, dtype=real.dtype, device=CPU)
