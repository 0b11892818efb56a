"""One step's log-probabilities and gradients, by the engine and by the model alone.

`compute_step` goes the way of `fit.py`: the same layout, log-probabilities and loss.
`compute_apart` is the second, obvious way: the model's own forward of one unpadded sample after the
other, with transformers' attention. Dropout is off in both.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from peft import PeftModel

from hone.doctor.findings import Gradients
from hone.forest import count_step, is_target
from hone.losses import LOSSES
from hone.models import LanguageModel
from hone.records import Sample


@dataclass(frozen=True)
class Computed:
    """logprobs: (P,) of all trained tokens of the step, sample after sample. gradients: of all that
    is trained, by name.
    """

    logprobs: torch.Tensor
    gradients: Gradients


def compute_step(
    model: LanguageModel, samples: Sequence[Sample], *, at_once: int | None = None
) -> Computed:
    """A step as training computes it, in micro-batches of `at_once` samples (all when left out)."""
    counts = count_step(samples)
    if model.layout == "alone":
        at_once = 1
    size = at_once or len(samples)
    model.module.eval()
    logprobs = []
    with clean_gradients(model):
        for begin in range(0, len(samples), size):
            indices = range(begin, min(begin + size, len(samples)))
            batch = model.make_batch([samples[i] for i in indices], counts=counts, indices=indices)
            with model.laid_out(batch):
                found = model.logprobs(batch)
                LOSSES["sft"](found, batch).total.backward()
            logprobs.append(found.detach().cpu())
        return Computed(torch.cat(logprobs), take_gradients(model))


def compute_apart(model: LanguageModel, samples: Sequence[Sample]) -> Computed:
    """The same from the model's own forward of one sample at a time; samples have one segment."""
    total = count_step(samples).trained_tokens
    logprobs = []
    model.module.eval()
    with own_attention(model), clean_gradients(model):
        for sample in samples:
            found = logprobs_of(model, sample)
            (-found.sum() / total).backward()
            logprobs.append(found.detach().cpu())
        return Computed(torch.cat(logprobs), take_gradients(model))


@torch.no_grad()
def plain_logprobs(model: LanguageModel, samples: Sequence[Sample]) -> torch.Tensor:
    """Log-probabilities (P,) from the model's own forwards, one sample at a time."""
    model.module.eval()
    with own_attention(model):
        return torch.cat([logprobs_of(model, sample).cpu() for sample in samples])


def base_logprobs(model: LanguageModel, samples: Sequence[Sample]) -> torch.Tensor:
    """The same without the adapter, where the model has one."""
    module = model.module
    with module.disable_adapter() if isinstance(module, PeftModel) else nullcontext():
        return plain_logprobs(model, samples)


def logprobs_of(model: LanguageModel, sample: Sample) -> torch.Tensor:
    """Log-probabilities (P,) of a sample's trained tokens from the logits of a plain forward."""
    (segment,) = sample.segments
    ids = torch.from_numpy(np.asarray(segment.tokens, dtype=np.int64)).to(model.device)
    places = torch.from_numpy(np.flatnonzero(is_target(segment, False))).to(model.device)
    cast = (
        torch.autocast(model.device.type, dtype=model.precision.compute)
        if model.precision.casts
        else nullcontext()
    )
    with cast:
        logits = model.module(input_ids=ids[None], use_cache=False).logits[0]
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    chosen = logits[places - 1].to(wide).log_softmax(-1)
    return chosen.gather(1, ids[places, None])[:, 0]


def padded(model: LanguageModel) -> LanguageModel:
    """The same model with its batches padded; to be used inside `own_attention`."""
    return replace(model, layout="padded")


@contextmanager
def own_attention(model: LanguageModel) -> Iterator[None]:
    """The attention that the model has without Hone, as long as the context lasts."""
    causal = model.causal
    before = causal.config._attn_implementation
    causal.set_attn_implementation("sdpa" if causal._supports_sdpa else "eager")
    try:
        yield
    finally:
        causal.set_attn_implementation(before)


@contextmanager
def clean_gradients(model: LanguageModel) -> Iterator[None]:
    """No gradients before and after."""
    model.module.zero_grad(set_to_none=True)
    try:
        yield
    finally:
        model.module.zero_grad(set_to_none=True)


def take_gradients(model: LanguageModel) -> Gradients:
    """The gradients that were added up, by the names of their parameters."""
    return {name: p.grad for name, p in model.trainable() if p.grad is not None}
