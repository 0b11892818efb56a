"""Two evaluations of the same questions: the difference of each row, and of their means.

Called by `compare.py`. A row's difference is the second run's score minus the first's; rows are
drawn together with both their scores, so that what makes a question hard for both cancels out.
`hone/comparison.py` is something else: it compares the bytes of two runs.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from hone.evaluation.answered import LOSS, Answered, Evaluated
from hone.intervals import Measure, bootstrap

SMALLER_IS_BETTER = {LOSS}
OTHER_TOKENS = "the tokenizers differ, so that losses are per token of the first run"


@dataclass(frozen=True)
class Paired:
    """A score's mean in both runs, and the mean difference with its interval (paired bootstrap)."""

    first: float
    second: float
    difference: Measure


@dataclass(frozen=True)
class PairedRow:
    """A question with what both answered. gain: by how much the second is better, below 0 where it
    is worse; None where one of them has no score.
    """

    first: Answered
    second: Answered
    gain: float | None

    @property
    def question(self) -> Answered:
        """The part that both have in common."""
        return self.first


@dataclass(frozen=True)
class PairedSet:
    """Questions of one source. headline: the score that says which row is better, None without any.

    scores: by name. rows: in the order of the questions. remark: what was left out, and why.
    """

    name: str
    headline: str | None
    scores: dict[str, Paired]
    rows: list[PairedRow] = field(default_factory=list)
    remark: str = ""

    @property
    def better(self) -> list[PairedRow]:
        """Rows in which the second run is better, the largest gain first."""
        found = [row for row in self.rows if row.gain is not None and row.gain > 0]
        return sorted(found, key=lambda row: -(row.gain or 0.0))

    @property
    def worse(self) -> list[PairedRow]:
        """Rows in which the second run is worse, the largest loss first."""
        found = [row for row in self.rows if row.gain is not None and row.gain < 0]
        return sorted(found, key=lambda row: row.gain or 0.0)

    @property
    def even(self) -> list[PairedRow]:
        """Rows without a difference, or without a score."""
        return [row for row in self.rows if not row.gain]

    def as_json(self) -> dict[str, Any]:
        """All of it as plain values; rows from the largest gain to the largest loss."""
        rows = [*self.better, *self.even, *reversed(self.worse)]
        return {
            "name": self.name,
            "count": len(self.rows),
            "headline": self.headline,
            "better": len(self.better),
            "worse": len(self.worse),
            "remark": self.remark,
            "scores": {name: asdict(paired) for name, paired in self.scores.items()},
            "rows": [_row_as_json(row) for row in rows],
        }


def _row_as_json(row: PairedRow) -> dict[str, Any]:
    both = (row.first, row.second)
    return {
        "place": row.question.place,
        "prompt": row.question.prompt,
        "expected": list(row.question.expected),
        "answers": [each.answer for each in both],
        "scores": [dict(each.scores) for each in both],
        "gain": row.gain,
    }


def pair(
    name: str, first: Evaluated, second: Evaluated, headline: str | None = None, remark: str = ""
) -> PairedSet:
    """Both evaluations row by row. headline: left out, the first score that there is.

    Where tokenizers cut the texts otherwise, losses are per token of the first run in both.
    """
    comparable = [in_tokens_of(*both) for both in zip(first.rows, second.rows, strict=True)]
    if comparable != second.rows:
        second = replace(second, rows=comparable)
        remark = "; ".join(filter(None, [remark, OTHER_TOKENS]))
    names = list(dict.fromkeys(name for row in first.rows for name in row.scores))
    headline = headline or next(iter(names), None)
    scores = {}
    for score in names:
        if found := paired_score(first.scores(score), second.scores(score)):
            scores[score] = found
    rows = [
        PairedRow(one, other, gain(one, other, headline))
        for one, other in zip(first.rows, second.rows, strict=True)
    ]
    return PairedSet(name, headline if headline in scores else None, scores, rows, remark)


def in_tokens_of(first: Answered, second: Answered) -> Answered:
    """The second row with its loss per token of the first: the same text, whose nats are the same
    whatever they are divided by.
    """
    loss = second.scores.get(LOSS)
    if loss is None or not first.tokens or not second.tokens or first.tokens == second.tokens:
        return second
    return replace(second, scores={**second.scores, LOSS: loss * second.tokens / first.tokens})


def paired_score(first: Sequence[float | None], second: Sequence[float | None]) -> Paired | None:
    """The means over rows that have the score in both runs; None where there is no such row."""
    known = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if not known:
        return None
    means = [sum(column) / len(known) for column in zip(*known, strict=True)]
    return Paired(means[0], means[1], bootstrap([b - a for a, b in known]))


def gain(first: Answered, second: Answered, headline: str | None) -> float | None:
    """By how much the second answer is better."""
    before, after = (each.scores.get(headline or "") for each in (first, second))
    if before is None or after is None:
        return None
    return before - after if headline in SMALLER_IS_BETTER else after - before


def is_better(name: str, difference: Measure) -> bool | None:
    """Whether the second run is better by a score: None where the interval holds zero."""
    if not (difference.is_above_zero or difference.is_below_zero):
        return None
    return difference.is_above_zero != (name in SMALLER_IS_BETTER)
