"""Whether batches compute what separate samples compute: layouts, accumulation, shared prompts.

Each function yields checks of one joined model. The samples have one segment each; the trees have a
prompt and completions that hang on it.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache

import numpy as np
import torch

from hone.doctor.adapter import put_adapter
from hone.doctor.computing import (
    Computed,
    base_logprobs,
    compute_apart,
    compute_step,
    own_attention,
    padded,
)
from hone.doctor.findings import (
    Check,
    compare,
    count_different,
    gradient_distance,
    gradient_limit,
    left_out,
    logprob_distance,
    logprob_limit,
)
from hone.models import LanguageModel
from hone.records import Sample, Segment

FORMATS = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}


def check_both(
    name: str,
    compared: str,
    found: Callable[[], Computed],
    expected: Callable[[], Computed],
    dtype: torch.dtype,
) -> Iterator[Check]:
    """The check of the log-probabilities of two computations, then that of their gradients."""
    yield compare(
        f"{name}: log-probabilities",
        compared,
        lambda: found().logprobs,
        lambda: expected().logprobs,
        logprob_distance,
        logprob_limit(dtype),
    )
    yield compare(
        f"{name}: gradients",
        compared,
        lambda: found().gradients,
        lambda: expected().gradients,
        gradient_distance,
        gradient_limit(dtype),
    )


def layout_checks(
    model: LanguageModel, samples: Sequence[Sample], trees: Sequence[Sample]
) -> Iterator[Check]:
    """All checks of how samples are laid out, in the model's own number format."""
    dtype = model.precision.compute
    apart = cache(lambda: compute_apart(model, samples))
    together = cache(lambda: compute_step(model, samples))
    yield from forest_checks(model, together, apart)
    yield from padding_checks(model, samples, together, apart)
    name, compared = "accumulation", f"1 x {len(samples)} against {len(samples)} x 1 samples"
    if model.layout == "alone":
        yield left_out(name, compared, f"one sample at a time: {model.layout_reason}")
    else:
        yield compare(
            f"{name}: gradients",
            compared,
            lambda: compute_step(model, samples, at_once=1).gradients,
            lambda: together().gradients,
            gradient_distance,
            gradient_limit(dtype),
        )
    yield from check_both(
        "shared prompts",
        "a prompt with its completions as one tree against separate samples",
        cache(lambda: compute_step(model, trees)),
        cache(lambda: compute_step(model, unfold(trees))),
        dtype,
    )


def forest_checks(
    model: LanguageModel, together: Callable[[], Computed], apart: Callable[[], Computed]
) -> Iterator[Check]:
    """All samples in one row without padding against separate forwards."""
    name = f"forest in {FORMATS[model.precision.compute]}"
    compared = "one row without padding against separate plain forwards"
    if model.layout != "forest":
        yield left_out(name, compared, f"the layout is {model.layout}: {model.layout_reason}")
        return
    yield from check_both(name, compared, together, apart, model.precision.compute)


def padding_checks(
    model: LanguageModel,
    samples: Sequence[Sample],
    together: Callable[[], Computed],
    apart: Callable[[], Computed],
) -> Iterator[Check]:
    """Padded rows against the forest; against separate forwards where there is no forest."""

    def in_rows() -> Computed:
        with own_attention(model):
            return compute_step(padded(model), samples)

    if model.layout == "alone":
        reason = f"one sample at a time: {model.layout_reason}"
        yield left_out("padding", "padded rows against separate plain forwards", reason)
        return
    forest = model.layout == "forest"
    against = "the forest" if forest else "separate plain forwards"
    yield from check_both(
        "padding",
        f"padded rows against {against}",
        cache(in_rows),
        together if forest else apart,
        model.precision.compute,
    )


def format_checks(
    model: LanguageModel, samples: Sequence[Sample], exact: torch.Tensor, seed: int
) -> Iterator[Check]:
    """The number format of a run: its own distance from fp32, and the forest computed in it, with
    an adapter.

    exact: log-probabilities (P,) of the same samples in fp32.
    """
    dtype = model.precision.compute
    yield compare(
        "number format: log-probabilities",
        f"{FORMATS[dtype]} against fp32, separate plain forwards",
        lambda: base_logprobs(model, samples),
        lambda: exact,
        logprob_distance,
        logprob_limit(dtype),
    )

    def adapted() -> LanguageModel:
        put_adapter(model, seed)
        return model

    yield from forest_checks(
        model,
        cache(lambda: compute_step(adapted(), samples)),
        cache(lambda: compute_apart(adapted(), samples)),
    )


def repeat_checks(model: LanguageModel, samples: Sequence[Sample]) -> Iterator[Check]:
    """The same step twice: the same bytes."""

    def once() -> dict[str, torch.Tensor]:
        computed = compute_step(model, samples)
        return {"": computed.logprobs, **computed.gradients}

    yield compare(
        "repetition",
        "tensors that differ when a step is computed twice",
        once,
        once,
        count_different,
        0.0,
    )


def unfold(trees: Sequence[Sample]) -> list[Sample]:
    """Every completion with its prompt as a sample of its own, in the trees' order."""
    samples: list[Sample] = []
    for tree in trees:
        prompt, *completions = tree.segments
        for completion in completions:
            joined = Segment(
                np.concatenate([prompt.tokens, completion.tokens]),
                np.concatenate([np.zeros(len(prompt.tokens), dtype=bool), completion.trained]),
            )
            samples.append(Sample(len(samples), (joined,)))
    return samples
