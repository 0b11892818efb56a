"""What couples the samples of a step in KTO: the reference point, from prompts with the completions
of other samples.

Called by `preference.py`. Each sample of a step lends its prompt to the completion of the one that
follows, the last to the first. How much likelier the policy makes these than the reference does, in
the mean over the step and at least 0, estimates how far the policy is from it (arXiv:2402.01306,
section 4). No gradient goes through it.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from hone.annotate import annotate
from hone.records import Sample
from hone.stages.data import StageData
from hone.stages.reference import REFERENCE
from hone.training import Training

POLICY = "policy"


class Mismatched:
    """The mismatched samples of all steps, those of step 1 first; then those held out."""

    def __init__(self, material: StageData) -> None:
        self.material = material
        steps = range(1, material.total_steps + 1)
        sizes = [len(material.order.samples_of(step)) for step in steps]
        self.starts = np.cumsum([0, *sizes, len(material.held_out)])
        self.of_step = lru_cache(maxsize=1)(self._of_step)

    def numbers_of(self, step: int | None) -> range:
        """The numbers of a step's mismatched samples; None: of those held out."""
        place = len(self.starts) - 2 if step is None else step - 1
        return range(int(self.starts[place]), int(self.starts[place + 1]))

    def __len__(self) -> int:
        return int(self.starts[-1])

    def sample(self, number: int) -> Sample:
        """The mismatched sample with this number, from 0."""
        step = int(np.searchsorted(self.starts, number, side="right"))
        return self.of_step(step)[number - int(self.starts[step - 1])]

    def _of_step(self, step: int) -> list[Sample]:
        """Of step 1, 2, ..., or after the last one of what is held out."""
        material = self.material
        held_out = step > material.total_steps
        samples = list(material.held_out) if held_out else material.samples_of(step)
        return mismatch(samples, material.settings.max_tokens)


def mismatch(samples: Sequence[Sample], max_tokens: int) -> list[Sample]:
    """Each sample's prompt with the completion of the next one, cut to `max_tokens`."""
    following = [*samples[1:], *samples[:1]]
    mixed = []
    for sample, other in zip(samples, following, strict=True):
        prompt, completion = sample.segments[0], other.segments[1]
        room = max(1, max_tokens - len(prompt.tokens))
        cut = replace(
            completion,
            tokens=completion.tokens[:room],
            trained=completion.trained[:room],
            constants={name: each[:room] for name, each in completion.constants.items()},
        )
        mixed.append(Sample(sample.index, (prompt, cut)))
    return mixed


def couple(
    training: Training, samples: Sequence[Sample], mixed: Sequence[Sample], moment: float
) -> list[Sample]:
    """The samples of a whole step with what its loss needs: the reference point ("divergence"), and
    how many of the step have the same label ("same").

    mixed: the mismatched samples, with the constant "reference". A single sample has no other one's
    completion, and the reference point is 0.
    """
    divergence = 0.0
    if len(samples) > 1:
        judged = annotate(training, mixed, moment, POLICY)
        gains = [_sum(sample, POLICY) - _sum(sample, REFERENCE) for sample in judged]
        divergence = max(0.0, float(np.mean(gains)))
    desirable = [bool(np.any(sample.segments[1].constants["label"])) for sample in samples]
    return [
        _with(sample, divergence=divergence, same=desirable.count(mine))
        for sample, mine in zip(samples, desirable, strict=True)
    ]


def _sum(sample: Sample, name: str) -> float:
    return float(sample.segments[1].constants[name].sum())


def _with(sample: Sample, **numbers: float) -> Sample:
    """The sample with these numbers on every token of its completion."""
    prompt, completion = sample.segments
    filled = {name: np.full(len(completion.tokens), value) for name, value in numbers.items()}
    carried = replace(completion, constants={**completion.constants, **filled})
    return replace(sample, segments=(prompt, carried))
