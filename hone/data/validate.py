"""Every row of data files read once, and all that is wrong with them, without a tokenizer.

Called by `hone data validate` and `statistics.py`. The rows go through the same readers and formats
as for training, so that what passes here can be prepared; only the chat template may still refuse a
row. Left out: tokens.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hone.data.duplicates import Found
from hone.data.formats import Reading, RowExample, TrainOn, recognise
from hone.data.row_hashes import RowHashes, prompt_of
from hone.data.rows import BadRow, Row, RowError
from hone.data.sources import Source, open_source
from hone.errors import UserError
from hone.recipe.data import Data, SampleKind

MOST_COLUMNS = 1000  # names that are counted; rows may have a new one each

Progress = Callable[[int, int | None], None]
Observe = Callable[["SourceReport", RowExample], None]


@dataclass
class SourceReport:
    """What was found in one source. columns: rows that have something there. bad: (place, reason)
    of the first bad rows. fault: why reading ended before the end.
    """

    path: str
    format: str | None = None
    columns: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    num_bad: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)
    fault: str | None = None

    @property
    def ok(self) -> bool:
        """Nothing is wrong, and there is something."""
        return self.rows > 0 and self.num_bad == 0 and self.fault is None


@dataclass
class Validation:
    """Reports of the training sources and of those that are evaluated on. repeated: training rows
    that say what an earlier one says. trained, asked: rows and prompts of the evaluation that are
    trained on too; None without evaluation.
    """

    training: list[SourceReport]
    evaluation: list[SourceReport]
    repeated: Found
    trained: Found | None
    asked: Found | None
    hashes: tuple[RowHashes, RowHashes]

    @property
    def ok(self) -> bool:
        """All rows can be used."""
        return all(report.ok for report in [*self.training, *self.evaluation])


def validate(
    training: Sequence[Data],
    evaluation: Sequence[Data] = (),
    *,
    train_on: TrainOn = "completions",
    kind: SampleKind | None = None,
    most: int = 10,
    progress: Progress | None = None,
    observe: Observe | None = None,
) -> Validation:
    """Read all rows of the sources; at most `most` of each kind of finding are named, all counted.

    kind: what the rows have to become, None for anything.
    progress is called with (rows read, None), observe with the report of a source and each example
    that is read from it. Raises UserError for a source that is not there.
    """
    sources = [
        [(data, open_source(data.path, data.split)) for data in part]
        for part in (training, evaluation)
    ]
    hashes = RowHashes(), RowHashes()
    reports: list[list[SourceReport]] = [[], []]
    rows_before = 0
    for part, found, into in zip(sources, hashes, reports, strict=True):
        for data, source in part:
            found.add_source(source)
            reading = _SourceReading(data, source, found, train_on, kind, most, observe)
            into.append(reading.read(progress, rows_before))
            rows_before += reading.report.rows
    trained, asked = hashes[1].overlap(hashes[0], most) if evaluation else (None, None)
    repeated = hashes[0].repeated(most)
    return Validation(reports[0], reports[1], repeated, trained, asked, hashes)


class _SourceReading:
    """One source while its rows are judged."""

    def __init__(
        self,
        data: Data,
        source: Source,
        hashes: RowHashes,
        train_on: TrainOn,
        kind: SampleKind | None,
        most: int,
        observe: Observe | None,
    ) -> None:
        self.data = data
        self.source = source
        self.hashes = hashes
        self.train_on: TrainOn = train_on
        self.kind: SampleKind | None = kind
        self.most = most
        self.observe = observe
        self.report = SourceReport(data.path)
        self._reading: Reading | None = None

    def read(self, progress: Progress | None, rows_before: int) -> SourceReport:
        try:
            for row in self.source.rows():
                self.report.rows += 1
                self._judge(row)
                if progress and self.report.rows % 1000 == 0:
                    progress(rows_before + self.report.rows, None)
        except UserError as fault:
            self.report.fault = fault.message
        if self.report.rows == 0 and self.report.fault is None:
            self.report.fault = "there are no rows"
        return self.report

    def _judge(self, row: Row | BadRow) -> None:
        if isinstance(row, BadRow):
            self._bad(row, row.message)
            return
        self._count_columns(row.values)
        if self._reading is None:
            self._reading = recognise(list(row.values), self.data, self.kind)
            self.report.format = self._reading.format
        try:
            example = self._reading.example(row.values, self.train_on)
            self.hashes.add(row.source, row.number, row.values, prompt_of(example))
        except RowError as fault:
            self._bad(row, fault.message)
            return
        if self.observe:
            self.observe(self.report, example)

    def _count_columns(self, values: dict[str, Any]) -> None:
        columns = self.report.columns
        for name, value in values.items():
            if value is not None and (name in columns or len(columns) < MOST_COLUMNS):
                columns[name] += 1

    def _bad(self, row: Row | BadRow, reason: str) -> None:
        self.report.num_bad += 1
        if len(self.report.bad) < self.most:
            self.report.bad.append((self.source.place(row.source, row.number), reason))
