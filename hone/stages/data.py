"""The samples of a stage: its prepared data, what is held out of them, and which ones a step has.

Called by `supervised.py`, `hone check` and the commands that look at a recipe's data. Left out: how
rows become tokens (data/prepare.py), and how the data of a run are locked (supervised.py).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, overload

import numpy as np
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from hone.data.chat import Renderer
from hone.data.duplicates import find_repeats
from hone.data.joined import Joined, join
from hone.data.prepare import prepare
from hone.data.prepared import LEFT_OUT, Prepared, split_held_out
from hone.errors import UserError
from hone.optim import warmup_steps
from hone.recipe.data import Data
from hone.recipe.training import DataStage
from hone.records import Sample
from hone.sampling import Rendering
from hone.seeds import Indices, Mixture, Order, apportion, shuffle

# What the preparation did to rows, told where it happened.
TOLD = (
    *("truncated", "split_turns", "split_overlong"),
    *LEFT_OUT,
)


@dataclass(frozen=True)
class SampleView(Sequence[Sample]):
    """Some samples of the prepared data, read from disk when they are asked for."""

    prepared: Joined
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
    """A stage's training and held-out samples. order: which training samples each step has.

    per_epoch: for each data set, its samples in an epoch.
    """

    settings: DataStage
    prepared: Joined
    training: SampleView
    held_out: SampleView
    order: Order
    total_steps: int
    per_epoch: tuple[int, ...]

    def samples_of(self, step: int) -> list[Sample]:
        """The samples of step 1, 2, ..."""
        return [self.training[int(i)] for i in self.order.samples_of(step)]

    def epoch_of(self, step: int) -> float:
        """Passes over the training samples after a step."""
        return self.order.epoch_of(step)

    def place_of(self, sample: Sample) -> str:
        """Where a training sample came from: file and line, or data set and row."""
        return self.prepared.place(sample.index)

    @property
    def rendering(self) -> Rendering:
        """How prompts are rendered, saved with the result."""
        shown = self.prepared
        return Rendering(shown.plain, shown.template, shown.date, shown.end_token_ids)

    def check(self, rows: int) -> None:
        """Raises UserError for a sample with a token that a model of so many embeddings cannot
        read.
        """
        check_ids(self, rows)

    def describe(self) -> list[str]:
        """Samples and what was left out of them, line by line."""
        report = self.prepared.report
        counted = "".join(
            f", {name.replace('_', ' ')} {report[name]:,}" for name in TOLD if report[name]
        )
        return [
            f"{len(self.training):,} samples, {len(self.held_out):,} held out, "
            f"{report['trained_tokens']:,} of {report['tokens']:,} tokens trained{counted}",
            *describe_sets(self.settings, self),
            *describe_repeats(self),
        ]


def named(name: str, sources: Sequence[Data]) -> Iterator[tuple[str, Data]]:
    """Each data source under its name in messages and in lock.json: `data` for a single one,
    `data[0]`, `data[1]`, ... for several.
    """
    for index, data in enumerate(sources):
        yield f"{name}[{index}]" if len(sources) > 1 else name, data


def held_out_sources(settings: DataStage, prepared: Joined) -> list[Data]:
    """The sources of held-out samples, if they have some of their own; rendered as the training
    data, `prepared`, unless they name a template.
    """
    template = settings.data_sets[prepared.decides].template
    return [
        data if data.template != "auto" else data.model_copy(update={"template": template})
        for data in (settings.evaluation.data_sets if settings.evaluation else [])
    ]


def prepare_data(
    settings: DataStage,
    data: Data,
    tokenizer: PreTrainedTokenizerBase,
    *,
    date: str,
    progress: Any = None,
) -> Prepared:
    """Tokenise one of a stage's data sets, or open the cache of an earlier time."""
    return prepare(
        data,
        tokenizer,
        max_tokens=settings.max_tokens,
        overlong=settings.overlong,
        train_on=settings.trained_part,
        kind=settings.sample_kind,
        progress=progress,
        date=date,
    )


def prepare_training(
    settings: DataStage, tokenizer: PreTrainedTokenizerBase, *, date: str
) -> Joined:
    """All of a stage's training data, tokenised or from the cache."""
    return _join(settings, lambda _, data: prepare_data(settings, data, tokenizer, date=date))


def prepare_sources(
    settings: DataStage, prepare_one: Callable[[str, Data], Prepared]
) -> tuple[Joined, Joined | None]:
    """A stage's training and held-out data, each set prepared by `prepare_one` from its name and
    description; None where there are no data of their own to hold out.
    """
    training = _join(settings, prepare_one)
    asked = held_out_sources(settings, training)
    held_out = [prepare_one(*each) for each in named("evaluation", asked)]
    return training, Joined(tuple(held_out)) if held_out else None


def check_ids(data: StageData, rows: int) -> None:
    """Raises UserError for a sample with a token that a model of so many embeddings cannot read."""
    for part in (data.prepared, data.held_out.prepared):
        for each in part.sets:
            tokens, offsets = each.arrays["tokens"], each.arrays["offsets"]
            if int(tokens.max()) < rows:
                continue
            first = int(np.argmax(tokens >= rows))
            place = each.place(int(np.searchsorted(offsets, first, side="right")) - 1)
            raise UserError(
                f"{place} holds the token {int(tokens[first])}, and the model has {rows} "
                f"embeddings, 0 to {rows - 1}",
                hint="the tokenizer is of another model, or leave the row out",
                exit_code=2,
            )


def _join(settings: DataStage, prepare_one: Callable[[str, Data], Prepared]) -> Joined:
    sources = settings.data_sets
    sets = [prepare_one(*each) for each in named("data", sources)]
    return join(sets, [data.path for data in sources])


