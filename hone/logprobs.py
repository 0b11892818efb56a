"""Log-probabilities of the trained tokens through the model's own head, never all logits at once.

Hidden states are projected onto the vocabulary only at trained positions and in chunks. Called by
`models.py`; losses see only the result. The entropy is taken on the way where a method asks for it.

Shapes: P trained positions, D hidden size, V vocabulary, K rows with values of their own.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

CHUNK_ELEMENTS = 4 * 2**20  # logits held at once: 128 positions of a 32,000 vocabulary
CACHE_ROWS = 32  # positions whose softmax is taken at once: they stay in the processor's cache
SMALLEST_PROBABILITY = 1e-30  # below it the logarithm of a rounded probability is no longer exact


@dataclass(frozen=True)
class Head:
    """A model's projection: logits = softcap(scale * (hidden @ weight.T + bias)) / temperature.

    weight_VD, bias_V: parameters of the output layer. scale: Granite divides, Cohere multiplies its
    logits. softcap: c in c * tanh(logits / c) (Gemma 2, arXiv:2408.00118, section 2).
    rows_KD: trained rows, which stand in the place of the rows row_ids_K of a frozen weight_VD
    (vocabulary.py). temperature: of the softmax that completions are drawn from.
    """

    weight_VD: torch.Tensor
    bias_V: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0
    row_ids_K: torch.Tensor | None = None
    rows_KD: torch.Tensor | None = None


class Scores(NamedTuple):
    """What is known about the P targets. logprobs: differentiable. likeliest: bool, whether each is
    the likeliest token; all False where a gradient is wanted. entropies: of the softmax at each
    position, in nats, without gradient; None where not asked for.
    """

    logprobs: torch.Tensor
    likeliest: torch.Tensor
    entropies: torch.Tensor | None


def compute_logprobs(
    hidden_PD: torch.Tensor, targets_P: torch.Tensor, head: Head, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Log-probabilities (P,) in fp32 (fp64 for fp64 models), differentiable in hidden states and
    head.

    dtype: the number format of the products; the hidden states' own when left out.
    """
    return compute_scores(hidden_PD, targets_P, head, dtype).logprobs


def compute_scores(
    hidden_PD: torch.Tensor,
    targets_P: torch.Tensor,
    head: Head,
    dtype: torch.dtype | None = None,
    *,
    entropies: bool = False,
) -> Scores:
    """What `compute_logprobs` gives, and what comes with it. entropies: whether they are wanted."""
    dtype = dtype or hidden_PD.dtype
    count = len(targets_P)
    filling = -count % fill_multiple(count)
    hidden_PD = F.pad(hidden_PD, (0, 0, 0, filling))
    targets_P = F.pad(targets_P, (0, filling))
    trained: tuple[torch.Tensor | None, ...] = (head.weight_VD, head.bias_V, head.rows_KD)
    if not torch.is_grad_enabled():  # the function would be told of gradients that nobody wants
        trained = tuple(each if each is None else each.detach() for each in trained)
    logprobs, likeliest, found = _Logprobs.apply(
        hidden_PD, *trained, targets_P, head, dtype, entropies
    )
    return Scores(logprobs[:count], likeliest[:count], found[:count] if entropies else None)


def fill_multiple(count: int) -> int:
    """What `count` positions are filled up to a multiple of: few different shapes, as in forest.py.

    At least 16, and between a sixteenth and an eighth of the count.
    """
    return max(16, 1 << max(0, count.bit_length() - 4))


def _project(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    rows: torch.Tensor | None,
    head: Head,
) -> torch.Tensor:
    logits = F.linear(hidden, weight, bias)
    if rows is not None:
        logits[:, head.row_ids_K] = F.linear(hidden, rows)
    if head.scale != 1.0:
        logits = logits * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return logits if head.temperature == 1.0 else logits / head.temperature


