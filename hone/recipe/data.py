"""Where the samples of a stage come from, and what is held out of them: a part of the recipe."""

import os
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

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
    check_exactly_one,
    place,
)

SampleKind = Literal["supervised", "pairs", "unpaired"]
"""What one sample is: text with trained tokens, two answers to one prompt, or one with a label."""


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
    chosen: str = "chosen"
    """The better answer of two: text, messages, or a whole conversation."""
    rejected: str = "rejected"
    """The other answer, of the same kind."""
    label: str = "label"
    """Whether a completion is wanted: true or false, 1 or 0."""
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
        "auto",
        "text",
        "prompt_completion",
        "messages",
        "conversations",
        "instruction",
        "preference",
        "unpaired",
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


class Stopping(Node):
    """End a stage when what is held out says that it gains no more."""

    metric: str
    """What is watched."""
    patience: PositiveInt = 3
    """Evaluations in a row without a gain after which training ends."""
    min_change: Annotated[float, Field(ge=0)] = 0.0
    """A gain is a change for the better by more than this."""
    restore_best: bool = True
    """The result has the weights of the best evaluation, not the last ones."""


class EarlyStopping(Stopping):
    """End a stage when its held-out samples say that it gains no more."""

    metric: Literal["loss", "accuracy", "reward"] = "loss"
    """What is watched: held-out `loss`; `accuracy`, the share of tokens that are the likeliest (of
    pairs: that are told apart); or mean `reward`. It also decides which checkpoint is the best."""


class Occasions(Node):
    """When held-out samples are looked at."""

    every: PositiveInt = 50
    """Steps between evaluations; the last step is always evaluated."""
    before: bool = True
    """Also evaluate before step 1, so that the change can be seen."""
    samples: PositiveInt | None = None
    """Evaluate on at most so many held-out samples (the first ones of the seed's order)."""
    early_stopping: Stopping | None = None
    """End the stage when held-out samples say that it gains no more; never when left out."""


class Evaluation(Occasions):
    """Held-out loss during training."""

    alternatives: ClassVar[tuple[str, ...]] = ("share", "data")

    share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the samples that is held out of training, of each data set, drawn from the seed."""
    data: Data | Annotated[list[Data], Field(min_length=1)] | None = None
    """Data of its own instead of a share, one source or a list; with the training data's template
    if it names none."""
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
