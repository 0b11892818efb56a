"""Scores and their intervals."""

import pytest

from hone.evaluate import is_exact, score_by_kind, wilson

pytestmark = pytest.mark.quick


def test_the_interval_is_the_one_in_the_textbook() -> None:
    score = wilson(8, 10)  # Brown, Cai & DasGupta 2001, section 3
    assert (score.low, score.high) == (
        pytest.approx(0.4902, abs=1e-4),
        pytest.approx(0.9433, abs=1e-4),
    )
    assert wilson(0, 10).low == 0.0 and wilson(10, 10).high == pytest.approx(1.0)


def test_scores_by_kind_and_of_all() -> None:
    rows = [{"kind": kind, "answer": "1"} for kind in ("a", "a", "b")]
    scores = score_by_kind(rows, ["1", "2", " 1\n"])
    assert {kind: (s.correct, s.total) for kind, s in scores.items()} == {
        "a": (1, 2),
        "b": (1, 1),
        "all": (2, 3),
    }


def test_exact_means_exact() -> None:
    assert is_exact(" Paris\n", "Paris")
    assert not is_exact("Paris.", "Paris")
    assert not is_exact("paris", "Paris")