def compute_logits(
    hidden_PD: torch.Tensor, head: Head, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """All logits (P, V) of a few positions, in `dtype`; the hidden states' own when left out."""
    dtype = dtype or hidden_PD.dtype
    with torch.autocast(hidden_PD.device.type, enabled=False):
        weight = head.weight_VD.to(dtype)
        bias = None if head.bias_V is None else head.bias_V.to(dtype)
        rows = None if head.rows_KD is None else head.rows_KD.to(dtype)
        return _project(hidden_PD.to(dtype), weight, bias, rows, head)


def _softmax(logits: torch.Tensor) -> torch.Tensor:
    return torch.softmax(
        logits, dim=-1, dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32
    )


def log_chosen(
    probabilities: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """log p(target): the logarithm of the probability, which saves a pass over the logits, where it
    is not too small.
    """
    chosen = probabilities.gather(1, targets[:, None])[:, 0]
    logprobs = chosen.log()
    small = (chosen < SMALLEST_PROBABILITY).nonzero()[:, 0]
    if len(small):
        exact = logits[small].to(logprobs.dtype).log_softmax(-1)
        logprobs[small] = exact.gather(1, targets[small, None])[:, 0]
    return logprobs


def _entropy(
    probabilities: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor, logprobs: torch.Tensor
) -> torch.Tensor:
    """-sum p log p of each row, as log(sum exp(logits)) - sum p logits: the first is known from the
    target's logit and its log-probability, so that no logarithm is taken of all.
    """
    logits = logits.to(probabilities.dtype)
    norms = logits.gather(1, targets[:, None])[:, 0] - logprobs
    return (norms - torch.linalg.vecdot(probabilities, logits)).clamp_min(0)


def _descent(
    probabilities: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor, head: Head
) -> torch.Tensor:
    """-d log p(target) / d (hidden @ weight.T) = softmax - one-hot, through temperature, soft-cap
    and scale; in place.
    """
    probabilities[torch.arange(len(targets), device=targets.device), targets] -= 1
    if head.softcap is not None:
        probabilities.mul_(1 - (logits * (head.temperature / head.softcap)) ** 2)
    slope = head.scale / head.temperature
    return probabilities if slope == 1.0 else probabilities.mul_(slope)


class _Logprobs(torch.autograd.Function):
    """With a frozen head the gradient's direction is taken in the forward pass, while the logits
    are there: each log-probability depends on its own hidden state only, so backward is one
    multiplication per position. Trained rows beside it need the few columns of that direction which
    are theirs. A trained head needs the upstream gradient for its own, and computes the logits
    again instead.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_PD: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        rows_KD: torch.Tensor | None,
        targets_P: torch.Tensor,
        head: Head,
        dtype: torch.dtype,
        wants_entropies: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        trains_head = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        in_forward = ctx.needs_input_grad[0] and not trains_head
        assert rows_KD is None or not trains_head, "trained rows stand beside a frozen head"
        ctx.head, ctx.dtype = head, dtype
        ctx.size = max(1, CHUNK_ELEMENTS // weight_VD.shape[0])
        logprobs, slopes, columns, likeliest, entropies = [], [], [], [], []
        with torch.autocast(hidden_PD.device.type, enabled=False):
            weight = weight_VD.to(dtype)
            bias = None if bias_V is None else bias_V.to(dtype)
            own_rows = None if rows_KD is None else rows_KD.to(dtype)
            chunks = zip(hidden_PD.split(ctx.size), targets_P.split(ctx.size), strict=True)
            for hidden, targets in chunks:
                logits = _project(hidden.to(dtype), weight, bias, own_rows, head)
                parts = zip(logits.split(CACHE_ROWS), targets.split(CACHE_ROWS), strict=True)
                for rows, chosen in parts:
                    probabilities = _softmax(rows)
                    logprobs.append(log_chosen(probabilities, rows, chosen))
                    if not in_forward and not trains_head:
                        likeliest.append(rows.max(-1).indices == chosen)  # argmax is slow in bf16
                    if wants_entropies:
                        entropies.append(_entropy(probabilities, rows, chosen, logprobs[-1]))
                    if in_forward:
                        rows.copy_(_descent(probabilities, rows, chosen, head))
                if in_forward and own_rows is not None:
                    columns.append(logits[:, head.row_ids_K])
                    logits[:, head.row_ids_K] = 0
                    slope = (logits @ weight).addmm_(columns[-1], own_rows)
                    slopes.append(slope.to(hidden_PD.dtype))
                elif in_forward:
                    slopes.append((logits @ weight).to(hidden_PD.dtype))
        if in_forward and rows_KD is not None:
            ctx.save_for_backward(torch.cat(slopes), torch.cat(columns), hidden_PD, rows_KD)
        elif in_forward:
            ctx.save_for_backward(torch.cat(slopes))
        elif trains_head:
            ctx.save_for_backward(hidden_PD, weight_VD, bias_V, targets_P)
        ctx.in_forward = in_forward
        none = torch.zeros(len(targets_P), dtype=torch.bool, device=targets_P.device)
        found = torch.cat(likeliest) if likeliest else none
        measured = torch.cat(entropies) if entropies else torch.zeros(0, device=found.device)
        ctx.mark_non_differentiable(found, measured)
        return torch.cat(logprobs), found, measured

    @staticmethod
    def backward(ctx: Any, grad_P: torch.Tensor, *_: Any) -> Any:  # type: ignore[override]
        if ctx.in_forward:
            slopes_PD, *with_rows = ctx.saved_tensors
            grad_hidden = slopes_PD * -grad_P[:, None].to(slopes_PD.dtype)
            grad_rows = _grad_rows(grad_P, *with_rows) if with_rows else None
            return grad_hidden, None, None, grad_rows, None, None, None, None
        hidden_PD, weight_VD, bias_V, targets_P = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden_PD)
        grad_weight = torch.zeros_like(weight_VD)
        grad_bias = None if bias_V is None else torch.zeros_like(bias_V)
        with torch.autocast(hidden_PD.device.type, enabled=False):
            weight = weight_VD.to(ctx.dtype)
            bias = None if bias_V is None else bias_V.to(ctx.dtype)
            for start in range(0, len(targets_P), ctx.size):
                rows = slice(start, start + ctx.size)
                hidden = hidden_PD[rows].to(ctx.dtype)
                logits = _project(hidden, weight, bias, None, ctx.head)
                descent = _descent(_softmax(logits), logits, targets_P[rows], ctx.head)
                gradient = descent.mul_(-grad_P[rows, None]).to(ctx.dtype)
                grad_hidden[rows] = (gradient @ weight).to(hidden_PD.dtype)
                grad_weight += (gradient.T @ hidden).to(grad_weight.dtype)
                if grad_bias is not None:
                    grad_bias += gradient.sum(0).to(grad_bias.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None, None


def _grad_rows(
    grad_P: torch.Tensor, columns_PK: torch.Tensor, hidden_PD: torch.Tensor, rows_KD: torch.Tensor
) -> torch.Tensor:
    """The gradient of the trained rows: their columns of the descent, weighed, times the hidden
    states.
    """
    with torch.autocast(hidden_PD.device.type, enabled=False):
        weighed_PK = (columns_PK * -grad_P[:, None]).to(columns_PK.dtype)
        return (weighed_PK.T @ hidden_PD.to(weighed_PK.dtype)).to(rows_KD.dtype)
