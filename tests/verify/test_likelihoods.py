"""What a model says of trained tokens, against a forward of one path at a time."""

import numpy as np
import pytest
import torch

from hone.device import Precision
from hone.models import LanguageModel, join_model
from hone.records import Sample, Segment
from hone.sampling import Artifact
from hone.verify.likelihoods import tabulate, tell
from tests.preferences import random_pairs
from tests.tiny import VOCABULARY, make_model, random_samples, random_trees

pytestmark = pytest.mark.quick


def load(name: str) -> LanguageModel:
    model = join_model(make_model(name), Precision(torch.float32, torch.float32, "for the test"))
    model.causal.set_attn_implementation("sdpa" if model.causal._supports_sdpa else "eager")
    return model


def artifact_of(model: LanguageModel) -> Artifact:
    return Artifact(model, renderer=None, rendering=None)  # type: ignore[arg-type]


def alone(model: LanguageModel, path: list[Segment]) -> tuple[list[float], list[bool]]:
    """Of the last segment of a path: log p of each trained token, and whether it is the likeliest;
    one token after the other from one forward without padding.
    """
    ids = [int(token) for segment in path for token in segment.tokens]
    with torch.no_grad():
        logits = model.module(input_ids=torch.tensor([ids])).logits[0].double()
    begin = len(ids) - len(path[-1].tokens)
    logprobs, right = [], []
    for place, trained in enumerate(path[-1].trained, start=begin):
        if trained and place > 0:
            before = logits[place - 1]
            logprobs.append(float(before[ids[place]] - before.logsumexp(0)))
            right.append(int(before.argmax()) == ids[place])
    return logprobs, right


def path_of(sample: Sample, index: int) -> list[Segment]:
    segment = sample.segments[index]
    return [*(path_of(sample, segment.parent) if segment.parent >= 0 else []), segment]


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "mamba"])
@pytest.mark.parametrize("samples", [random_samples(5), random_trees(3), random_pairs(4)])
def test_likelihoods_are_those_of_one_path_at_a_time(name: str, samples: list[Sample]) -> None:
    model = load(name)
    found = tell(artifact_of(model), samples)
    for sample, segments in zip(samples, found, strict=True):
        for index, told in enumerate(segments):
            logprobs, right = alone(model, path_of(sample, index))
            assert told.logprobs == pytest.approx(logprobs, abs=1e-4)
            assert told.likeliest.tolist() == right


def test_sums_are_over_the_trained_tokens_of_a_sample() -> None:
    model = load("llama")
    samples = random_pairs(3)
    table = tabulate(artifact_of(model), samples)
    for n, sample in enumerate(samples):
        sides = [alone(model, path_of(sample, index)) for index in (1, 2)]
        assert table.losses[n] == pytest.approx(-sum(sum(each) for each, _ in sides), abs=1e-3)
        assert table.right[n] == sum(sum(each) for _, each in sides)
        assert table.counts[n] == sum(len(each) for each, _ in sides)
    assert table.loss == pytest.approx(table.losses.sum() / table.counts.sum())
    assert 0 <= table.accuracy <= 1


def test_memory_is_bounded_whatever_is_asked() -> None:
    """Rows are computed in groups; how many at once makes no difference to the numbers."""
    model, samples = load("llama"), random_samples(12)
    seen: list[int] = []
    model.module.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    whole = tell(artifact_of(model), samples)
    assert len(seen) == 1 and seen.pop() > 200
    parts = tell(artifact_of(model), samples, logits_at_once=60 * VOCABULARY)
    assert len(seen) >= 4 and max(seen) <= 60
    for (mine,), (theirs,) in zip(parts, whole, strict=True):
        assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)


def test_long_rows_and_segments_without_targets_are_told() -> None:
    """More positions than are taken together; a prompt that trains nothing has none."""
    model = load("gpt2")
    tokens = np.arange(120, dtype=np.int32) % 90 + 3
    prompt = Segment(tokens[:2], np.zeros(2, dtype=bool))
    sample = Sample(0, (prompt, Segment(tokens[2:], np.ones(118, dtype=bool), 0)))
    (found,) = tell(artifact_of(model), [sample], positions_at_once=50)
    assert found[0].count == 0 and found[0].logprob == 0
    assert found[1].logprobs == pytest.approx(alone(model, path_of(sample, 1))[0], abs=1e-4)


def test_a_path_without_a_trained_token_is_told_nothing_of() -> None:
    (sample,) = random_pairs(1)
    silent = Segment(sample.segments[2].tokens, np.zeros(len(sample.segments[2].tokens), bool), 0)
    samples = [Sample(0, (*sample.segments[:2], silent))]
    ((_, _, told),) = tell(artifact_of(load("llama")), samples)
    assert told.count == 0 and told.logprob == 0
