"""The supervised loss."""

import torch

from hone.forest import Batch
from hone.losses.outputs import LossOutput


def next_token(logprobs_P: torch.Tensor, batch: Batch) -> LossOutput:
    """Mean negative log-likelihood over all trained tokens of the step: -(1/N) sum_p log p(y_p |
    y_<p).
    """
    return LossOutput(total=-logprobs_P.sum() / batch.counts.trained_tokens)
