"""What may stand in a recipe: one frozen pydantic tree, without torch.

Read by `load.py` (files, overrides, faults), `hone recipe schema` (JSON Schema) and every stage.
The text under a field is its help. A method is one more stage class and one more name in `STAGES`;
what all stages share is in `training.py` and `data.py`. Rules that hold for all of it are in
`node.py`.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from hone.recipe.node import (
    Node,
    at_most,
    check_exactly_one,
    place,
    size_bytes,
)
from hone.recipe.policy import Grpo
from hone.recipe.preference import Dpo
from hone.recipe.trackers import Tracker
from hone.recipe.training import Adapter, DataStage, Lora, TrainingStage
from hone.recipe.verify import Verify

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


class Pretrain(DataStage):
    """Train all weights on all tokens of plain text."""

    learning_rate: Annotated[float, Field(ge=0)] = 1e-3
    """The highest learning rate, reached after the warm-up."""


class Sft(DataStage):
    """Supervised fine-tuning: learn the assistant's turns, or the completions."""

    adapter: Adapter = Lora()
    """What is trained: `lora` adapters, `qlora` beside weights of few bits, or `full` weights."""
    train_on: Literal["completions", "all"] = "completions"
    """Which tokens are trained: assistant turns and completions, or all. Of plain text, all are."""


STAGES: dict[str, type[TrainingStage]] = {
    "pretrain": Pretrain,
    "sft": Sft,
    "dpo": Dpo,
    "grpo": Grpo,
}


class Stage(Node):
    """One stage: a single key that names the method, with its settings."""

    alternatives: ClassVar[tuple[str, ...]] = ("pretrain", "sft", "dpo", "grpo")

    pretrain: Pretrain | None = None
    """Train all weights on all tokens of plain text."""
    sft: Sft | None = None
    """Supervised fine-tuning on completions or conversations."""
    dpo: Dpo | None = None
    """Preference: of two answers, make the chosen one likelier; DPO and its family."""
    grpo: Grpo | None = None
    """Reinforcement: sample, score, learn from the scores."""

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
    verify: Verify | None = None
    """What is proven at the end, from the saved results; `{}` stands for all of it, nothing when
    left out."""
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
