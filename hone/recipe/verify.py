"""What is proven about a run at its end: the part `verify:` of a recipe.

The checks themselves are in `hone/verify/`; a check is known by its name there and here.
"""

from typing import Annotated, Literal

from pydantic import Field

from hone.recipe.data import Data
from hone.recipe.node import Node, PositiveInt

CheckName = Literal[
    "artifacts",
    "loss",
    "learning",
    "parameters",
    "memory",
    "stages",
    "masks",
    "merged",
    "forgetting",
    "rewards",
    "resume",
]
MeasureName = Literal["loss", "exact", "contains", "numeric", "reward", "preference"]
Portion = Annotated[float, Field(ge=0, le=1)]


class Thresholds(Node):
    """Where a check turns red."""

    loss: Portion = 0.05
    """The part of the held-out loss by which it has to fall."""
    learning: Portion = 0.3
    """The part of the held-out prompts that has to improve."""
    parameters: Portion = 0.8
    """The part of the trained tensors that has to move."""
    memory: Portion = 0.3
    """The part of full fine-tuning's memory that an adapter has to save."""
    merged: Annotated[float, Field(gt=0)] = 1e-3
    """How far logits of merged weights may be from the adapter's, relative to their spread."""
    forgetting: Annotated[float, Field(ge=0)] = 1.0
    """How much the loss on the base's own evaluation sets may rise, in nats per token."""
    format: Portion = 0.5
    """The part of the held-out answers that has to be well formed."""
    failures: Portion = 0.1
    """The part of the rollouts that may fail to be scored."""
    constant: Portion = 0.5
    """The part of the held-out answers that may be the same one."""


class Verify(Node):
    """What is proven at the end of a run, from the saved results."""

    measure: MeasureName | None = None
    """By what a held-out prompt improves: `loss`, greedy answers that are `exact`, that `contain`
    or that end in the same number (`numeric`), `reward` or `preference`. A stage that has no such
    measure, or all of them when left out, takes its own: reward where answers are rewarded,
    otherwise held-out loss."""
    samples: PositiveInt = 200
    """At most so many held-out samples of each stage are looked at."""
    completion_tokens: PositiveInt = 64
    """The longest answer to a held-out prompt."""
    leave_out: list[CheckName] = []
    """Checks that are not made; the report says so."""
    forgetting: list[Data] = []
    """The base's own evaluation sets, on which nothing should get worse; besides them, what earlier
    stages held out."""
    thresholds: Thresholds = Thresholds()
    """What each check holds its figure against; those not given are as they are here."""
