"""The check `stages`: each stage has changed what the model says, and keeps what the one before it
taught.
"""

from collections.abc import Callable, Sequence

import torch

from hone.models import PROBE_LIMIT
from hone.sampling import Artifact
from hone.stages.tasks import Tasks
from hone.verify.distances import (
    Text,
    answered_texts,
    compute_distance,
    compute_logits,
    compute_spread,
    texts_of,
)
from hone.verify.subject import StageResult, Subject
from hone.verify.verdicts import Found, NotApplicableError, Part, join_parts, status_of

HOW = (
    "distances of log-probabilities over the whole vocabulary between each result, the one "
    "before it and where that one started, on held-out texts of the stage before"
)

KEPT = 0.5  # from here on a result is nearer to the one before than to where that one started
NOISE = PROBE_LIMIT[torch.float32]  # what two ways of computing the same may differ by


def check_stages(subject: Subject) -> Found:
    """For each stage after the first: distances of its result, of the one before, and of where that
    one started, on held-out texts of the stage before.
    """
    if len(subject.stages) < 2:
        raise NotApplicableError("the run has one stage: there is none that it could have lost")
    return join_parts([examine_pair(subject, stage) for stage in subject.stages[1:]])


def examine_pair(subject: Subject, stage: StageResult) -> Part:
    """What of the stage before is left after this one.

    With d the distance of `compute_distance`, b the start of the stage before, p its result and r
    this result, (d(b, p)^2 + d(b, r)^2 - d(p, r)^2) / (2 d(b, p)^2) is the share of the way from b
    to p that r has gone (law of cosines): 1 where this stage moved at a right angle to it, 0 where
    r is made of b without the stage before. It is above 0.5 exactly where d(p, r) < d(b, r).
    """
    before = subject.stages[stage.index - 1]
    texts = known_texts(subject, before)
    began = said_alone(subject, lambda: subject.start(before), texts)
    taught = said_alone(subject, lambda: subject.result(before), texts)
    result = said_alone(subject, lambda: subject.result(stage), texts)
    noise = NOISE * compute_spread(taught)
    way, moved, whole = (
        compute_distance(*pair) for pair in ((began, taught), (taught, result), (began, result))
    )
    details = {
        f"{before.name} from its start": way,
        f"{stage.name} from {before.name}": moved,
        f"{stage.name} from the start of {before.name}": whole,
        "noise": noise,
    }
    reason = ""
    kept = (way**2 + whole**2 - moved**2) / (2 * way**2) if way > 0 else 0.0
    if not way > noise:
        reason = f"{before.name} changed nothing: {way:.1e} nats from its start"
    elif not moved > noise:
        reason = f"{stage.name} changed nothing: {moved:.1e} nats from {before.name}"
    elif not kept > KEPT:
        reason = (
            f"{stage.name} is nearer to the start of {before.name} ({whole:.3g} nats) than to what "
            f"{before.name} made of it ({moved:.3g})"
        )
    return Part(stage.name, status_of(not reason), kept, KEPT, len(texts), reason, details)


def said_alone(
    subject: Subject, load: Callable[[], Artifact], texts: Sequence[Text]
) -> torch.Tensor:
    """Logits (P, V) of a model that is the only one in memory while it is asked."""
    subject.release()
    return compute_logits(load().module, texts)


def known_texts(subject: Subject, stage: StageResult) -> list[Text]:
    """Texts of what a stage taught; where it has tasks, with its result's own greedy answers."""
    material = subject.material(stage)
    if isinstance(material, Tasks):
        tokens = subject.settings.completion_tokens
        return answered_texts(material, subject.result(stage), tokens)
    return texts_of(material)
