"""Losses: pure functions from log-probabilities to `LossOutput`, and one literal table of them."""

from hone.losses.outputs import LossFunction, LossOutput
from hone.losses.sft import next_token

LOSSES: dict[str, LossFunction] = {"sft": next_token, "pretrain": next_token}

__all__ = ["LOSSES", "LossFunction", "LossOutput"]
