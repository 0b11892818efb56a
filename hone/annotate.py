"""Log-probabilities of samples, put onto their tokens as constants of the loss.

The reference of a preference loss is this with the weights at the start of the stage. Called by the
stages; cut into micro-batches like a step, without gradients and without dropout.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from hone.cutting import plan_step
from hone.forest import count_step
from hone.records import Sample
from hone.signals import check_stop
from hone.training import Training


@torch.no_grad()
def annotate(
    training: Training, samples: Sequence[Sample], moment: float, name: str
) -> list[Sample]:
    """The samples with the log-probability of each trained token under the model as it is now, as
    the constant `name`; 0 at tokens that are not trained. Call inside `cutting.in_memory`.
    """
    model = training.model
    model.module.eval()
    found: list[Sample] = []
    for indices in plan_step(training, samples, moment):
        check_stop()
        training.at_work = part = [samples[i] for i in indices]
        batch = model.make_batch(part, counts=count_step(part))
        with model.laid_out(batch):
            logprobs = model.logprobs(batch).double().cpu().numpy()
        owners = batch.samples_P.cpu().numpy(), batch.segments_P.cpu().numpy()
        found += [
            _with_constant(sample, name, logprobs[owners[0] == n], owners[1][owners[0] == n])
            for n, sample in enumerate(part)
        ]
    return found


def _with_constant(sample: Sample, name: str, values: np.ndarray, segments: np.ndarray) -> Sample:
    """The values lie in the order of the sample's targets, those of one segment together."""
    annotated = []
    for n, segment in enumerate(sample.segments):
        mine = values[segments == n]
        column = np.zeros(len(segment.tokens))
        places = np.flatnonzero(segment.trained)
        column[places[len(places) - len(mine) :]] = mine  # the first token of all has no value
        annotated.append(replace(segment, constants={**segment.constants, name: column}))
    return replace(sample, segments=tuple(annotated))
