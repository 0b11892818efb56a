"""The loss of single completions with a label: desirable or not.

Each sample is a prompt with one completion, whose tokens carry the constants "label" (1 desirable,
0 not), "reference", and what couples the samples of a step: "divergence", the reference point, and
"same", how many samples of the step have the same label. Used by `stages/preference.py`.

Shapes: N completions, P trained positions.
"""

import torch

from hone.forest import Batch
from hone.losses.outputs import LossFunction, LossOutput
from hone.recipe.preference import Dpo


def kto(
    ratio_N: torch.Tensor,
    desirable_N: torch.Tensor,
    divergence_N: torch.Tensor,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> torch.Tensor:
    """KTO, arXiv:2402.01306: w_d (1 - sigma(beta (r - z))) for a desirable completion, w_u (1
    - sigma(beta (z - r))) for another; r its log-ratio, z the reference point.
    """
    sign_N = torch.where(desirable_N, 1.0, -1.0)
    weight_N = torch.where(desirable_N, desirable_weight, undesirable_weight)
    return weight_N * (1 - torch.sigmoid(sign_N * beta * (ratio_N - divergence_N)))


def make_unpaired_loss(settings: Dpo) -> LossFunction:
    """The loss of a stage that learns from single completions."""
    parameters = settings.parameters_of("kto")

    def loss(logprobs_P: torch.Tensor, batch: Batch) -> LossOutput:
        logprob_N = batch.sum_completions(logprobs_P)
        ratio_N = logprob_N - _sums(batch, "reference", logprob_N.dtype)
        tokens_N = batch.sum_completions(torch.ones_like(logprobs_P))
        desirable_N = _sums(batch, "label", logprob_N.dtype) > 0
        divergence_N, same_N = (
            _sums(batch, name, logprob_N.dtype) / tokens_N for name in ("divergence", "same")
        )
        values_N = kto(ratio_N, desirable_N, divergence_N, **parameters)
        with torch.no_grad():
            reward_N = parameters["beta"] * ratio_N
            found = _metrics(reward_N, logprob_N, desirable_N, same_N, batch.counts.samples)
            right_N = torch.where(desirable_N, 1, -1) * (ratio_N - divergence_N)
            found["accuracy"] = ((right_N.sign() + 1) / 2).sum() / batch.counts.samples
            found["kl"] = divergence_N.sum() / batch.counts.samples
        return LossOutput(values_N.sum() / batch.counts.samples, found)

    return loss


def _sums(batch: Batch, name: str, dtype: torch.dtype) -> torch.Tensor:
    """(N,) a constant summed over each completion."""
    return batch.sum_completions(batch.constants[name].to(dtype))


def _metrics(
    reward_N: torch.Tensor,
    logprob_N: torch.Tensor,
    desirable_N: torch.Tensor,
    same_N: torch.Tensor,
    samples: int,
) -> dict[str, torch.Tensor]:
    """Mean rewards and log-probabilities of the step's desirable and other completions, those of a
    kind that is there, and by how much the rewards differ.
    """
    found: dict[str, torch.Tensor] = {}
    for name, kind_N in (("chosen", desirable_N), ("rejected", ~desirable_N)):
        if kind_N.any():
            found[f"reward_{name}"] = (reward_N / same_N)[kind_N].sum()
            found[f"logprob_{name}"] = (logprob_N / same_N)[kind_N].sum()
    if (same_N < samples).all():  # the step has both
        sign_N = torch.where(desirable_N, 1, -1)
        found["margin"] = (sign_N * reward_N / same_N).sum()
    return found
