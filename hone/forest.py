"""Samples to batches: trees of segments flat in one row without padding, or padded by path.

A step's samples are cut into micro-batches between trees (`plan_micro_batches`); `make_batch` lays
one micro-batch out. The engine reads `Batch`; the attention reads its spans. Nothing here knows the
model or the method.

Shapes: R rows, T tokens a row, P trained positions, C completions (segments with trained tokens).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import zip_longest

import numpy as np
import torch

from hone.records import Sample, Segment

# Rows end with up to 63 tokens that nothing sees. oneDNN compiles its kernels for every length anew
# (on a CPU 1 ms and 0.6 MB each), so few different lengths are worth more.
ROW_MULTIPLE = 64


@dataclass(frozen=True)
class Span:
    """Where one segment lies in the row, and what it may see: its own past and its ancestors.

    ancestors: (start, length) of each, root first. offset: tokens of all ancestors, the path
    position of the first token.
    """

    start: int
    length: int
    ancestors: tuple[tuple[int, int], ...] = ()
    offset: int = 0


@dataclass(frozen=True)
class StepCounts:
    """What the sums of a step are divided by: counted over all its micro-batches before the first
    forward. completions: segments with trained tokens. by_segment: trained tokens by the number of
    the segment in its sample (of pairs: prompts, chosen sides, rejected sides).
    """

    trained_tokens: int
    samples: int
    completions: int
    by_segment: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """One micro-batch, ready for the model.

    input_ids, position_ids: (R, T). attention_mask: (R, T) for the padded layout, None for the
    forest. spans: the segments of the forest's single row. sources_P: flat index (row * T + column)
    of the hidden state that predicts targets_P. samples_P: which of the step's samples a position
    belongs to. segments_P: which segment of that sample. constants: by name, (P,), what the
    segments carry for the loss.

    Example: the prompt [1, 2] with completions [3, 4] and [5] is the row [1, 2, 3, 4, 5] with
    position_ids [0, 1, 2, 3, 2], sources_P [1, 2, 1] and targets_P [3, 4, 5].
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    spans: tuple[Span, ...]
    sources_P: torch.Tensor
    targets_P: torch.Tensor
    samples_P: torch.Tensor
    segments_P: torch.Tensor
    counts: StepCounts
    constants: dict[str, torch.Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`."""
        here = {each.name: getattr(self, each.name) for each in fields(self)}
        moved = {
            name: value.to(device)
            for name, value in here.items()
            if isinstance(value, torch.Tensor)
        }
        constants = {name: value.to(device) for name, value in self.constants.items()}
        return Batch(**{**here, **moved, "constants": constants})

    @cached_property
    def completions_P(self) -> torch.Tensor:
        """(P,) which of this batch's C completions a position belongs to: they are numbered by
        sample and, in it, by segment.
        """
        segments = int(self.segments_P.max()) + 1 if len(self.segments_P) else 1
        numbers = self.samples_P * segments + self.segments_P
        return torch.unique(numbers, return_inverse=True)[1]

    @property
    def num_completions(self) -> int:
        """C, the completions of this batch."""
        return int(self.completions_P.max()) + 1 if len(self.completions_P) else 0

    def sum_completions(self, values_P: torch.Tensor) -> torch.Tensor:
        """(C,) the sum of `values_P` over each completion."""
        sums = torch.zeros(self.num_completions, dtype=values_P.dtype, device=values_P.device)
        return sums.index_add(0, self.completions_P, values_P)


def path_to(segments: Sequence[Segment], index: int) -> list[int]:
    """Indices of the segments from the root down to `index`, both included."""
    path = [index]
    while (parent := segments[path[-1]].parent) >= 0:
        path.append(parent)
    return path[::-1]


def leaves(segments: Sequence[Segment]) -> list[int]:
    """Indices of the segments that no other one hangs on."""
    parents = {segment.parent for segment in segments}
    return [index for index in range(len(segments)) if index not in parents]


def is_target(segment: Segment, has_past: bool) -> np.ndarray:
    """(L,) bool: trained tokens that something stands before; the first token of all cannot be
    predicted.
    """
    trained = np.asarray(segment.trained, dtype=bool)
    if has_past or not len(trained):
        return trained
    return np.concatenate(([False], trained[1:]))


def count_targets(sample: Sample) -> list[int]:
    """Trained tokens of each segment that the loss sees."""
    segments = sample.segments
    return [
        int(
            is_target(
                segment, any(len(segments[i].tokens) for i in path_to(segments, n)[:-1])
            ).sum()
        )
        for n, segment in enumerate(segments)
    ]


def count_step(samples: Sequence[Sample]) -> StepCounts:
    """The denominators of a step with these samples."""
    counted = [count_targets(sample) for sample in samples]
    by_segment = tuple(map(sum, zip_longest(*counted, fillvalue=0)))
    completions = sum(count > 0 for counts in counted for count in counts)
    return StepCounts(sum(by_segment), len(samples), completions, by_segment)


def plan_micro_batches(
    samples: Sequence[Sample], token_budget: int, *, padded: bool = False, alone: bool = False
) -> list[list[int]]:
    """Cut a step into micro-batches of at most `token_budget` tokens, between trees and in order.

    A sample longer than the budget stands alone; `alone` puts every sample alone. In the padded
    layout rows times the longest path is what counts.
    """
    plan: list[list[int]] = []
    rows = longest = total = 0
    for index, sample in enumerate(samples):
        paths = [
            sum(len(sample.segments[i].tokens) for i in path_to(sample.segments, leaf))
            for leaf in leaves(sample.segments)
        ]
        rows, longest, total = rows + len(paths), max(longest, *paths), total + sample.num_tokens
        cost = rows * longest if padded else total
        if not plan or alone or cost > token_budget:
            plan.append([])
            rows, longest, total = len(paths), max(paths), sample.num_tokens
        plan[-1].append(index)
    return plan


@dataclass
class _Row:
    """Grows while a row is laid out."""

    tokens: list[np.ndarray] = field(default_factory=list)
    positions: list[np.ndarray] = field(default_factory=list)
    sources: list[np.ndarray] = field(default_factory=list)
    targets: list[np.ndarray] = field(default_factory=list)
    samples: list[np.ndarray] = field(default_factory=list)
    segments: list[np.ndarray] = field(default_factory=list)
    constants: list[dict[str, np.ndarray]] = field(default_factory=list)
    length: int = 0

    def add(
        self, segment: Segment, *, offset: int, before: int, place: tuple[int, int], train: bool
    ) -> int:
        """Lay one segment down. `before` is the index of the token that predicts its first one, -1
        for none. place: numbers of sample and segment.
        """
        length, start = len(segment.tokens), self.length
        self.tokens.append(np.asarray(segment.tokens, dtype=np.int64))
        self.positions.append(np.arange(offset, offset + length))
        if train:
            chosen = np.flatnonzero(is_target(segment, before >= 0))
            self.sources.append(np.where(chosen == 0, before, start + chosen - 1))
            self.targets.append(np.asarray(segment.tokens, dtype=np.int64)[chosen])
            self.samples.append(np.full(len(chosen), place[0]))
            self.segments.append(np.full(len(chosen), place[1]))
            if len(chosen):
                carried = segment.constants.items()
                self.constants.append({name: value[chosen] for name, value in carried})
        self.length += length
        return start


def _lay_forest(row: _Row, sample: Sample, index: int) -> Iterator[Span]:
    """Lay a whole tree, each segment once."""
    starts: list[int] = []
    last: list[int] = []
    for n, segment in enumerate(sample.segments):
        path = path_to(sample.segments, n)[:-1]
        offset = sum(len(sample.segments[i].tokens) for i in path)
        before = last[segment.parent] if segment.parent >= 0 else -1
        start = row.add(segment, offset=offset, before=before, place=(index, n), train=True)
        starts.append(start)
        last.append(start + len(segment.tokens) - 1 if len(segment.tokens) else before)
        if len(segment.tokens):
            ancestors = tuple(
                (starts[i], len(sample.segments[i].tokens))
                for i in path
                if len(sample.segments[i].tokens)
            )
            yield Span(start, len(segment.tokens), ancestors, offset)


def _lay_paths(sample: Sample, index: int) -> Iterator[_Row]:
    """Lay each root-to-leaf path in a row of its own; a shared segment is trained only in the
    first.
    """
    seen: set[int] = set()
    for leaf in leaves(sample.segments):
        row = _Row()
        for n in path_to(sample.segments, leaf):
            offset = row.length
            row.add(
                sample.segments[n],
                offset=offset,
                before=offset - 1,
                place=(index, n),
                train=n not in seen,
            )
            seen.add(n)
        yield row


def make_batch(
    samples: Sequence[Sample],
    counts: StepCounts,
    *,
    indices: Sequence[int] | None = None,
    padded: bool = False,
    multiple: int = 1,
) -> Batch:
    """Lay samples out; `indices` are their places in the step (0, 1, ... when left out).

    multiple: the forest's row is filled up to a multiple of so many tokens.
    """
    indices = range(len(samples)) if indices is None else indices
    if padded:
        rows = [
            row
            for index, sample in zip(indices, samples, strict=True)
            for row in _lay_paths(sample, index)
        ]
        return _stack(rows, (), counts, masked=True)
    row = _Row()
    spans = [
        span
        for index, sample in zip(indices, samples, strict=True)
        for span in _lay_forest(row, sample, index)
    ]
    if rest := -row.length % multiple:
        filling = Segment(np.zeros(rest, dtype=np.int32), np.zeros(rest, dtype=bool))
        spans.append(Span(row.add(filling, offset=0, before=-1, place=(-1, -1), train=False), rest))
    return _stack([row], tuple(spans), counts, masked=False)


def _stack(rows: list[_Row], spans: tuple[Span, ...], counts: StepCounts, *, masked: bool) -> Batch:
    """Rows to tensors, padded at the end with id 0."""
    longest = max(row.length for row in rows)
    input_ids = np.zeros((len(rows), longest), dtype=np.int64)
    position_ids = np.zeros_like(input_ids)
    mask = np.zeros_like(input_ids)
    for n, row in enumerate(rows):
        input_ids[n, : row.length] = np.concatenate(row.tokens)
        position_ids[n, : row.length] = np.concatenate(row.positions)
        mask[n, : row.length] = 1
    sources = [part + n * longest for n, row in enumerate(rows) for part in row.sources]

    def joined(parts: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(np.int64))

    return Batch(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids),
        attention_mask=torch.from_numpy(mask) if masked else None,
        spans=spans,
        sources_P=joined(sources),
        targets_P=joined([part for row in rows for part in row.targets]),
        samples_P=joined([part for row in rows for part in row.samples]),
        segments_P=joined([part for row in rows for part in row.segments]),
        counts=counts,
        constants=_join_constants([part for row in rows for part in row.constants]),
    )


def _join_constants(parts: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """What the segments carry, laid out as their targets; every one with targets has the same
    names.
    """
    names = parts[0].keys() if parts else ()
    assert all(part.keys() == names for part in parts), "segments carry different constants"
    return {
        name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in names
    }
