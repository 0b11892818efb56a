"""What every stage that trains may say: adapter, optimizer, batch, checkpoints.

The stages themselves are in `schema.py` and in a file for each family of methods.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import (
    Field,
    PositiveFloat,
    field_validator,
    model_validator,
)

from hone.recipe.data import Data, Evaluation, MixedData, Occasions, SampleKind, listed
from hone.recipe.node import (
    Node,
    PositiveInt,
    Share,
    at_most,
    check_exactly_one,
    type_left_out,
)

Layers = Annotated[list[int], Field(min_length=1)] | Literal["all"]


class LowRank(Node):
    """What adapters beside frozen weights have in common (Hu et al. 2021, arXiv:2106.09685)."""

    shorthand: ClassVar[str | None] = "type"

    type: Literal["lora", "qlora"]
    """Which weights the adapters stand beside."""
    rank: Annotated[int, Field(gt=0), at_most(2**16)] = 16
    """Rank of the update, r."""
    alpha: PositiveFloat = 32.0
    """The update is scaled by alpha / rank."""
    dropout: Share = 0.0
    """Share of the adapter's inputs that is set to zero while training."""
    targets: Annotated[list[str], Field(min_length=1)] | Literal["all"] = "all"
    """Linear layers that get an adapter: q_proj and its like, or own names; `all` but the head."""
    layers: Layers = "all"
    """Numbers of the transformer blocks that get adapters, from 0; -1 is the last one."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead (Kalajdzievski 2023, arXiv:2312.03732)."""
    dora: bool = False
    """Train the lengths of weight rows, too, apart from directions (DoRA, arXiv:2402.09353)."""
    before: Literal["auto", "continue", "merge", "stack"] = "auto"
    """The adapter that is there already: train it on, fold it into the base, or keep it frozen."""

    @model_validator(mode="after")
    def no_stack_of_dora(self) -> "LowRank":
        if self.dora and self.before == "stack":
            raise ValueError(
                "`before: stack` adds up low-rank updates, which `dora: true` is not; "
                "expected one of the two"
            )
        return self


class Lora(LowRank):
    """Low-rank adapters beside frozen weights (Hu et al. 2021, arXiv:2106.09685)."""

    type: Literal["lora"] = "lora"
    """Low-rank adapters; the base model's weights stay as they are."""


class QLora(LowRank):
    """Low-rank adapters beside weights of few bits (Dettmers et al. 2023, arXiv:2305.14314)."""

    type: Literal["qlora"] = "qlora"
    """Low-rank adapters; the base model's linear layers are kept in 4 or 8 bits while training."""
    bits: Literal[4, 8] = 4
    """4: NF4 with double quantisation; 8: int8, one scale for each row."""


class Full(Node):
    """The weights themselves are trained."""

    shorthand: ClassVar[str | None] = "type"

    type: Literal["full"] = "full"
    """Every weight of the model is trained, or those of the chosen `layers`."""
    layers: Layers = "all"
    """Numbers of the blocks that are trained, -1 is the last; `all`: embeddings and head, too."""


Adapter = Annotated[Lora | QLora | Full, Field(discriminator="type"), type_left_out("lora")]


class BatchSize(Node):
    """How much goes into one optimizer step; give one of the two."""

    alternatives: ClassVar[tuple[str, ...]] = ("samples", "tokens")

    samples: PositiveInt | None = None
    """Samples a step."""
    tokens: PositiveInt | None = None
    """Tokens a step: as many whole samples as fit."""

    @model_validator(mode="after")
    def one_size(self) -> "BatchSize":
        check_exactly_one(self)
        return self


class Adam(Node):
    """What optimizers with running means of gradients and their squares have in common."""

    shorthand: ClassVar[str | None] = "type"

    type: Literal["adamw", "adamw_8bit"]
    """How exactly the running means are kept."""
    betas: Annotated[tuple[Share, Share], Field(strict=False)] = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""
    epsilon: PositiveFloat = 1e-8
    """Added to the denominator."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decay of the weights of linear layers and adapters; never of norms, biases and embeddings."""


