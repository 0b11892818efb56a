"""What may stand below `grpo` in a recipe: tasks, how they are answered, what is learned from it.

What is done with it: hone/stages/policy.py and hone/rollouts.py. Rewards and environments are in
`rewards.py`, what all stages share in `training.py`.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, field_validator, model_validator

from hone.recipe.data import Occasions, Stopping
from hone.recipe.node import Node, PositiveInt, place, type_left_out
from hone.recipe.rewards import Environment, PromptColumns, Reward, TaskFile, check_own_code
from hone.recipe.training import Adapter, Lora, TrainingStage

LOSSES = ("grpo", "dapo", "dr_grpo", "gspo", "cispo", "rloo", "reinforce")
CREDITS = ("group", "mean", "leave_one_out")


class Prompts(TaskFile):
    """Prompts of your own; the rewards get all columns of the rows."""

    columns: PromptColumns = PromptColumns()
    """Column names that differ from the usual ones."""


class PromptCount(Node):
    """How much goes into one optimizer step."""

    samples: PositiveInt = 4
    """Prompts a step, each with a whole group of completions."""


class RewardStopping(Stopping):
    """End a stage when its held-out tasks say that it gains no more."""

    metric: str = "reward"
    """What is watched: `reward`, the weighted sum, or one of the rewards: `reward/correct`. It also
    decides which checkpoint is the best."""


class TaskEvaluation(Occasions):
    """Rewards of held-out tasks during training; an environment has held-out tasks of its own."""

    alternatives: ClassVar[tuple[str, ...]] = ("share", "data")

    share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the prompts of `data` that is held out, drawn from the seed."""
    data: Prompts | None = None
    """Prompts of their own instead of a share."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 answers with the likeliest tokens; above it, one answer to each task is drawn."""
    early_stopping: RewardStopping | None = None
    """End the stage when held-out tasks say that it gains no more; never when left out."""


class Keep(Node):
    """Nothing is done about them."""

    shorthand: ClassVar[str | None] = "type"

    type: Literal["keep"] = "keep"
    """Nothing is done about them; they are counted."""


class Mask(Node):
    """Completions that the length has cut count in their group, and are not learned from."""

    shorthand: ClassVar[str | None] = "type"

    type: Literal["mask"] = "mask"
    """They count in their group's baseline, and are not learned from (arXiv:2503.14476, 3.4)."""


class Penalty(Node):
    """Completions that the length has cut lose a part of their reward."""

    shorthand: ClassVar[str | None] = "type"

    type: Literal["penalty"] = "penalty"
    """Their reward is lowered."""
    penalty: PositiveFloat = 1.0
    """What is taken off the sum of their rewards."""


class Resample(Node):
    """Groups whose rewards are all equal make place for others."""

    shorthand: ClassVar[str | None] = "type"

    type: Literal["resample"] = "resample"
    """Other tasks are asked instead (dynamic sampling, arXiv:2503.14476, section 3.2)."""
    rounds: PositiveInt = 2
    """So often at most; what has no spread after that is left out."""


Overlong = Annotated[Penalty | Mask | Keep, Field(discriminator="type"), type_left_out("penalty")]
NoSpread = Annotated[Resample | Keep, Field(discriminator="type"), type_left_out("resample")]


