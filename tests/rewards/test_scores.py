"""The weighted sum of rewards."""

import math

import pytest

from hone.rewards.scores import Score, Scores, total

pytestmark = pytest.mark.quick


def test_what_does_not_apply_is_left_out_of_the_sum() -> None:
    score = Score({"correct": 1.0, "format": 0.5, "judge": None})
    assert total(score, {"format": 0.2, "judge": 100.0}) == pytest.approx(1.1)
    assert total(score, {}) == 1.5
    assert math.isnan(total(Score({"judge": None}), {}))


def test_scores_are_a_list_with_metrics() -> None:
    scores = Scores([Score({"a": 1.0})], {"seen": [2.0]})
    assert list(scores) == [Score({"a": 1.0})]
    assert scores.metrics == {"seen": [2.0]}
    assert Scores([]).metrics == {}
