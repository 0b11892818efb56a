"""Differences of rows and of means, beside a second computation."""

import numpy as np
import pytest

from hone.evaluation.answered import Answered, summarise
from hone.intervals import bootstrap
from hone.side_by_side.paired import is_better, pair, paired_score

pytestmark = pytest.mark.quick


def rows(values: list[float | None], score: str = "f1") -> list[Answered]:
    return [
        Answered(n, f"a:{n}", f"q {n}", ("x",), f"answer {value}", {score: value}, tokens=3)
        for n, value in enumerate(values)
    ]


def test_the_interval_is_that_of_the_differences_row_by_row() -> None:
    draw = np.random.default_rng(0)
    hard = draw.normal(0, 10, 40)  # what makes a question hard for both
    first, second = hard.tolist(), (hard + draw.normal(0.5, 0.1, 40)).tolist()
    found = paired_score(first, second)
    assert found is not None
    assert found.first == pytest.approx(np.mean(first))
    assert found.second == pytest.approx(np.mean(second))
    assert found.difference == bootstrap([b - a for a, b in zip(first, second, strict=True)])
    assert found.difference.mean == pytest.approx(found.second - found.first)
    assert found.difference.high - found.difference.low < 0.1
    assert bootstrap(first).high - bootstrap(first).low > 3


def test_rows_without_a_score_do_not_count() -> None:
    found = paired_score([1.0, None, 0.0], [1.0, 1.0, None])
    assert found is not None
    assert found.difference.count == 1
    assert paired_score([None], [1.0]) is None


def test_what_became_better_and_worse_is_sorted_by_how_much() -> None:
    first, second = rows([0.5, 0.5, 0.5, 0.5, None]), rows([0.6, 1.0, 0.5, 0.1, 1.0])
    found = pair("a", summarise(first), summarise(second))
    assert [row.question.index for row in found.better] == [1, 0]
    assert [row.question.index for row in found.worse] == [3]
    assert [row.question.index for row in found.even] == [2, 4]
    written = found.as_json()
    assert [row["place"] for row in written["rows"]] == ["a:1", "a:0", "a:2", "a:4", "a:3"]
    assert (written["better"], written["worse"], written["count"]) == (2, 1, 5)


def test_of_a_loss_less_is_better() -> None:
    found = pair("a", summarise(rows([2.0], "loss")), summarise(rows([1.5], "loss")))
    assert found.better[0].gain == 0.5
    assert found.scores["loss"].difference.mean == -0.5
    assert is_better("loss", found.scores["loss"].difference) is True
    assert is_better("f1", found.scores["loss"].difference) is False


def test_no_difference_is_neither_better_nor_worse() -> None:
    same = summarise(rows([0.2, 0.9]))
    found = pair("a", same, same)
    assert (found.better, found.worse) == ([], [])
    assert is_better("f1", found.scores["f1"].difference) is None


def test_losses_of_other_tokenizers_are_per_token_of_the_first() -> None:
    """12 nats of one text: 6 tokens of 2 nats, and 4 tokens of 3."""
    first = Answered(0, scores={"loss": 2.0}, tokens=6)
    second = Answered(0, scores={"loss": 3.0}, tokens=4)
    found = pair("a", summarise([first]), summarise([second]))
    assert found.scores["loss"].difference.mean == 0
    assert found.rows[0].gain == 0
    assert "tokenizers differ" in found.remark
