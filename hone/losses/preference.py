"""Losses of pairs: a chosen and a rejected completion of one prompt.

Each is a small function of the pairs of a micro-batch that gives one value a pair; the stage's loss
is their mean over the whole step, or a weighted sum of several of these. Facts about each one (its
paper, what it needs) are in `recipe/preference.py` under the same name. Used by
`stages/preference.py`. Left out: single completions with a label (unpaired.py).

Shapes: N pairs, P trained positions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.functional import logsigmoid

from hone.forest import Batch, StepCounts
from hone.losses.outputs import LossFunction, LossOutput
from hone.recipe.preference import LOSS_FACTS, Dpo, LossName

CHOSEN = 1  # the segment of the chosen side: 0 is the prompt, 2 the rejected side


@dataclass(frozen=True)
class Sides:
    """Of N pairs, all chosen or all rejected sides. logprob_N, reference_N: log-probabilities of
    the completions, summed over their tokens. tokens_N: how many of them are trained.
    """

    logprob_N: torch.Tensor
    reference_N: torch.Tensor
    tokens_N: torch.Tensor

    @property
    def ratio_N(self) -> torch.Tensor:
        """log pi(y|x) - log pi_ref(y|x)."""
        return self.logprob_N - self.reference_N

    @property
    def mean_ratio_N(self) -> torch.Tensor:
        """The same, over the number of tokens."""
        return self.ratio_N / self.tokens_N

    @property
    def mean_logprob_N(self) -> torch.Tensor:
        """log pi(y|x) over the number of tokens."""
        return self.logprob_N / self.tokens_N


@dataclass(frozen=True)
class Pairs:
    """The N pairs of a micro-batch, and the counts of its step."""

    chosen: Sides
    rejected: Sides
    counts: StepCounts

    @property
    def margin_N(self) -> torch.Tensor:
        """How much more the policy prefers the chosen side than the reference does."""
        return self.chosen.ratio_N - self.rejected.ratio_N

    @property
    def mean_margin_N(self) -> torch.Tensor:
        """The same for the means over tokens."""
        return self.chosen.mean_ratio_N - self.rejected.mean_ratio_N


def read_pairs(logprobs_P: torch.Tensor, batch: Batch) -> Pairs:
    """The pairs of a batch; without the constant "reference" that of every token is 0."""
    assert batch.num_completions == 2 * len(batch.samples_P.unique()), "a pair lacks a side"
    reference_P = batch.constants.get("reference", torch.zeros_like(logprobs_P))
    sums = [
        batch.sum_completions(each_P).view(-1, 2)
        for each_P in (logprobs_P, reference_P.to(logprobs_P.dtype), torch.ones_like(logprobs_P))
    ]
    chosen, rejected = (Sides(*(each[:, side] for each in sums)) for side in (0, 1))
    return Pairs(chosen, rejected, batch.counts)


def sigmoid(pairs: Pairs, beta: float) -> torch.Tensor:
    """DPO, arXiv:2305.18290 eq. 7: -log sigma(beta m), m the margin of log-ratios."""
    return -logsigmoid(beta * pairs.margin_N)


def hinge(pairs: Pairs, beta: float) -> torch.Tensor:
    """SLiC-HF, arXiv:2305.10425, on log-ratios (RSO, arXiv:2309.06657): max(0, 1 - beta m)."""
    return torch.relu(1 - beta * pairs.margin_N)


def ipo(pairs: Pairs, beta: float) -> torch.Tensor:
    """IPO, arXiv:2310.12036 eq. 17: (m - 1 / (2 beta))^2, m of means over tokens, so that the
    distance from its aim does not grow with the length.
    """
    return (pairs.mean_margin_N - 1 / (2 * beta)) ** 2


def robust(pairs: Pairs, beta: float, label_smoothing: float) -> torch.Tensor:
    """Robust DPO, arXiv:2403.00409: without bias where a share e of the labels is wrong:
    (-(1 - e) log sigma(beta m) + e log sigma(-beta m)) / (1 - 2 e).
    """
    right, wrong = logsigmoid(beta * pairs.margin_N), logsigmoid(-beta * pairs.margin_N)
    return (label_smoothing * wrong - (1 - label_smoothing) * right) / (1 - 2 * label_smoothing)


def conservative(pairs: Pairs, beta: float, label_smoothing: float) -> torch.Tensor:
    """Conservative DPO, ericmitchell.ai/cdpo.pdf: the cross-entropy with smoothed labels,
    -(1 - e) log sigma(beta m) - e log sigma(-beta m).
    """
    right, wrong = logsigmoid(beta * pairs.margin_N), logsigmoid(-beta * pairs.margin_N)
    return -(1 - label_smoothing) * right - label_smoothing * wrong


def exponential(pairs: Pairs, beta: float) -> torch.Tensor:
    """GPO with the exponential loss, arXiv:2402.05749: exp(-beta m)."""
    return torch.exp(-beta * pairs.margin_N)


def dpop(pairs: Pairs, beta: float, chosen_penalty: float) -> torch.Tensor:
    """DPO-Positive, arXiv:2402.13228: -log sigma(beta (m - lambda max(0, -r))), where r is the
    chosen side's log-ratio: it costs when that side becomes less likely.
    """
    lost_N = torch.relu(-pairs.chosen.ratio_N)
    return -logsigmoid(beta * (pairs.margin_N - chosen_penalty * lost_N))


def sigmoid_norm(pairs: Pairs, beta: float) -> torch.Tensor:
    """Length-normalised DPO, arXiv:2411.15124: DPO's loss, m of means over tokens."""
    return -logsigmoid(beta * pairs.mean_margin_N)


