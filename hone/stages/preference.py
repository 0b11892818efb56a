"""The stage `dpo`: learn from pairs, or from single completions with a label.

The reference is the policy as the stage begins. Before step 1 its log-probabilities of all samples
that the plan visits are computed and kept (reference.py); afterwards they travel with the tokens.
"""

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import cast

import numpy as np

from hone.losses.preference import make_pair_loss
from hone.losses.unpaired import make_unpaired_loss
from hone.recipe.preference import LOSS_FACTS, Dpo
from hone.records import Sample
from hone.seeds import Indices
from hone.stages.data import SampleView, StageData
from hone.stages.mismatched import Mismatched, couple
from hone.stages.progress import StageProgress
from hone.stages.reference import REFERENCE, Reference
from hone.stages.supervised import SupervisedStage
from hone.training import EVALUATION, Training

Prepare = Callable[[Sequence[Sample], float], Sequence[Sample]]


class PreferenceStage(SupervisedStage):
    """A stage whose samples are compared with what the policy was."""

    @property
    def preference(self) -> Dpo:
        """The stage's settings."""
        return cast(Dpo, self.settings)

    def equip(self, training: Training, material: StageData, progress: StageProgress) -> None:
        settings = self.preference
        make_loss = make_unpaired_loss if settings.unpaired else make_pair_loss
        training.loss = make_loss(settings)
        training.samples_of = material.samples_of
        training.held_out = material.held_out
        progress.say(f"{self.title}: {describe_losses(settings)}")
        if settings.needs_reference:
            training.prepare = self.open_reference(training, material, progress)

    def open_reference(
        self, training: Training, material: StageData, progress: StageProgress
    ) -> Prepare:
        """Compute what is not there of the reference; returns what puts it onto samples."""
        visited = Visited(material)
        mixed = Mismatched(material) if self.preference.unpaired else None
        first, count = len(visited), len(visited) + (len(mixed) if mixed else 0)

        def sample_of(number: int) -> Sample:
            if mixed and number >= first:
                return mixed.sample(number - first)
            return visited.sample(number)

        reference = Reference(self.folder / REFERENCE, count, sample_of, describe_source(material))
        with progress.beside(f"{self.title} reference", count) as advance:
            reference.compute(training, advance)
        progress.say(
            f"{self.title}: reference: the policy as this stage begins, its log-probabilities of "
            f"{count:,} samples take {reference.size}"
        )

        def prepare(samples: Sequence[Sample], moment: float) -> Sequence[Sample]:
            step = None if moment % 1 == EVALUATION else int(moment)
            known = reference.put(samples, visited.numbers_of(samples, step))
            if mixed is None:
                return known
            numbers = mixed.numbers_of(step)
            others = [mixed.sample(number) for number in numbers]
            others = reference.put(others, [first + number for number in numbers])
            return couple(training, known, others, moment)

        return prepare


def describe_losses(settings: Dpo) -> str:
    """The losses with their papers and parameters, in one line."""
    words = []
    for name, weight in settings.losses.items():
        parameters = settings.parameters_of(name).items()
        told = "".join(f", {parameter} {value:g}" for parameter, value in parameters)
        times = f"{weight:g} x " if len(settings.losses) > 1 else ""
        words.append(f"{times}{name} ({LOSS_FACTS[name].paper}{told})")
    return f"loss {' + '.join(words)}"


def describe_source(material: StageData) -> str:
    """What the samples of a stage's plan are told from others by, as JSON: they follow from it and
    from what never changes in a run.
    """
    keys = [
        [each.key for each in part.prepared.sets] for part in (material.training, material.held_out)
    ]
    return json.dumps({"training": keys[0], "held_out": keys[1], "steps": material.total_steps})


class Visited:
    """Every sample that the plan of a stage visits, once: those of its steps, then the held-out
    ones.
    """

    def __init__(self, material: StageData) -> None:
        self.material = material

    @cached_property
    def training(self) -> SampleView:
        """The samples of all steps, by their index."""
        order, view = self.material.order, self.material.training
        steps = range(1, self.material.total_steps + 1)
        positions = [np.arange(0)] + [order.samples_of(step) for step in steps]
        indices: Indices = np.unique(view.indices[np.concatenate(positions)])
        return SampleView(view.prepared, indices)

    def numbers_of(self, samples: Sequence[Sample], step: int | None) -> Indices:
        """The numbers of a step's samples; None: of those held out."""
        if step is None:
            return len(self.training) + np.arange(len(samples))
        return np.searchsorted(self.training.indices, [sample.index for sample in samples])

    def __len__(self) -> int:
        return len(self.training) + len(self.material.held_out)

    def sample(self, number: int) -> Sample:
        """The sample with this number, from 0."""
        later = number - len(self.training)
        return self.material.held_out[later] if later >= 0 else self.training[number]
