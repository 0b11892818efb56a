"""The samples of a stage: its prepared data, what is held out of them, and which ones a step has.

Called by `supervised.py`, `hone check` and the commands that look at a recipe's data. Left out: how
rows become tokens (data/prepare.py), and how the data of a run are locked (supervised.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from hone.data.prepare import prepare
from hone.data.prepared import Prepared, split_held_out
from hone.optim import warmup_steps
from hone.recipe.schema import Data, Sft, TrainingStage
from hone.records import Sample
from hone.seeds import Indices, Order


@dataclass(frozen=True)
class SampleView(Sequence[Sample]):
    """Some samples of the prepared data, read from disk when they are asked for."""

    prepared: Prepared
    indices: Indices

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> "SampleView": ...
    def __getitem__(self, index: int | slice) -> "Sample | SampleView":
        if isinstance(index, slice):
            return SampleView(self.prepared, self.indices[index])
        return self.prepared.sample(int(self.indices[index]))


@dataclass(frozen=True)
class StageData:
    """A stage's training and held-out samples. order: which training samples each step has."""

    prepared: Prepared
    training: SampleView
    held_out: Sequence[Sample]
    order: Order
    total_steps: int


def held_out_data(settings: TrainingStage) -> Data | None:
    """The source of held-out samples, if they have one of their own; rendered as the training data
    unless it names a template.
    """
    data = settings.evaluation.data if settings.evaluation else None
    if data is None or data.template != "auto":
        return data
    return data.model_copy(update={"template": settings.data.template})


def prepare_data(
    settings: TrainingStage,
    data: Data,
    tokenizer: PreTrainedTokenizerBase,
    *,
    date: str,
    progress: Any = None,
) -> Prepared:
    """Tokenise a stage's data, or open the cache of an earlier time."""
    return prepare(
        data,
        tokenizer,
        max_tokens=settings.max_tokens,
        overlong=settings.overlong,
        train_on=settings.train_on if isinstance(settings, Sft) else "all",
        progress=progress,
        date=date,
    )


def split_data(
    settings: TrainingStage, prepared: Prepared, evaluation: Prepared | None, seed: int, stage: int
) -> StageData:
    """Training samples with their order, held-out samples, and the number of steps."""
    everything = np.arange(len(prepared), dtype=np.int64)
    asked = settings.evaluation
    training, held_out = everything, SampleView(prepared, everything[:0])
    if asked and asked.share is not None:
        training, drawn = split_held_out(prepared, asked.share, seed)
        held_out = SampleView(prepared, drawn)
    elif evaluation is not None:
        held_out = SampleView(evaluation, np.arange(len(evaluation), dtype=np.int64))
    if asked and asked.samples is not None:
        held_out = held_out[: asked.samples]
    order = Order(prepared.lengths[training], settings.batch, seed, stage)
    steps = settings.steps or order.count_steps(settings.epochs or 1.0)
    warmup_steps(settings, steps)
    return StageData(prepared, SampleView(prepared, training), held_out, order, steps)