def apo_zero(pairs: Pairs, beta: float) -> torch.Tensor:
    """APO-zero, arXiv:2408.06266 eq. 7: 1 - sigma(beta r_chosen) + sigma(beta r_rejected); the
    chosen side becomes likelier and the rejected one less likely.
    """
    chosen_N, rejected_N = beta * pairs.chosen.ratio_N, beta * pairs.rejected.ratio_N
    return 1 - torch.sigmoid(chosen_N) + torch.sigmoid(rejected_N)


def apo_down(pairs: Pairs, beta: float) -> torch.Tensor:
    """APO-down, arXiv:2408.06266 eq. 8: sigma(beta r_chosen) + 1 - sigma(beta m); both sides become
    less likely, the rejected one more so.
    """
    chosen_N, margin_N = beta * pairs.chosen.ratio_N, beta * pairs.margin_N
    return torch.sigmoid(chosen_N) + 1 - torch.sigmoid(margin_N)


def simpo(pairs: Pairs, beta: float, gamma: float) -> torch.Tensor:
    """SimPO, arXiv:2405.14734 eq. 6: -log sigma(beta (l_chosen - l_rejected) - gamma), l the mean
    log-probability of a token.
    """
    difference_N = pairs.chosen.mean_logprob_N - pairs.rejected.mean_logprob_N
    return -logsigmoid(beta * difference_N - gamma)


def sft(pairs: Pairs) -> torch.Tensor:
    """Negative log-likelihood of the chosen side. Its mean over the step's pairs is the mean over
    the trained tokens of all their chosen sides.
    """
    return -pairs.chosen.logprob_N * pairs.counts.samples / pairs.counts.by_segment[CHOSEN]


def cpo(pairs: Pairs, beta: float) -> torch.Tensor:
    """CPO, arXiv:2401.08417: -log sigma(beta (log pi(chosen) - log pi(rejected))) and the
    chosen side's negative log-likelihood.
    """
    difference_N = pairs.chosen.logprob_N - pairs.rejected.logprob_N
    return -logsigmoid(beta * difference_N) + sft(pairs)


def orpo(pairs: Pairs, beta: float) -> torch.Tensor:
    """ORPO, arXiv:2403.07691 eqs. 6 and 7: the chosen side's negative log-likelihood, and beta
    times -log sigma(log odds(chosen) - log odds(rejected)), odds of the mean probability of a
    token.
    """
    difference_N = log_odds(pairs.chosen.mean_logprob_N) - log_odds(pairs.rejected.mean_logprob_N)
    return sft(pairs) - beta * logsigmoid(difference_N)


def log_odds(logprob_N: torch.Tensor) -> torch.Tensor:
    """log(p / (1 - p)) of log p; for p = 1, where it is infinite, that of p = 1 - 1e-7."""
    return logprob_N - torch.log(-torch.expm1(logprob_N.clamp(max=-1e-7)))


PairLoss = Callable[..., torch.Tensor]
"""From the pairs of a micro-batch and the loss's own parameters to (N,) values."""

PAIR_LOSSES: dict[LossName, PairLoss] = {
    "sigmoid": sigmoid,
    "hinge": hinge,
    "ipo": ipo,
    "robust": robust,
    "conservative": conservative,
    "exponential": exponential,
    "dpop": dpop,
    "sigmoid_norm": sigmoid_norm,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "simpo": simpo,
    "cpo": cpo,
    "orpo": orpo,
    "sft": sft,
}


def make_pair_loss(settings: Dpo) -> LossFunction:
    """The loss of a stage that learns from pairs: the weighted sum of those that it names."""
    terms = [
        (weight, partial(PAIR_LOSSES[name], **settings.parameters_of(name)))
        for name, weight in settings.losses.items()
    ]

    def loss(logprobs_P: torch.Tensor, batch: Batch) -> LossOutput:
        pairs = read_pairs(logprobs_P, batch)
        total = torch.stack([weight * function(pairs).sum() for weight, function in terms]).sum()
        return LossOutput(total / batch.counts.samples, _metrics(pairs, settings))

    return loss


@torch.no_grad()
def _metrics(pairs: Pairs, settings: Dpo) -> dict[str, torch.Tensor]:
    """Means over the step's pairs: rewards and log-probabilities of both sides, by how much and how
    often the chosen side's reward is larger (`margin`, `accuracy`; a tie counts half).
    """
    beta = settings.parameters_of(settings.leading).get("beta", 1.0)
    reward = f"{LOSS_FACTS[settings.leading].reward}_N"
    chosen_N, rejected_N = (beta * getattr(s, reward) for s in (pairs.chosen, pairs.rejected))
    margin_N = chosen_N - rejected_N
    each = {
        "accuracy": (margin_N.sign() + 1) / 2,
        "margin": margin_N,
        "reward_chosen": chosen_N,
        "reward_rejected": rejected_N,
        "logprob_chosen": pairs.chosen.logprob_N,
        "logprob_rejected": pairs.rejected.logprob_N,
    }
    return {name: values_N.sum() / pairs.counts.samples for name, values_N in each.items()}
