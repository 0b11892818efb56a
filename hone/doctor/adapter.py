"""Whether an adapter means the same in training, after saving and loading, and merged.

A fresh adapter gets weights that are no zeros, as if it had been trained. It is saved as a result
is, put on its base again as `hone chat` does, and folded into it as a further stage does.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer

from hone.adapters import add_lora, use_fast_forward
from hone.device import seed_torch
from hone.doctor.computing import compute_step, plain_logprobs
from hone.doctor.findings import Check, compare, logprob_distance, logprob_limit
from hone.models import LanguageModel, save_model
from hone.recipe.training import Lora
from hone.records import Sample
from hone.stages.start import merge

RANK = 8
UPDATE = 0.1  # the adapter's update against the weights it is added to, in norms


def adapter_checks(
    model: LanguageModel, samples: Sequence[Sample], folder: Path, seed: int
) -> Iterator[Check]:
    """Save, load and merge an adapter on `model`, which is used up. folder: an empty one."""

    @cache
    def saved() -> torch.Tensor:
        put_adapter(model, seed)
        save_model(model.module, folder)
        return compute_step(model, samples).logprobs

    @cache
    def reloaded() -> torch.Tensor:
        saved()
        module = PeftModel.from_pretrained(model.module.unload(), str(folder))
        model.module = module.eval()
        return plain_logprobs(model, samples)

    def merged() -> torch.Tensor:
        reloaded()
        model.module = merge(model.module.unload(), folder).eval()
        return plain_logprobs(model, samples)

    yield from same_adapter_checks(saved, reloaded, merged, model.precision.compute)


def same_adapter_checks(
    trained: Callable[[], torch.Tensor],
    reloaded: Callable[[], torch.Tensor],
    merged: Callable[[], torch.Tensor],
    dtype: torch.dtype,
) -> Iterator[Check]:
    """The checks of the log-probabilities (P,) of the three states of an adapter."""
    for name, compared, found in (
        ("adapter saved", "saved and loaded again against in training", reloaded),
        ("adapter merged", "folded into the weights against beside them", merged),
    ):
        limit = logprob_limit(dtype)
        yield compare(name, compared, found, trained, logprob_distance, limit)


def put_adapter(model: LanguageModel, seed: int) -> None:
    """Freeze `model` and put an adapter on it that changes what it says, if it has none yet."""
    if isinstance(model.module, PeftModel):
        return
    model.module.requires_grad_(False)
    seed_torch(seed, "doctor", "adapter")
    model.module = add_lora(model.causal, Lora(rank=RANK))
    use_fast_forward(model.module)
    for layer in model.module.modules():
        if isinstance(layer, LoraLayer):
            _fill(layer)


@torch.no_grad()
def _fill(layer: LoraLayer) -> None:
    """Draw B, with an update of the norm `UPDATE` times that of the weights."""
    for name, low_rank in layer.lora_B.items():
        low_rank.weight.normal_()
        weight = layer.get_base_layer().weight
        ratio = weight.norm() / layer.get_delta_weight(name).norm().clamp_min(1e-12)
        low_rank.weight.mul_(UPDATE * ratio)
