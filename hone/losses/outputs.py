"""What every loss takes and gives."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from hone.forest import Batch


@dataclass(frozen=True)
class LossOutput:
    """total: this micro-batch's part of the step's loss, already divided by the whole step's count.

    metrics: detached numbers that are summed over the step's micro-batches.
    """

    total: torch.Tensor
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)


LossFunction = Callable[[torch.Tensor, Batch], LossOutput]
