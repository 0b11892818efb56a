"""What may stand below `trackers` in a recipe. What is done with it: hone/trackers/."""

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, PositiveFloat

from hone.recipe.node import Node, type_alone


class Tracked(Node):
    """What every tracker has in common; `metrics.jsonl` stays what counts."""

    shorthand: ClassVar[str | None] = "type"

    answer_within_s: PositiveFloat = 60.0
    """Seconds without an answer after which it is given up with a warning; training goes on."""
    finish_within_s: PositiveFloat = 10.0
    """Seconds it has at the end for what is not sent yet; `hone track RUN` sends what is left."""


class TensorBoard(Tracked):
    """Event files that `tensorboard --logdir runs` shows."""

    type: Literal["tensorboard"] = "tensorboard"
    """Event files for TensorBoard."""
    folder: str | None = None
    """Where a folder for the run is made; left out, `trackers/tensorboard` in the run's own."""


class WandB(Tracked):
    """A run at Weights & Biases; WANDB_API_KEY and WANDB_BASE_URL are read from the environment."""

    type: Literal["wandb"] = "wandb"
    """A run at Weights & Biases."""
    project: str = "hone"
    """The project that the run belongs to."""
    entity: str | None = None
    """The user or team it belongs to; left out, the key's own."""
    name: str | None = None
    """The run's name there; left out, the name here."""
    group: str | None = None
    """What runs are put together by."""
    tags: list[str] = []
    """Words the run can be found by."""
    mode: Literal["online", "offline"] = "online"
    """`offline` writes to the run's folder what `wandb sync` sends later."""


class MLflow(Tracked):
    """A run in an MLflow store."""

    type: Literal["mlflow"] = "mlflow"
    """A run in an MLflow store."""
    uri: str | None = None
    """The store; left out, $MLFLOW_TRACKING_URI, else `mlflow.db` (SQLite) beside the runs."""
    experiment: str = "hone"
    """The experiment that the run belongs to; made where it does not exist."""


Tracker = Annotated[
    TensorBoard | WandB | MLflow, Field(discriminator="type"), BeforeValidator(type_alone)
]