class AdamW(Adam):
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101)."""

    type: Literal["adamw"] = "adamw"
    """AdamW."""


class SGD(Node):
    """Plain stochastic gradient descent."""

    shorthand: ClassVar[str | None] = "type"

    type: Literal["sgd"] = "sgd"
    """Plain gradient descent."""
    momentum: Share = 0.0
    """Share of the last update that is kept."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decay of the weights of linear layers and adapters; never of norms, biases and embeddings."""


class AdamW8bit(Adam):
    """AdamW whose running means are kept in 8 bits (Dettmers et al. 2022, arXiv:2110.02861)."""

    type: Literal["adamw_8bit"] = "adamw_8bit"
    """AdamW with running means of 8 bits; those of less than 4096 weights stay in 32."""


class Adafactor(Node):
    """Adafactor (Shazeer & Stern 2018, arXiv:1804.04235) with the stage's learning rate."""

    shorthand: ClassVar[str | None] = "type"

    type: Literal["adafactor"] = "adafactor"
    """Running means of squared gradients as one row and one column; none of the gradients."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decay of the weights of linear layers and adapters; never of norms, biases and embeddings."""


Optimizer = Annotated[
    AdamW | AdamW8bit | Adafactor | SGD, Field(discriminator="type"), type_left_out("adamw")
]


class WarmUp(Node):
    """Steps of linear warm-up, and fewer in a short stage."""

    steps: Annotated[int, Field(ge=0)]
    """Steps of linear warm-up."""
    at_most: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """The largest share of the stage's steps that they may be."""


class Checkpoint(Node):
    """What is kept on the way."""

    every: PositiveInt = 50
    """Steps between checkpoints; at most so many steps of work can be lost."""
    keep: PositiveInt = 2
    """The newest so many are kept; the best by evaluation is kept besides."""
    keep_every: PositiveInt | None = None
    """Also keep those of every so many steps, a multiple of `every`, for good."""

    @model_validator(mode="after")
    def kept_ones_are_saved(self) -> "Checkpoint":
        if self.keep_every is not None and self.keep_every % self.every:
            raise ValueError(
                f"`keep_every` is {self.keep_every} and `every` is {self.every}: expected a "
                "multiple of it, because only what is saved can be kept"
            )
        return self


