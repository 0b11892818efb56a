"""What the checks are made on: samples of different lengths, trees of their parts, own rows."""

import json
from pathlib import Path

import numpy as np
import pytest

from hone.data.chat import Renderer
from hone.doctor.numerics import unfold
from hone.doctor.samples import (
    NUM_SAMPLES,
    SHORTEST,
    built_in_examples,
    make_samples,
    make_trees,
    read_examples,
)
from hone.errors import UserError
from hone.forest import count_step
from tests.data.tokenizers import CHATML, shared

pytestmark = pytest.mark.quick


def renderer() -> Renderer:
    return Renderer(shared("byte_level"), CHATML)


@pytest.mark.parametrize("longest", [SHORTEST, 64, 256])
def test_samples_fit_and_differ_in_length(longest: int) -> None:
    """Otherwise there would be no padding to compare."""
    samples = make_samples(built_in_examples(), renderer(), longest, 300, seed=0)
    lengths = [sample.num_tokens for sample in samples]
    assert len(samples) == NUM_SAMPLES
    assert max(lengths) <= longest
    assert len(set(lengths)) > 3
    assert all(count_step([sample]).trained_tokens for sample in samples)


def test_without_examples_there_are_random_tokens() -> None:
    samples = make_samples([], renderer(), 32, 300, seed=0)
    again = make_samples([], renderer(), 32, 300, seed=0)
    other = make_samples([], renderer(), 32, 300, seed=1)
    tokens = [np.concatenate([s.segments[0].tokens for s in g]) for g in (samples, again, other)]
    assert np.array_equal(tokens[0], tokens[1])
    assert not np.array_equal(tokens[0], tokens[2])


def test_trees_and_their_paths_train_the_same_tokens() -> None:
    samples = make_samples(built_in_examples(), renderer(), 64, 300, seed=0)
    trees = make_trees(samples)
    paths = unfold(trees)
    assert [len(tree.segments) for tree in trees] == [4, 4]
    assert count_step(trees).trained_tokens == count_step(paths).trained_tokens
    assert paths[0].segments[0].tokens.tolist() == samples[0].segments[0].tokens.tolist()


def test_bad_rows_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": 5}\nnothing\n' + json.dumps({"text": "Lima"}) + "\n")
    (example,) = read_examples(str(path))
    assert example.text == "Lima"
    path.write_text('{"text": 5}\n')
    with pytest.raises(UserError, match="no row of"):
        read_examples(str(path))
