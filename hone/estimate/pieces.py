"""The largest pieces of work of a stage: what is computed at once where it takes the most.

They follow from the stage's own data, the order of its steps and the token budget, as `cutting.py`
cuts them. A stage that samples is taken to draw every completion to its full length.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hone.forest import leaves, path_to, plan_micro_batches
from hone.recipe.policy import Grpo
from hone.recipe.preference import Dpo
from hone.recipe.training import TrainingStage
from hone.records import Sample, Segment
from hone.stages.data import StageData
from hone.stages.tasks import Tasks

MOST_STEPS = 256  # that are looked at one by one; beyond them the longest samples together
MOST_HELD_OUT = 4096  # samples, in the same way


@dataclass(frozen=True)
class Pieces:
    """step: the samples computed at once in the largest micro-batch of a step; several: whether a
    step has more than one. reference, held_out: those of passes without gradients, empty where
    there are none. longest: the sample that cannot be cut, alone. asked: the questions of a step
    with their completions, where it samples.
    """

    step: list[Sample]
    several: bool
    reference: list[Sample]
    held_out: list[Sample]
    longest: list[Sample]
    asked: list[Sample]


def tokens_at_once(samples: Sequence[Sample], layout: str) -> int:
    """Tokens of the row, or of all padded rows, that these samples are laid out in."""
    if layout == "forest":
        return sum(sample.num_tokens for sample in samples)
    lengths = [length for sample in samples for length in _paths(sample)]
    return len(lengths) * max(lengths, default=0)


def _paths(sample: Sample) -> list[int]:
    segments = sample.segments
    return [
        sum(len(segments[i].tokens) for i in path_to(segments, leaf)) for leaf in leaves(segments)
    ]


def find_pieces(
    material: StageData | Tasks, settings: TrainingStage, budget: int, layout: str, steps: int
) -> Pieces:
    """The largest pieces of the first `steps` steps."""
    looked_at = min(steps, MOST_STEPS)
    if isinstance(material, Tasks):
        assert isinstance(settings, Grpo), "only a policy stage has tasks"
        numbers = range(1, looked_at + 1)
        batches = [_answered(material, settings, step) for step in numbers]
        reference = batches if settings.beta else []
        held_out: list[Sample] = []
    else:
        batches = [material.samples_of(step) for step in range(1, looked_at + 1)]
        needs = isinstance(settings, Dpo) and settings.needs_reference
        reference = batches if needs else []
        held_out = [material.held_out[n] for n in range(min(len(material.held_out), MOST_HELD_OUT))]
    steps_cut = [_cut(samples, budget, layout) for samples in batches]
    parts = [part for cut in steps_cut for part in cut]

    def largest(found: Iterable[list[Sample]]) -> list[Sample]:
        return max(found, key=lambda part: (tokens_at_once(part, layout), len(part)), default=[])

    longest = max((sample for part in parts for sample in part), key=lambda each: each.num_tokens)
    everything = [sample for samples in reference for sample in samples]
    return Pieces(
        step=largest(parts),
        several=any(len(cut) > 1 for cut in steps_cut),
        reference=largest(_cut(everything, budget, layout)),
        held_out=largest(_cut(held_out, budget, layout)),
        longest=[longest],
        asked=batches[0] if isinstance(material, Tasks) else [],
    )


def _cut(samples: Sequence[Sample], budget: int, layout: str) -> list[list[Sample]]:
    plan = plan_micro_batches(samples, budget, padded=layout != "forest", alone=layout == "alone")
    return [[samples[n] for n in indices] for indices in plan]


def _answered(tasks: Tasks, settings: Grpo, step: int) -> list[Sample]:
    """The questions of a step, each with a whole group of completions of full length."""
    length = settings.completion_tokens
    completion = Segment(np.zeros(length, dtype=np.int32), np.ones(length, dtype=bool), 0)
    return [
        Sample(
            question.task.index,
            (
                Segment(np.array(question.ids, dtype=np.int32), np.zeros(len(question.ids), bool)),
                *[completion] * settings.group,
            ),
        )
        for question in tasks.questions_of(step)
    ]


def alone(pieces: Pieces) -> Pieces:
    """The same work cut as small as it can be."""
    longest = pieces.longest
    return replace(
        pieces,
        step=longest,
        several=True,
        reference=longest if pieces.reference else [],
        held_out=longest if pieces.held_out else [],
    )


def shortened(pieces: Pieces, tokens: int) -> Pieces:
    """The same work with paths of at most `tokens` tokens: what comes after them is left out."""
    (sample,) = pieces.longest
    segments: list[Segment] = []
    for n, segment in enumerate(sample.segments):
        before = sum(len(segments[i].tokens) for i in path_to(sample.segments, n)[:-1])
        kept = max(0, tokens - before)
        segments.append(Segment(segment.tokens[:kept], segment.trained[:kept], segment.parent))
    return replace(pieces, longest=[Sample(sample.index, tuple(segments))])
