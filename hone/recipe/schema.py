"""What may stand in a recipe: one frozen pydantic tree, without torch.

Read by `load.py` (files, overrides, faults), `hone recipe schema` (JSON Schema) and every stage.
The text under a field is its help. What a method adds (preference, policy) becomes one more stage
class here and one more name in `STAGES`.
Rules that hold for all of it are in `node.py`.
"""

import os
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    Field,
    PositiveFloat,
    ValidationInfo,
    field_validator,
    model_validator,
)

from hone.recipe.node import (
    Node,
    PositiveInt,
    Share,
    at_most,
    check_exactly_one,
    place,
    size_bytes,
    type_left_out,
)
from hone.recipe.trackers import Tracker

MOST_LAYERS = 10_000  # making more would never end


class TrainedTokenizer(Node):
    """A byte-level BPE tokenizer made from own text, with ChatML tokens and template."""

    train_on: Annotated[Annotated[list[str], Field(min_length=1)] | str, place("data")]
    """File or files whose text the tokenizer is made from (any kind that `data` accepts)."""
    vocabulary: Annotated[int, Field(ge=300), at_most(2**20)] = 4096
    """Number of tokens, the 256 bytes and the special tokens included."""


class NewModel(Node):
    """A model that starts from random weights, drawn from the recipe's seed."""

    architecture: str = "llama"
    """The model type as transformers names it: llama, qwen3, mistral, gpt2, ..."""
    config: dict[str, int | float | bool | str] = {}
    """Settings of that architecture's configuration class (hidden_size, num_hidden_layers, ...)."""
    tokenizer: Annotated[TrainedTokenizer | str, place("tokenizer")]
    """A tokenizer to make, or the folder or Hub id of one that exists."""

    @field_validator("config")
    @classmethod
    def layers_that_can_be_made(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Refuses a number of layers whose making would never end."""
        for name, value in config.items():
            if "layer" in name and isinstance(value, int) and value > MOST_LAYERS:
                raise ValueError(f"`{name}`: expected at most {MOST_LAYERS} layers")
        return config


class Columns(Node):
    """The names of the columns in the data, where they differ from the usual ones."""

    text: str = "text"
    """Plain text; every token is trained."""
    prompt: str = "prompt"
    """What is given to the model: text, or a list of messages."""
    completion: str = "completion"
    """What the model is to answer: text, or a list of messages."""
    messages: str = "messages"
    """A conversation: a list of {role, content}."""
    conversations: str = "conversations"
    """A conversation: a list of {from, value}, as ShareGPT has them."""
    instruction: str = "instruction"
    """What is asked."""
    input: str = "input"
    """What the instruction is about; may be missing or empty."""
    output: str = "output"
    """The answer to an instruction."""
    system: str | None = "system"
    """A system turn's text for a row's conversation, where a row has one; null never reads it."""
    tools: str | None = "tools"
    """What may be called in a conversation: a list, or one as JSON text; null never reads it."""


class Data(Node):
    """Where the samples of a stage come from and how they are read."""

    shorthand: ClassVar[str | None] = "path"

    path: Annotated[str, place("data")]
    """A file (JSON, JSONL, CSV, TSV, Parquet, text), a folder of such files, or the id of a Hub
    data set."""
    split: str | None = None
    """The split of a Hub data set, `train` when left out; files have none."""
    format: Literal[
        "auto", "text", "prompt_completion", "messages", "conversations", "instruction"
    ] = "auto"
    """How rows are read; `auto` recognises it from the keys of the first row."""
    columns: Columns = Columns()
    """Column names that differ from the usual ones."""
    template: Annotated[str, place("template")] = "auto"
    """Chat template: `auto` (the tokenizer's own, else ChatML), `chatml`, `alpaca`, `llama`, or a
    Jinja file."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """What happens at a row that cannot be read: stop and name it, or skip and count it."""

    @field_validator("split")
    @classmethod
    def only_of_the_hub(cls, split: str | None, info: ValidationInfo) -> str | None:
        """A path is absolute here as soon as it exists, which no Hub id is."""
        if split is not None and os.path.isabs(info.data.get("path", "")):
            raise ValueError("files have no splits; expected it beside the id of a Hub data set")
        return split

    @model_validator(mode="before")
    @classmethod
    def from_path(cls, value: object) -> object:
        """A bare path stands for `{path: ...}`."""
        return {cls.shorthand: value} if isinstance(value, str) else value


def listed(data: Data | Sequence[Data] | None) -> list[Data]:
    """One source, several or none as a list."""
    if data is None or isinstance(data, Data):
        return [data] if data else []
    return list(data)


class MixedData(Data):
    """One of several data sets of a stage."""

    weight: PositiveFloat | None = None
    """Its part of the samples of an epoch, in proportion to the other weights; without weights
    every sample of all sets comes once."""


class EarlyStopping(Node):
    """End a stage when its held-out samples say that it gains no more."""

    metric: Literal["loss", "accuracy"] = "loss"
    """What is watched: held-out `loss`, or `accuracy`, the share of tokens that are the likeliest.
    It also decides which checkpoint is the best."""
    patience: PositiveInt = 3
    """Evaluations in a row without a gain after which training ends."""
    min_change: Annotated[float, Field(ge=0)] = 0.0
    """A gain is a change for the better by more than this."""
    restore_best: bool = True
    """The result has the weights of the best evaluation, not the last ones."""


class Evaluation(Node):
    """Held-out loss during training."""

    alternatives: ClassVar[tuple[str, ...]] = ("share", "data")

    share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the samples that is held out of training, of each data set, drawn from the seed."""
    data: Data | Annotated[list[Data], Field(min_length=1)] | None = None
    """Data of its own instead of a share, one source or a list; with the training data's template
    if it names none."""
    every: PositiveInt = 50
    """Steps between evaluations; the last step is always evaluated."""
    before: bool = True
    """Also evaluate before step 1, so that the change can be seen."""
    samples: PositiveInt | None = None
    """Evaluate on at most so many held-out samples (the first ones of the seed's order)."""
    early_stopping: EarlyStopping | None = None
    """End the stage when held-out samples say that it gains no more; never when left out."""

    @model_validator(mode="after")
    def one_source(self) -> "Evaluation":
        check_exactly_one(self)
        return self

    @property
    def data_sets(self) -> list[Data]:
        """The sources of its own."""
        return listed(self.data)


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

    profile: str | None = None
    """Where values come from that are not given here: `chat`, `instruction`, `code` or a file."""
    data: Data | Annotated[list[MixedData], Field(min_length=1)]
    """The training data: a path, or `path` with how to read it, or a list of several of these."""
    evaluation: Evaluation | None = None
    """Held-out loss during training; none when left out."""
    batch: BatchSize = BatchSize(samples=16)
    """The size of one optimizer step. How it is cut to fit the memory never changes its result."""
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
    max_tokens: PositiveInt = 2048
    """The longest sample, in tokens."""
    overlong: Literal["keep_start", "keep_end", "drop", "split"] = "keep_start"
    """What happens to longer samples; `split` makes several (of conversations, between turns)."""
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


class Pretrain(TrainingStage):
    """Train all weights on all tokens of plain text."""

    learning_rate: Annotated[float, Field(ge=0)] = 1e-3
    """The highest learning rate, reached after the warm-up."""


class Sft(TrainingStage):
    """Supervised fine-tuning: learn the assistant's turns, or the completions."""

    adapter: Adapter = Lora()
    """What is trained: `lora` adapters, `qlora` beside weights of few bits, or `full` weights."""
    train_on: Literal["completions", "all"] = "completions"
    """Which tokens are trained: assistant turns and completions, or all. Of plain text, all are."""

    @model_validator(mode="after")
    def rows_are_trained(self) -> "Sft":
        if self.add_tokens and isinstance(self.adapter, Full) and self.adapter.layers != "all":
            raise ValueError(
                "`add_tokens` needs embeddings that are trained, and `adapter.layers` leaves them "
                "as they are; expected `layers: all`"
            )
        return self


STAGES: dict[str, type[TrainingStage]] = {"pretrain": Pretrain, "sft": Sft}


class Stage(Node):
    """One stage: a single key that names the method, with its settings."""

    alternatives: ClassVar[tuple[str, ...]] = ("pretrain", "sft")

    pretrain: Pretrain | None = None
    """Train all weights on all tokens of plain text."""
    sft: Sft | None = None
    """Supervised fine-tuning on completions or conversations."""

    @model_validator(mode="before")
    @classmethod
    def without_settings(cls, value: object) -> object:
        """`sft:` with nothing below it stands for `sft: {}`."""
        if isinstance(value, dict) and len(value) == 1 and next(iter(value)) in STAGES:
            return {
                method: {} if settings is None else settings for method, settings in value.items()
            }
        return value

    @model_validator(mode="after")
    def one_method(self) -> "Stage":
        check_exactly_one(self)
        return self

    @property
    def method(self) -> str:
        """The name of the stage's method."""
        return next(name for name in STAGES if getattr(self, name) is not None)

    @property
    def settings(self) -> TrainingStage:
        """The settings of the stage's method."""
        settings: TrainingStage = getattr(self, self.method)
        return settings


class Memory(Node):
    """What a run may hold in memory."""

    shorthand: ClassVar[str | None] = "limit"

    limit: str
    """The most memory, such as 8GB. What needs more is done in smaller pieces, or is an error;
    neither the machine nor other programs get into trouble."""

    @field_validator("limit")
    @classmethod
    def is_a_size(cls, limit: str) -> str:
        size_bytes(limit)
        return limit

    @model_validator(mode="before")
    @classmethod
    def from_limit(cls, value: object) -> object:
        """A bare size stands for `{limit: ...}`."""
        return {"limit": value} if isinstance(value, str) else value


class Recipe(Node):
    """A base model, data, and the stages that make one into the other."""

    model: Annotated[NewModel | str, place("model")]
    """Hub id or folder of the base model, or the description of a new one."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """All randomness (order, dropout, initial adapters, held-out share) is a function of it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; `auto` takes an accelerator when there is one."""
    threads: Annotated[int, Field(gt=0), at_most(4096)] | None = None
    """CPU threads; left out, the number of cores at the start, kept for the whole run."""
    memory: Memory | None = None
    """The most memory the run may hold; left out, all that the machine has."""
    trust: list[Literal["remote_code", "pickle"]] = []
    """What of a model may be used although it can run any code: Python files that come with it
    (`remote_code`), weights in Python's own format (`pickle`)."""
    stages: Annotated[list[Stage], Field(min_length=1)]
    """What is done, in order; each stage starts from the result of the one before."""
    trackers: list[Tracker] = []
    """Where the metrics are shown besides; a process of its own for each reads `metrics.jsonl`."""

    @field_validator("trackers")
    @classmethod
    def each_once(cls, trackers: list[Tracker]) -> list[Tracker]:
        """Each has one file in the run that says how far it got."""
        types = [tracker.type for tracker in trackers]
        for twice in {name for name in types if types.count(name) > 1}:
            raise ValueError(f'expected each tracker once, found "{twice}" more than once')
        return trackers
