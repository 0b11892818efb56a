"""What an evaluation has found: a row for each question, and the measures of all rows.

Made by `evaluate.py`, kept on disk by `stored.py`, read by whatever compares or shows evaluations.
A line of the file of answers is one row; what does not apply to it is left out:

    {"index": 0, "place": "facts.jsonl:1", "prompt": "What is 2 + 3?", "expected": ["5"],
     "answer": "It is 5.", "scores": {"exact": 0.0, "numeric": 1.0}, "by": {"kind": "sums"}}

Names in `scores`, all of them better when higher but `loss`: the measures of `measures.py` and
`regex`; `reward`, the weighted sum, and `reward/NAME` for each reward, null where it could not be
scored (`failure` says why); `loss`, nats per token over `tokens` tokens; `choice` and
`choice_normalised`, 1 where the right one of `choices` has the highest log-probability (`logprobs`,
in nats), as it is and per character; `preference`, 1 where the better answer is the likelier one.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from hone.intervals import Measure, bootstrap, bootstrap_of

LOSS, PERPLEXITY = "loss", "perplexity"


@dataclass(frozen=True)
class Answered:
    """One row, as the module's text describes it. index: the question's number in the data."""

    index: int
    place: str = ""
    prompt: str | list[dict[str, Any]] | None = None
    expected: tuple[str, ...] = ()
    answer: str | None = None
    scores: Mapping[str, float | None] = field(default_factory=dict)
    tokens: int | None = None
    choices: tuple[str, ...] = ()
    logprobs: tuple[float, ...] = ()
    failure: str | None = None
    by: Mapping[str, str] = field(default_factory=dict)

    def as_line(self) -> str:
        """The row as a line of JSON, without what does not apply."""
        return json.dumps(
            {key: value for key, value in asdict(self).items() if value not in (None, (), {})},
            ensure_ascii=False,
        )

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "Answered":
        """What `as_line` wrote."""
        texts = {key: tuple(row.get(key, ())) for key in ("expected", "choices", "logprobs")}
        return cls(**{**row, **texts})


@dataclass(frozen=True)
class Evaluated:
    """All rows, the measures by name, and those of each value of a column.

    measures: the mean of each score, null ones left out; `perplexity` in the place of `loss`. by:
    column, value, name.
    """

    rows: list[Answered]
    measures: dict[str, Measure]
    by: dict[str, dict[str, dict[str, Measure]]] = field(default_factory=dict)

    @property
    def answers(self) -> list[str | None]:
        """The answers in the order of the questions."""
        return [row.answer for row in self.rows]

    def scores(self, name: str) -> list[float | None]:
        """One score of each row; None where it does not apply."""
        return [row.scores.get(name) for row in self.rows]

    @property
    def failures(self) -> int:
        """Rows that could not be scored."""
        return sum(row.failure is not None for row in self.rows)

    def as_json(self) -> dict[str, Any]:
        """The measures as plain values."""
        found: dict[str, Any] = {"count": len(self.rows), "failures": self.failures}
        found["measures"] = _plain(self.measures)
        if self.by:
            found["by"] = {
                column: {value: _plain(measures) for value, measures in groups.items()}
                for column, groups in self.by.items()
            }
        return found


def summarise(rows: Sequence[Answered]) -> Evaluated:
    """The measures of the rows, and of the rows of each value of the columns in `by`."""
    groups: dict[str, dict[str, list[Answered]]] = {}
    for row in rows:
        for column, value in row.by.items():
            groups.setdefault(column, {}).setdefault(value, []).append(row)
    by = {
        column: {value: measures_of(chosen) for value, chosen in values.items()}
        for column, values in groups.items()
    }
    return Evaluated(list(rows), measures_of(rows), by)


def measures_of(rows: Sequence[Answered]) -> dict[str, Measure]:
    """The mean of each score with its interval, and the perplexity."""
    names = dict.fromkeys(name for row in rows for name in row.scores)
    found: dict[str, Measure] = {}
    for name in names:
        known = [row for row in rows if row.scores.get(name) is not None]
        if name == LOSS:
            found[PERPLEXITY] = perplexity(
                [(row.scores[LOSS] or 0.0, row.tokens or 0) for row in known]
            )
        elif known:
            found[name] = bootstrap([row.scores[name] or 0.0 for row in known])
    return found


def perplexity(losses: Sequence[tuple[float, int]]) -> Measure:
    """exp of the mean loss of all tokens, from (nats per token, tokens) of each sample; samples are
    drawn for the interval.
    """
    table = np.array([[loss * tokens, tokens] for loss, tokens in losses], dtype=np.float64)
    return bootstrap_of(table, lambda means: np.exp(means[..., 0] / means[..., 1]))


def _plain(measures: Mapping[str, Measure]) -> dict[str, Any]:
    """JSON has no infinity: a number that is not finite is null."""
    return {
        name: {
            key: value if math.isfinite(value) else None for key, value in asdict(measure).items()
        }
        for name, measure in measures.items()
    }
