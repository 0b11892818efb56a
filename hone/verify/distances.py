"""Texts that a stage knows, what a model says at their places, and how far apart two models are.

Used by the checks that compare models of a run. Models answer by plain forwards of one text at a
time, in fp32. Shapes: L tokens of a text, P places of all texts, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from hone.forest import leaves, path_to
from hone.records import Sample
from hone.rollouts import Question
from hone.sampling import Artifact
from hone.stages.data import StageData
from hone.stages.tasks import Tasks

# What is held of a model at once stays under 160 MB with a vocabulary of 150,000.
TEXTS = 16
PLACES = 16  # of each text, spread over those that are trained
LONGEST = 512  # tokens; of a longer text the last ones, up to its last trained token


@dataclass(frozen=True)
class Text:
    """ids: (L,) token ids. places: where the next token is looked at."""

    ids: np.ndarray
    places: np.ndarray


def texts_of(material: StageData | Tasks) -> list[Text]:
    """Held-out texts of a stage, training ones where nothing is held out: paths through its samples
    with their trained places, or prompts with all of theirs.
    """
    if isinstance(material, Tasks):
        return [_text(question.ids, len(question.ids)) for question in questions_of(material)]
    view = material.held_out if len(material.held_out) else material.training
    found = (text for n in range(len(view)) for text in _paths(view[n]))
    return list(islice(found, TEXTS))


def answered_texts(tasks: Tasks, artifact: Artifact, tokens: int) -> list[Text]:
    """Prompts of a stage with the greedy answers of a model, which are what is looked at."""
    prompts = [question.ids for question in questions_of(tasks)]
    answers = artifact.generate(prompts, max_new_tokens=tokens)
    return [_text([*p, *a], len(a) + 1) for p, a in zip(prompts, answers, strict=True)]


def questions_of(tasks: Tasks) -> list[Question]:
    """Held-out questions of a stage, training ones where nothing is held out."""
    return (tasks.held_out.questions or tasks.questions)[:TEXTS]


def _text(ids: Sequence[int], looked_at: int) -> Text:
    """A text of which the last places are looked at, what comes behind the last token included."""
    kept = np.asarray(ids[-LONGEST:], dtype=np.int64)
    return Text(kept, _spread(np.arange(max(0, len(kept) - looked_at), len(kept))))


def _paths(sample: Sample) -> Iterator[Text]:
    """The paths of a sample that have a trained token behind another one."""
    for leaf in leaves(sample.segments):
        path = [sample.segments[n] for n in path_to(sample.segments, leaf)]
        ids = np.concatenate([segment.tokens for segment in path]).astype(np.int64)
        trained = np.flatnonzero(np.concatenate([segment.trained for segment in path])[1:])
        if len(trained):
            end = int(trained[-1]) + 1
            begin = max(0, end - LONGEST)
            yield Text(ids[begin:end], _spread(trained[trained >= begin] - begin))


def _spread(places: np.ndarray) -> np.ndarray:
    """At most `PLACES` of them, the first and the last included."""
    chosen = np.linspace(0, len(places) - 1, min(PLACES, len(places)))
    return places[chosen.round().astype(np.int64)]


@torch.no_grad()
def compute_logits(module: PreTrainedModel | PeftModel, texts: Sequence[Text]) -> torch.Tensor:
    """What a model says at the places of all texts, (P, V) on the CPU."""
    device = next(module.parameters()).device
    found = []
    for text in texts:
        ids = torch.from_numpy(text.ids).to(device)
        logits = module(input_ids=ids[None], use_cache=False).logits[0]
        found.append(logits[torch.from_numpy(text.places).to(device)].float().cpu())
    return torch.cat(found)


def compute_distance(first_PV: torch.Tensor, second_PV: torch.Tensor) -> float:
    """Distance of two models' logits in nats: the root of the mean over all places and tokens of
    (log p - log q)^2.

    It is a Euclidean distance. Where one has more tokens than the other (a stage may add some),
    those that both have count.
    """
    rows = min(first_PV.shape[1], second_PV.shape[1])
    first, second = (logits[:, :rows].log_softmax(-1) for logits in (first_PV, second_PV))
    return float((first - second).double().square().mean().sqrt())


def compute_spread(logits_PV: torch.Tensor) -> float:
    """How much log-probabilities differ from each other, in nats: their standard deviation."""
    return float(logits_PV.log_softmax(-1).double().std(correction=0))