class Grpo(TrainingStage):
    """Reinforcement: the model answers, its answers are scored, and it learns from the scores."""

    adapter: Adapter = Lora()
    """What is trained: `lora` adapters, `qlora` beside weights of few bits, or `full` weights."""
    environment: Environment | None = None
    """Where tasks and rewards come from; instead of `data`."""
    data: Prompts | None = None
    """A file with prompts, for `rewards` of your own; instead of `environment`."""
    rewards: list[Reward] = []
    """Reward functions, `file.py:function`, beside those of the environment."""
    template: Annotated[str, place("template")] = "auto"
    """Chat template of prompts that are messages: `auto` (the tokenizer's own, else ChatML),
    `chatml`, `alpaca`, `llama`, or a Jinja file."""
    evaluation: TaskEvaluation | None = None
    """Rewards of held-out tasks during training; none when left out."""
    batch: PromptCount = PromptCount()
    """Prompts of a batch of rollouts. How it is cut to fit the memory never changes its result."""
    learning_rate: Annotated[float, Field(ge=0)] = 2e-5
    """The highest learning rate, reached after the warm-up."""
    group: Annotated[int, Field(ge=2, le=1024)] = 8
    """Completions of each prompt, which are compared with each other."""
    prompt_tokens: PositiveInt = 1024
    """The longest prompt, in tokens; longer ones are left out and counted."""
    completion_tokens: PositiveInt = 256
    """The longest completion, in tokens."""
    temperature: PositiveFloat = 1.0
    """Of the softmax that completions are drawn from and that is trained."""
    stop: list[Annotated[str, Field(min_length=1)]] = []
    """Texts that end a completion, beside the end tokens."""
    sequences_at_once: PositiveInt = 32
    """Completions that are drawn together; fewer take less memory."""
    credit: Annotated[str, place("code")] = "group"
    """How rewards become advantages: `group` (minus the mean, by the spread), `mean` (Dr. GRPO),
    `leave_one_out` (RLOO), or a function of your own, `file.py:function`."""
    loss: Annotated[str, place("code")] = "grpo"
    """`grpo`, `dapo`, `dr_grpo`, `gspo`, `cispo`, `rloo`, `reinforce`, or a function of your own,
    `file.py:function`."""
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """How far a token's ratio may fall below 1 before it no longer counts."""
    clip_high: PositiveFloat | None = None
    """How far it may rise above 1; as far as `clip` when left out."""
    beta: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL distance to the model at the start of the stage."""
    updates: PositiveInt = 1
    """Optimizer steps with each batch of rollouts."""
    overlong: Overlong = Keep()
    """Completions that the length has cut: `keep`, `mask` or `{penalty: 0.5}`."""
    no_spread: NoSpread = Keep()
    """Groups whose rewards are all equal: `keep`, or `resample` other tasks instead."""
    max_failures: Annotated[float, Field(ge=0, le=1)] = 0.5
    """The largest share of rollouts of a step whose scoring may fail; more stop the stage."""
    max_gap: PositiveFloat | None = None
    """The largest mean distance of a token's log-probability between sampling and training; left
    out, 0.001 in fp32 and 0.1 in bf16."""

    @field_validator("loss")
    @classmethod
    def known_loss(cls, name: str) -> str:
        return _known(name, LOSSES)

    @field_validator("credit")
    @classmethod
    def known_credit(cls, name: str) -> str:
        return _known(name, CREDITS)

    @model_validator(mode="after")
    def one_source(self) -> "Grpo":
        given = [name for name in ("environment", "data") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"expected exactly one of `environment` and `data`, found {found}")
        if self.data is not None and not self.rewards:
            raise ValueError("`data` has prompts without rewards; expected `rewards` beside it")
        return self

    @model_validator(mode="after")
    def tasks_to_evaluate(self) -> "Grpo":
        if self.evaluation is None:
            return self
        given = [name for name in ("share", "data") if getattr(self.evaluation, name) is not None]
        if self.environment is not None and given:
            raise ValueError(
                f"`evaluation.{given[0]}`: the environment has held-out tasks of its own; expected "
                "it to be left out"
            )
        if self.data is not None and len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(
                f"`evaluation`: expected exactly one of `share` and `data`, found {found}"
            )
        return self

    @model_validator(mode="after")
    def stops_by_what_is_measured(self) -> "Grpo":
        """Which rewards there are is known when they are loaded."""
        stopping = self.evaluation.early_stopping if self.evaluation else None
        if stopping and stopping.metric != "reward" and not stopping.metric.startswith("reward/"):
            raise ValueError(
                "`evaluation.early_stopping.metric`: expected `reward`, or one of the rewards such "
                "as `reward/correct`"
            )
        return self

    @model_validator(mode="after")
    def updates_need_a_ratio(self) -> "Grpo":
        if self.loss == "reinforce" and self.updates > 1:
            raise ValueError(
                "`loss: reinforce` has no ratio, so it holds for one update with each batch of "
                "rollouts; expected `updates: 1`"
            )
        return self


def _known(name: str, names: tuple[str, ...]) -> str:
    """Raises ValueError for what is neither one of the names nor `file.py:function`."""
    if name in names:
        return name
    if ":" in name:
        return check_own_code(name)
    raise ValueError(f"expected one of {', '.join(names)}, or your own as file.py:function")
