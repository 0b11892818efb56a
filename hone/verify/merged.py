"""The check `merged`: an adapter folded into its base says what it says beside it."""

import torch

from hone.models import read_weights, relative_distance
from hone.quantisation import read_quantisation
from hone.recipe.training import Full
from hone.sampling import base_of_adapter
from hone.stages.start import merge
from hone.verify.distances import compute_logits, texts_of
from hone.verify.plain_load import load_plainly
from hone.verify.subject import StageResult, Subject
from hone.verify.verdicts import Found, Part, join_parts, not_applicable, status_of

HOW = "logits of the weights with the adapter merged in fp32 against those with it beside them"


def check_merged(subject: Subject) -> Found:
    """For each adapter: logits of the weights with it merged, as Hone merges for a further stage,
    against those of transformers and PEFT with the adapter beside the weights.
    """
    return join_parts([compare_merged(subject, stage) for stage in subject.stages])


def compare_merged(subject: Subject, stage: StageResult) -> Part:
    """The distance of the logits, relative to their spread. Both are computed in fp32."""
    if isinstance(stage.settings.trains, Full):
        return not_applicable(stage.name, "whole weights are trained: there is nothing to merge")
    base = base_of_adapter(stage.model)
    assert base is not None, "the recipe trains an adapter"
    subject.release()
    texts = texts_of(subject.material(stage))
    beside = load_plainly(stage.model, subject.device, subject.trust.remote_code)
    expected = compute_logits(beside, texts)
    del beside
    weights = read_weights(base, torch.float32, subject.trust).to(subject.device)
    merged = merge(weights, stage.model, subject.trust).eval()
    distance = relative_distance(compute_logits(merged, texts), expected)
    limit = subject.settings.thresholds.merged
    told = [] if distance <= limit else ["merged, it says something else"]
    if bits := read_quantisation(stage.model):
        told.append(
            f"compared beside and in the base's own weights, not those packed to {bits} bits that "
            "it was trained beside"
        )
    passed = status_of(distance <= limit)
    return Part(stage.name, passed, distance, limit, len(texts), "; ".join(told))
