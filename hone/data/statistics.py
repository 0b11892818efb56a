"""How long, how many and of which roles: what `hone data stats` counts.

Rows are counted without a tokenizer, through `validate.py`; prepared samples are counted in tokens.
8 bytes are kept of each length. Left out: what a text is about.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from hone.data.formats import Conversation, PlainText, RowExample, TrainOn, sides_of
from hone.data.prepared import SEGMENTS, Prepared
from hone.data.validate import SourceReport, validate
from hone.recipe.data import Data, SampleKind

QUANTILES = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}

Lengths = npt.NDArray[Any]


@dataclass
class SourceStatistics:
    """The rows of one source. characters: of each row, all its texts together, the prompt of a pair
    once. turns: messages of each conversation, of a pair two. roles: their number of messages.
    repeated: rows that say what an earlier one of the source says.
    """

    report: SourceReport
    characters: "array[int]" = field(default_factory=lambda: array("q"))
    turns: "array[int]" = field(default_factory=lambda: array("q"))
    roles: Counter[str] = field(default_factory=Counter)
    repeated: int = 0

    def observe(self, row: RowExample) -> None:
        """Count the example of one row."""
        texts: list[str] = []
        for number, example in enumerate(sides_of(row)):
            if isinstance(example, Conversation):
                new = example.messages[example.given if number else 0 :]
                self.turns.append(len(example.messages))
                self.roles.update(message["role"] for message in new)
                texts += [str(message.get("content", "")) for message in new]
            elif isinstance(example, PlainText):
                texts.append(example.text)
            else:
                texts += [example.completion] if number else [example.prompt, example.completion]
        self.characters.append(sum(map(len, texts)))


def count_rows(
    data: Data,
    *,
    train_on: TrainOn = "completions",
    kind: SampleKind | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> SourceStatistics:
    """Read a source and count; a row that cannot be used is only counted as one."""
    found: list[SourceStatistics] = []

    def observe(report: SourceReport, example: RowExample) -> None:
        if not found:
            found.append(SourceStatistics(report))
        found[0].observe(example)

    validated = validate(
        [data], train_on=train_on, kind=kind, most=1, progress=progress, observe=observe
    )
    statistics = found[0] if found else SourceStatistics(validated.training[0])
    statistics.repeated = validated.repeated.count
    return statistics


def summary(lengths: Sequence[int] | Lengths) -> dict[str, float]:
    """Number, sum, mean and quantiles (each one of the values) of lengths; the number alone where
    there are none.
    """
    values = np.asarray(lengths)
    if not len(values):
        return {"count": 0}
    quantiles = np.quantile(values, list(QUANTILES.values()), method="inverted_cdf")
    return {
        "count": len(values),
        "sum": int(values.sum()),
        "mean": float(values.mean()),
        **{name: int(value) for name, value in zip(QUANTILES, quantiles, strict=True)},
    }


def histogram(lengths: Sequence[int] | Lengths) -> list[tuple[int, int, int]]:
    """(from, to, how many) by powers of two: 0, 1, 2-3, 4-7, ...; empty ends are left out."""
    values = np.asarray(lengths, dtype=np.int64)
    if not len(values):
        return []
    bins = np.frexp(values.astype(np.float64))[1]  # the bits of a number below 2^53
    counts = np.bincount(bins)
    borders = [(0, 0), *((1 << (bit - 1), (1 << bit) - 1) for bit in range(1, len(counts)))]
    first = int(bins.min())
    return [(*borders[bit], int(counts[bit])) for bit in range(first, len(counts))]


def count_tokens(prepared: Prepared) -> dict[str, Any]:
    """Lengths in tokens and what of them is trained; of trees also the lengths of each segment by
    its name (`segments`), and how many answers with a label are wanted (`wanted`).
    """
    report = prepared.report
    names = SEGMENTS[prepared.kind] if prepared.kind != "supervised" else ()
    segments = {name: summary(prepared.segments[:, i]) for i, name in enumerate(names)}
    wanted = int(prepared.arrays["labels"].sum()) if prepared.kind == "unpaired" else None
    return {
        "kind": prepared.kind,
        "segments": segments,
        "wanted": wanted,
        "lengths": summary(prepared.lengths),
        "trained": summary(prepared.trained),
        "trained_share": report["trained_tokens"] / report["tokens"],
        "histogram": histogram(prepared.lengths),
        "counts": report,
    }