class TrainingStage(Node):
    """What every stage that trains has in common."""

    alternatives: ClassVar[tuple[str, ...]] = ("epochs", "steps")
    watched: ClassVar[tuple[str, ...]] = ("loss", "accuracy")
    """What its evaluations measure that early stopping may go by."""

    profile: str | None = None
    """Where values come from that are not given here: `chat`, `instruction`, `code` or a file."""
    evaluation: Occasions | None = None
    """What is looked at during training; nothing when left out."""
    epochs: Annotated[float, Field(gt=0), at_most(10_000)] | None = None
    """Passes over the data; 1 when neither `epochs` nor `steps` is given."""
    steps: PositiveInt | None = None
    """Optimizer steps, instead of `epochs`."""
    learning_rate: Annotated[float, Field(ge=0)] = 2e-4
    """The highest learning rate, reached after the warm-up."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up: to zero at the last step, or not at all."""
    warmup: Annotated[int, Field(ge=0)] | Share | WarmUp = 0
    """Steps of linear warm-up (a whole number), their share of all steps (below 1), or both."""
    optimizer: Optimizer = AdamW()
    """The rule that turns gradients into updates."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Gradients are scaled down to this norm; null leaves them as they are."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of frozen weights and arithmetic; `auto` goes by the device and is printed."""
    gradient_checkpointing: bool = False
    """Keep each layer's input and compute the rest again going back: less memory, more time."""
    add_tokens: list[Annotated[str, Field(min_length=1)]] = []
    """Tokens that the vocabulary gets before training; of embeddings and head only their rows are
    trained where the weights are frozen."""
    layout: Literal["auto", "forest", "padded"] = "auto"
    """`forest`: without padding; `padded`: one sample a row; `auto` probes the model."""
    token_budget: PositiveInt | None = None
    """Tokens computed at once; left out, it follows from the model and the machine's memory."""
    checkpoint: Checkpoint = Checkpoint()
    """How often the state is saved, and how many of the saved states stay."""
    max_skipped_steps: Annotated[int, Field(ge=0)] = 3
    """A step whose loss or gradient is not finite makes no update; more in a row end the stage."""

    @field_validator("add_tokens")
    @classmethod
    def each_once(cls, tokens: list[str]) -> list[str]:
        if any(not token.strip() for token in tokens):
            raise ValueError("one of the tokens is blank; expected text that can be seen")
        if len(set(tokens)) < len(tokens):
            raise ValueError("a token is named twice; expected each one once")
        return tokens

    @model_validator(mode="after")
    def one_length(self) -> "TrainingStage":
        if self.epochs is not None and self.steps is not None:
            raise ValueError("expected at most one of `epochs` and `steps`, found both")
        if self.steps is not None and isinstance(self.warmup, int) and self.warmup >= self.steps:
            raise ValueError(
                f"`warmup` is {self.warmup} steps and the stage has {self.steps}: "
                "expected fewer, so that something is trained at the full rate, "
                f"or {{steps: {self.warmup}, at_most: 0.1}}, which is cut where it must be"
            )
        return self

    @model_validator(mode="after")
    def rows_are_trained(self) -> "TrainingStage":
        if self.add_tokens and isinstance(self.trains, Full) and self.trains.layers != "all":
            raise ValueError(
                "`add_tokens` needs embeddings that are trained, and `adapter.layers` leaves them "
                "as they are; expected `layers: all`"
            )
        return self

    @model_validator(mode="after")
    def stops_by_what_is_measured(self) -> "TrainingStage":
        stopping = self.evaluation.early_stopping if self.evaluation else None
        if stopping and stopping.metric not in self.watched:
            raise ValueError(
                f"`evaluation.early_stopping.metric` is {stopping.metric}, which the evaluations "
                f"of this method do not measure; expected {' or '.join(self.watched)}"
            )
        return self

    @property
    def trains(self) -> LowRank | Full:
        """What the stage trains: all weights, unless its method has adapters."""
        adapter: LowRank | Full = getattr(self, "adapter", Full())
        return adapter


class DataStage(TrainingStage):
    """A stage that learns from samples that are there before it begins."""

    data: Data | Annotated[list[MixedData], Field(min_length=1)]
    """The training data: a path, or `path` with how to read it, or a list of several of these."""
    evaluation: Evaluation | None = None
    """Held-out loss during training; none when left out."""
    batch: BatchSize = BatchSize(samples=16)
    """The size of one optimizer step. How it is cut to fit the memory never changes its result."""
    max_tokens: PositiveInt = 2048
    """The longest sample, in tokens; of answers to compare, the prompt with one of them."""
    overlong: Literal["keep_start", "keep_end", "drop", "split"] = "keep_start"
    """What happens to longer samples; `split` makes several (of conversations, between turns)."""

    @field_validator("data")
    @classmethod
    def weights_of_all(cls, data: Data | list[MixedData]) -> Data | list[MixedData]:
        """Weights only say something about each other."""
        weights = [each.weight for each in data] if isinstance(data, list) else []
        without = [index for index, weight in enumerate(weights) if weight is None]
        if weights and not without and len(weights) == 1:
            raise ValueError("`weight` has no effect on a single data set; leave it out")
        if without and len(without) < len(weights):
            raise ValueError(
                f"expected a `weight` of every data set or of none, found none of "
                f"data[{without[0]}]"
            )
        return data

    @property
    def data_sets(self) -> list[Data]:
        """The sources of the training data."""
        return listed(self.data)

    @property
    def weights(self) -> list[float] | None:
        """The weights of the sources, None where every sample comes once an epoch."""
        weights = [getattr(each, "weight", None) for each in self.data_sets]
        return [float(weight) for weight in weights if weight is not None] or None

    @property
    def sample_kind(self) -> SampleKind:
        """What one sample is; the formats of other kinds are refused."""
        return "supervised"

    @property
    def trained_part(self) -> Literal["completions", "all"]:
        """Which tokens of a sample are trained."""
        if self.sample_kind != "supervised":
            return "completions"
        part: Literal["completions", "all"] = getattr(self, "train_on", "all")
        return part
