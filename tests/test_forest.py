"""Laying samples out: positions, targets, spans and cuts."""

import numpy as np
import pytest

from hone.forest import Span, count_step, count_targets, make_batch, plan_micro_batches
from hone.records import Sample, Segment
from tests.tiny import random_samples, random_trees

pytestmark = pytest.mark.quick


def segment(tokens: list[int], trained: list[int], parent: int = -1) -> Segment:
    return Segment(np.array(tokens, dtype=np.int32), np.array(trained, dtype=bool), parent)


TREE = Sample(
    0,
    (
        segment([1, 2], [1, 0]),
        segment([3, 4], [1, 1], 0),
        segment([5], [1], 0),
        segment([6], [1], 1),
    ),
)


def test_the_first_token_of_each_completion_is_predicted_by_the_prompt() -> None:
    batch = make_batch([TREE], count_step([TREE]))
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2, 4]]
    assert batch.targets_P.tolist() == [3, 4, 5, 6]
    assert batch.sources_P.tolist() == [1, 2, 1, 3]
    assert batch.spans[3] == Span(5, 1, ((0, 2), (2, 2)), 4)


def test_the_very_first_token_is_no_target() -> None:
    assert sum(count_targets(TREE)) == 4  # five are trained, the first has nothing before it


def test_padded_rows_hold_each_path_and_train_shared_segments_once() -> None:
    batch = make_batch([TREE], count_step([TREE]), padded=True)
    assert batch.input_ids.tolist() == [[1, 2, 5, 0, 0], [1, 2, 3, 4, 6]]
    assert batch.attention_mask is not None
    assert batch.attention_mask.sum(1).tolist() == [3, 5]
    assert sorted(batch.targets_P.tolist()) == [3, 4, 5, 6]


def test_an_empty_prompt_and_an_empty_completion() -> None:
    sample = Sample(0, (segment([], []), segment([7, 8], [1, 1], 0), segment([], [], 0)))
    batch = make_batch([sample], count_step([sample]))
    assert batch.targets_P.tolist() == [8]
    assert len(batch.spans) == 1


def test_samples_keep_their_place_in_the_step() -> None:
    samples = random_trees(6)
    batch = make_batch(samples[2:4], count_step(samples), indices=[2, 3])
    assert set(batch.samples_P.tolist()) == {2, 3}
    assert batch.counts == count_step(samples)


@pytest.mark.parametrize("budget", [1, 20, 50, 10_000])
@pytest.mark.parametrize("padded", [False, True])
def test_cuts_hold_every_sample_once_and_keep_to_the_budget(budget: int, padded: bool) -> None:
    samples = random_samples(9) + random_trees(5)
    plan = plan_micro_batches(samples, budget, padded=padded)
    assert [index for part in plan for index in part] == list(range(len(samples)))
    for part in plan:
        batch = make_batch([samples[i] for i in part], count_step(samples), padded=padded)
        assert batch.input_ids.numel() <= budget or len(part) == 1


def test_alone_puts_every_sample_alone() -> None:
    assert plan_micro_batches(random_samples(3), 10_000, alone=True) == [[0], [1], [2]]
