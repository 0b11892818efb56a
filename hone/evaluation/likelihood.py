"""How likely given texts are: log-probabilities of tokens, as training computes them.

Called by `evaluate.py`. Texts are rendered as the model was trained and computed by the engine,
several in a batch; sides of one question share its prompt. Which texts are computed together is a
function of the texts alone.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import accumulate

import numpy as np
import torch

from hone.attention import FOREST, attention_set
from hone.data.chat import Tokens
from hone.data.formats import Example, PromptCompletion
from hone.data.rows import RowError
from hone.data.trees import make_tree, shared_length
from hone.evaluation.examples import Question, placed
from hone.forest import count_step, plan_micro_batches
from hone.groups import evaluation_mode
from hone.models import LARGEST_BUDGET, LanguageModel
from hone.records import Sample, Segment
from hone.sampling import Artifact
from hone.signals import check_stop


def tokens_of(artifact: Artifact, example: Example) -> list[Tokens]:
    """The tokens of an example: one sample, or one for each trained turn where the template shows
    earlier turns otherwise later. Two texts are rendered as the model was trained.
    """
    if isinstance(example, PromptCompletion):
        ids, trained = artifact.tokens(example.prompt, example.completion)
        return [Tokens(ids, trained, 0)]
    return artifact.renderer.samples(example)


def losses(artifact: Artifact, questions: Sequence[Question]) -> list[tuple[float, int]]:
    """(negative log-probability in nats, tokens) of what a stage would train of each question."""
    samples: list[Sample] = []
    owners: list[int] = []
    for n, question in enumerate(questions):
        assert question.trained is not None, "checked by whoever asks"
        with placed(question):
            found = tokens_of(artifact, question.trained)
            if not any(tokens.trained.any() for tokens in found):
                raise RowError("it has no token that something stands before")
        for tokens in found:
            samples.append(Sample(len(samples), (Segment(tokens.ids, tokens.trained),)))
            owners.append(n)
    sums, counts = np.zeros(len(questions)), np.zeros(len(questions), dtype=np.int64)
    for owner, segments in zip(owners, logprobs_of(artifact.model, samples), strict=True):
        for values in segments:
            sums[owner] -= values.sum()
            counts[owner] += len(values)
    return list(zip(sums.tolist(), counts.tolist(), strict=True))


def side_logprobs(artifact: Artifact, questions: Sequence[Question]) -> list[list[float]]:
    """The log-probability of each side of each question, in nats.

    Choices are compared without the token that ends an answer, as is usual in the field; the two
    answers of a pair are whole, with their ends.
    """
    samples: list[Sample] = []
    for question in questions:
        with placed(question):
            sides = [_side(artifact, question, side) for side in question.sides]
            if not shared_length(sides):
                raise RowError("no token of the prompt stands before the answers")
        samples.append(_tree(sides, len(samples)))
    found = logprobs_of(artifact.model, samples)
    return [[float(values.sum()) for values in sides] for sides in found]


def logprobs_of(model: LanguageModel, samples: Sequence[Sample]) -> list[list[np.ndarray]]:
    """The log-probabilities (fp64) of the trained tokens of each sample, one array for each segment
    that has trained tokens, in order.
    """
    found: list[list[np.ndarray]] = [[] for _ in samples]
    budget, padded = LARGEST_BUDGET[model.device.type], model.layout != "forest"
    # Texts of like length are computed together, which padding is thankful for.
    order = sorted(range(len(samples)), key=lambda n: (samples[n].num_tokens, n))
    chosen = [samples[n] for n in order]
    plan = plan_micro_batches(chosen, budget, padded=padded, alone=model.layout == "alone")
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(evaluation_mode(model.module))
        if not padded:
            stack.enter_context(attention_set(model.causal, FOREST))
        for part in plan:
            check_stop()
            for n, values in zip(part, _compute(model, [chosen[n] for n in part]), strict=True):
                found[order[n]] = values
    return found


def _compute(model: LanguageModel, samples: list[Sample]) -> list[list[np.ndarray]]:
    """The same of one micro-batch."""
    batch = model.make_batch(samples, counts=count_step(samples), indices=range(len(samples)))
    with model.laid_out(batch):
        logprobs = model.logprobs(batch).double().cpu().numpy()
    owners, segments = batch.samples_P.cpu().numpy(), batch.segments_P.cpu().numpy()
    return [
        [
            logprobs[(owners == n) & (segments == segment)]
            for segment in np.unique(segments[owners == n])
        ]
        for n in range(len(samples))
    ]


def _side(artifact: Artifact, question: Question, side: Example) -> Tokens:
    (*_, tokens) = tokens_of(artifact, side)
    if question.pair:
        return tokens
    last = np.flatnonzero(tokens.trained)[-1:]
    if len(last) and tokens.ids[last[0]] in artifact.rendering.end_token_ids:
        tokens.trained[last] = False
    if not tokens.trained.any():
        raise RowError("a choice has no token of its own")
    return tokens


def _tree(sides: list[Tokens], index: int) -> Sample:
    """The sides on the prompt they share."""
    tree = make_tree(sides)
    ends = list(accumulate(tree.segments))
    parts = [slice(end - length, end) for end, length in zip(ends, tree.segments, strict=True)]
    segments = [
        Segment(tree.tokens.ids[part], tree.tokens.trained[part], -1 if n == 0 else 0)
        for n, part in enumerate(parts)
    ]
    return Sample(index, tuple(segments))
