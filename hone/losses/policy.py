"""Policy losses: what is done with the advantages of completions that were sampled.

Each is one function of the table `POLICY`; `make_policy_loss` binds its settings and adds what is
measured for all of them. They read the constants "old" (log-probability when the token was
sampled), "advantage" and, for the KL term, "reference" (log-probability at the start of the stage).
Every sum is divided by a count of the whole step, so that a step may be cut in any way. Left out:
how advantages come about (credit.py).

Shapes: P trained positions, C completions of this batch. r = exp(log p - log p_old).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from hone.errors import UserError, nearest
from hone.forest import Batch
from hone.losses.outputs import LossFunction, LossOutput
from hone.memory import is_out_of_memory
from hone.own_code import load_function


@dataclass(frozen=True)
class PolicySettings:
    """clip: how far a ratio may fall below 1 before it no longer counts. clip_high: how far it may
    rise above 1; `clip` when None. beta: weight of the KL term. completion_tokens: the longest
    completion that is sampled. delta: a bound of the ratio where the advantage is negative, which
    `clip` leaves without one (INTELLECT-2, arXiv:2505.07291). unbiased_kl: weigh the KL term by the
    ratio, so that its gradient is that of the KL (DeepSeek-V3.2, arXiv:2512.02556).
    """

    clip: float
    clip_high: float | None
    beta: float
    completion_tokens: int
    delta: float | None = None
    unbiased_kl: bool = True

    @property
    def highest(self) -> float:
        """The ratio from which on a rise no longer counts."""
        return 1 + (self.clip if self.clip_high is None else self.clip_high)


PolicyLoss = Callable[[torch.Tensor, Batch, PolicySettings], LossOutput]
Mean = Callable[[torch.Tensor, Batch], torch.Tensor]


# Means over the whole step, of which a batch gives its part


def mean_of_tokens(values_P: torch.Tensor, batch: Batch) -> torch.Tensor:
    """All tokens weigh the same."""
    return values_P.sum() / batch.counts.trained_tokens


def mean_of_completions(values_P: torch.Tensor, batch: Batch) -> torch.Tensor:
    """All completions weigh the same, whatever their length: the mean of the means over tokens."""
    lengths_C = batch.sum_completions(torch.ones_like(values_P))
    return (batch.sum_completions(values_P) / lengths_C).sum() / batch.counts.completions


# Parts


def constant(batch: Batch, name: str, like: torch.Tensor) -> torch.Tensor:
    """A constant of the batch, (P,), in the number format of `like`."""
    return batch.constants[name].to(like.dtype)


def log_ratio(logprobs_P: torch.Tensor, batch: Batch) -> torch.Tensor:
    """log r of each token, (P,)."""
    return logprobs_P - constant(batch, "old", logprobs_P)


def kl_to_reference(logprobs_P: torch.Tensor, batch: Batch) -> torch.Tensor:
    """An unbiased estimate of KL(policy || reference) at each token, never negative, (P,):
    p_ref/p - log(p_ref/p) - 1. arXiv:2402.03300, equation 4.
    """
    away_P = constant(batch, "reference", logprobs_P) - logprobs_P
    return away_P.exp() - away_P - 1


def penalty(logprobs_P: torch.Tensor, batch: Batch, settings: PolicySettings) -> torch.Tensor:
    """beta times the KL term of each token, (P,); nothing is read where beta is 0."""
    if settings.beta == 0:
        return torch.zeros_like(logprobs_P)
    kl_P = kl_to_reference(logprobs_P, batch)
    if settings.unbiased_kl:
        kl_P = kl_P * log_ratio(logprobs_P, batch).exp()
    return settings.beta * kl_P


def clipped(
    ratio_P: torch.Tensor, batch: Batch, settings: PolicySettings, mean: Mean
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """min(r A, clip(r, 1 - clip, 1 + clip_high) A) of each token, (P,), and the shares in which the
    clip holds the policy back, by `mean`. arXiv:1707.06347, equation 7.
    """
    advantage_P = constant(batch, "advantage", ratio_P)
    bounded_P = ratio_P if settings.delta is None else ratio_P.clamp(max=settings.delta)
    inside_P = ratio_P.clamp(1 - settings.clip, settings.highest)
    low_P = (ratio_P < 1 - settings.clip) & (advantage_P < 0)
    high_P = (ratio_P > settings.highest) & (advantage_P > 0)
    shares = {
        "clip_share": mean((low_P | high_P).to(ratio_P.dtype), batch),
        "clip_share_low": mean(low_P.to(ratio_P.dtype), batch),
        "clip_share_high": mean(high_P.to(ratio_P.dtype), batch),
    }
    return torch.minimum(bounded_P * advantage_P, inside_P * advantage_P), shares


# The losses


def grpo(logprobs_P: torch.Tensor, batch: Batch, settings: PolicySettings) -> LossOutput:
    """GRPO: every completion weighs the same, so a token of a long one weighs less.

    arXiv:2402.03300, equation 3.
    """
    gain_P, shares = clipped(log_ratio(logprobs_P, batch).exp(), batch, settings, mean_of_tokens)
    terms_P = penalty(logprobs_P, batch, settings) - gain_P
    return LossOutput(mean_of_completions(terms_P, batch), shares)


def dapo(logprobs_P: torch.Tensor, batch: Batch, settings: PolicySettings) -> LossOutput:
    """DAPO: every token weighs the same. arXiv:2503.14476, equation 8."""
    gain_P, shares = clipped(log_ratio(logprobs_P, batch).exp(), batch, settings, mean_of_tokens)
    terms_P = penalty(logprobs_P, batch, settings) - gain_P
    return LossOutput(mean_of_tokens(terms_P, batch), shares)


def dr_grpo(logprobs_P: torch.Tensor, batch: Batch, settings: PolicySettings) -> LossOutput:
    """Dr. GRPO: sums over tokens, divided by what all completions could hold, so that length has no
    influence. arXiv:2503.20783, section 3.2.
    """
    gain_P, shares = clipped(log_ratio(logprobs_P, batch).exp(), batch, settings, mean_of_tokens)
    terms_P = penalty(logprobs_P, batch, settings) - gain_P
    room = batch.counts.completions * settings.completion_tokens
    return LossOutput(terms_P.sum() / room, shares)


def gspo(logprobs_P: torch.Tensor, batch: Batch, settings: PolicySettings) -> LossOutput:
    """GSPO: one ratio a completion, the geometric mean of its tokens', is clipped; the shares count
    completions. arXiv:2507.18071, equations 5 and 7.
    """
    logs_P = log_ratio(logprobs_P, batch)
    lengths_C = batch.sum_completions(torch.ones_like(logs_P))
    ratio_C = (batch.sum_completions(logs_P) / lengths_C).exp()
    ratio_P = ratio_C[batch.completions_P]
    gain_P, shares = clipped(ratio_P, batch, settings, mean_of_completions)
    terms_P = penalty(logprobs_P, batch, settings) - gain_P
    return LossOutput(mean_of_completions(terms_P, batch), shares)


def cispo(logprobs_P: torch.Tensor, batch: Batch, settings: PolicySettings) -> LossOutput:
    """CISPO: the ratio is a weight without gradient, cut at 1 + clip_high; every token keeps its
    gradient. As in the paper's experiments nothing is cut below. arXiv:2506.13585, equations 4, 5.
    """
    ratio_P = log_ratio(logprobs_P, batch).exp().detach()
    weight_P = ratio_P.clamp(max=settings.highest)
    gain_P = weight_P * constant(batch, "advantage", logprobs_P) * logprobs_P
    terms_P = penalty(logprobs_P, batch, settings) - gain_P
    share = mean_of_tokens((ratio_P > settings.highest).to(ratio_P.dtype), batch)
    return LossOutput(mean_of_tokens(terms_P, batch), {"clip_share": share})


def rloo(logprobs_P: torch.Tensor, batch: Batch, settings: PolicySettings) -> LossOutput:
    """RLOO's view that a completion is one action: the product of its tokens' ratios is clipped;
    the shares count completions. arXiv:2402.14740, with the clip of arXiv:1707.06347.
    """
    ratio_C = batch.sum_completions(log_ratio(logprobs_P, batch)).exp()
    ratio_P = ratio_C[batch.completions_P]
    gain_P, shares = clipped(ratio_P, batch, settings, mean_of_completions)
    terms_P = penalty(logprobs_P, batch, settings) - gain_P
    return LossOutput(mean_of_completions(terms_P, batch), shares)


def reinforce(logprobs_P: torch.Tensor, batch: Batch, settings: PolicySettings) -> LossOutput:
    """REINFORCE: -A log p(completion), without ratio and clip, for one update a batch of rollouts.

    Williams, 1992 (doi:10.1007/BF00992696), equation 7.
    """
    gain_P = constant(batch, "advantage", logprobs_P) * logprobs_P
    penalties_P = penalty(logprobs_P, batch, settings)
    total = mean_of_completions(penalties_P, batch) - gain_P.sum() / batch.counts.completions
    return LossOutput(total)


POLICY: dict[str, PolicyLoss] = {
    "grpo": grpo,
    "dapo": dapo,
    "dr_grpo": dr_grpo,
    "gspo": gspo,
    "cispo": cispo,
    "rloo": rloo,
    "reinforce": reinforce,
}


def make_policy_loss(method: str | PolicyLoss, settings: PolicySettings) -> LossFunction:
    """The loss for `fit`, of a name in `POLICY`, of a person's own as `file.py:function`, or of the
    function itself.

    An own one has the signature of those here and is held to it when it is used. Raises UserError
    for a name that there is not.
    """
    function = _find(method) if isinstance(method, str) else method
    name = method if isinstance(method, str) else repr(method)

    def loss(logprobs_P: torch.Tensor, batch: Batch) -> LossOutput:
        try:
            output = function(logprobs_P, batch, settings)
        except Exception as error:
            if function in POLICY.values() or is_out_of_memory(error):
                raise
            raise UserError(
                f"the loss `{name}` failed: {type(error).__name__}: {error}",
                hint=EXPECTED,
            ) from error
        _check(name, output)
        return LossOutput(output.total, {**measure(logprobs_P, batch), **output.metrics})

    return loss


EXPECTED = "an own loss takes (logprobs_P, batch, settings) and gives LossOutput(total, metrics)"


def _find(name: str) -> PolicyLoss:
    if name in POLICY:
        return POLICY[name]
    if ":" in name:
        return load_function(name, "loss")
    close = nearest(name, POLICY)
    raise UserError(
        f'loss: there is no "{name}"' + (f'; did you mean "{close}"?' if close else ""),
        hint=f"one of {', '.join(POLICY)}, or your own as file.py:function",
        exit_code=2,
    )


def _check(name: str, output: object) -> None:
    """Raises UserError where an own loss gives something else than it should."""
    if not isinstance(output, LossOutput):
        raise UserError(f"the loss `{name}` gave {type(output).__name__}", hint=EXPECTED)
    if not isinstance(output.total, torch.Tensor) or output.total.numel() != 1:
        raise UserError(
            f"the loss `{name}` gave a total of {output.total!r}; expected a tensor of one number",
            hint=EXPECTED,
        )


@torch.no_grad()
def measure(logprobs_P: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
    """Means over the step's tokens that are of interest for every policy loss.

    ratio: of r. gap: of |log r|, at the first update after sampling the distance of trainer and
    sampler, later with what the updates have moved. kl: to the reference; entropy: of the softmax;
    both where the batch carries what they are made of.
    """
    logs_P = log_ratio(logprobs_P, batch)
    found = {"ratio": logs_P.exp(), "gap": logs_P.abs()}
    if "reference" in batch.constants:
        found["kl"] = kl_to_reference(logprobs_P, batch)
    if "entropy" in batch.constants:
        found["entropy"] = constant(batch, "entropy", logprobs_P)
    return {name: mean_of_tokens(values_P, batch) for name, values_P in found.items()}