def result_template(settings: DataStage, tokenizer: PreTrainedTokenizerBase, *, date: str) -> str:
    """The chat template that a stage saves with its result."""
    found = {Renderer(tokenizer, data.template).template for data in settings.data_sets}
    if len(found) == 1:
        return found.pop()
    return prepare_training(settings, tokenizer, date=date).template


def split_data(
    settings: DataStage, prepared: Joined, evaluation: Joined | None, seed: int, stage: int
) -> StageData:
    """Training samples with their order, held-out samples, and the number of steps."""
    asked = settings.evaluation
    borders = prepared.borders
    training = [np.arange(*ends, dtype=np.int64) for ends in pairwise(borders)]
    held_out = SampleView(prepared, training[0][:0])
    if asked and asked.share is not None:
        training, drawn = draw_held_out(prepared, asked.share, seed)
        held_out = SampleView(prepared, drawn)
    elif evaluation is not None:
        held_out = SampleView(evaluation, _evaluation_order(evaluation, seed))
    if asked and asked.samples is not None:
        held_out = held_out[: asked.samples]
    mixture = _mixture(settings, [len(each) for each in training])
    everything = np.concatenate(training)
    order = Order(prepared.lengths[everything], settings.batch, seed, stage, mixture)
    steps = settings.steps or order.count_steps(settings.epochs or 1.0)
    warmup_steps(settings, steps)
    view = SampleView(prepared, everything)
    per_epoch = mixture.counts if mixture else tuple(map(len, training))
    return StageData(settings, prepared, view, held_out, order, steps, per_epoch)


def draw_held_out(prepared: Joined, share: float, seed: int) -> tuple[list[Indices], Indices]:
    """(training samples of each set, ascending; held out, as they were drawn).

    Of several sets each gives its part, but never its last row; the samples of a row stay together.
    A pure function of the seed and the sets' numbers of rows. Raises UserError where nothing can be
    held out.
    """
    if len(prepared.sets) == 1:
        training, drawn = split_held_out(prepared.sets[0], share, seed)
        return [training], drawn
    rows = [len(each.row_borders) - 1 for each in prepared.sets]
    parts = apportion(min(max(round(sum(rows) * share), 1), sum(rows) - 1), rows)
    drawn_rows: list[Indices] = []  # the samples of each row
    for index, (part, count) in enumerate(zip(parts, rows, strict=True)):
        borders = prepared.sets[index].row_borders + prepared.borders[index]
        for row in shuffle(count, seed, "held out", index)[: min(part, count - 1)]:
            drawn_rows.append(np.arange(borders[row], borders[row + 1], dtype=np.int64))
    if not drawn_rows:
        raise UserError(
            f"of {sum(rows)} rows in {len(rows)} data sets none can be held out for evaluation: "
            "expected a set with at least 2",
            hint="leave `evaluation` out, or name other data for it: evaluation: {data: ...}",
        )
    mixed = np.concatenate([drawn_rows[i] for i in shuffle(len(drawn_rows), seed, "held out")])
    everything = [np.arange(*ends, dtype=np.int64) for ends in pairwise(prepared.borders)]
    return [np.setdiff1d(each, mixed) for each in everything], mixed


def _evaluation_order(evaluation: Joined, seed: int) -> Indices:
    """All samples; those of several sets mixed, so that the first ones are of all sets."""
    if len(evaluation.sets) > 1:
        return shuffle(len(evaluation), seed, "held out")
    return np.arange(len(evaluation), dtype=np.int64)


def _mixture(settings: DataStage, sizes: list[int]) -> Mixture | None:
    """What an epoch is made of, where the data sets have weights."""
    weights = settings.weights
    if weights is None:
        return None
    counts = apportion(sum(sizes), weights)
    for index, count in enumerate(counts):
        if count == 0:
            raise UserError(
                f"data[{index}] `{settings.data_sets[index].path}` would give none of the "
                f"{sum(sizes):,} samples of an epoch: its `weight` {weights[index]:g} is too small "
                "beside the others",
                hint="raise its weight, or leave the data set out",
                exit_code=2,
            )
    return Mixture(tuple(sizes), tuple(counts))


def describe_sets(settings: DataStage, data: StageData) -> list[str]:
    """A line for each of several data sets: its samples, and its share of an epoch."""
    if len(data.per_epoch) == 1:
        return []
    total = sum(data.per_epoch)
    return [
        f"{name} {source.path}: {len(prepared):,} samples, {count:,} of an epoch's {total:,} "
        f"({count / total:.1%})"
        for (name, source), prepared, count in zip(
            named("data", settings.data_sets), data.prepared.sets, data.per_epoch, strict=True
        )
    ]


def describe_repeats(data: StageData) -> list[str]:
    """A line for each thing that stands in the data twice, with the first place of it."""
    training, held_out = data.prepared, data.held_out.prepared
    found = find_repeats(training, data.training.indices, held_out, data.held_out.indices)
    lines = []
    for later, earlier in found.repeated.pairs:
        lines.append(
            f"{found.repeated.count:,} of {len(data.training):,} training samples repeat another "
            f"one word for word (first: {training.place(later)} repeats {training.place(earlier)})"
        )
    overlaps = [(found.trained, "are trained on, word for word")]
    if found.asked.count > found.trained.count:  # the rest of them differs in the answer
        overlaps.append((found.asked, "have a prompt that is trained on"))
    for each, what in overlaps:
        for mine, theirs in each.pairs:
            places = f"{held_out.place(mine)} and {training.place(theirs)}"
            total = len(data.held_out)
            lines.append(f"{each.count:,} of {total:,} held-out samples {what} (first: {places})")
    return lines
