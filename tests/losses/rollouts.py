"""Groups of completions as the policy losses get them, and their plain log-probabilities."""

from dataclasses import replace

import numpy as np
import torch

from hone.device import Precision
from hone.forest import count_step, plan_micro_batches
from hone.losses import LossFunction, LossOutput
from hone.losses.policy import PolicySettings
from hone.models import LanguageModel, join_model
from hone.records import Sample, Segment
from tests.tiny import random_segment

LENGTHS = [(5, (4, 9, 1)), (8, (6, 2, 7)), (3, (5, 5, 3, 8))]  # of prompts and completions
SPREAD = 0.5  # of old log-probabilities around the present ones: ratios from about 0.3 to 3


def random_groups(lengths=LENGTHS, seed: int = 1) -> list[Sample]:
    """Prompts with completions of random tokens, each with an advantage of its own."""
    draw = np.random.default_rng(seed)
    groups = []
    for n, (prompt, completions) in enumerate(lengths):
        segments = [random_segment(draw, prompt, -1, 0.0)]
        for length in completions:
            segment = random_segment(draw, length, 0, 1.0)
            advantage = np.full(length, draw.normal())
            segments.append(replace(segment, constants={"advantage": advantage}))
        groups.append(Sample(n, tuple(segments)))
    return groups


def separate(groups: list[Sample]) -> list[Sample]:
    """Each completion with a prompt of its own."""
    pairs = [(group.segments[0], one) for group in groups for one in group.segments[1:]]
    return [Sample(n, pair) for n, pair in enumerate(pairs)]


def plain_logprobs(module, prompt: Segment, completion: Segment, temperature: float):
    """(L,) from the model's own logits of prompt and completion alone; differentiable."""
    tokens = np.concatenate([prompt.tokens, completion.tokens]).astype(np.int64)
    ids = torch.from_numpy(tokens)
    logits = module(input_ids=ids[None]).logits[0, len(prompt.tokens) - 1 : -1] / temperature
    chosen = ids[len(prompt.tokens) :, None]
    return logits.log_softmax(-1).gather(1, chosen)[:, 0]


def with_past(groups: list[Sample], module, temperature: float, seed: int = 1) -> list[Sample]:
    """The groups with the constants `old` and `reference`: the present log-probabilities, moved at
    random.
    """
    draw = np.random.default_rng(seed)
    found = []
    for group in groups:
        prompt, *completions = group.segments
        moved = []
        for one in completions:
            with torch.no_grad():
                present = plain_logprobs(module, prompt, one, temperature).double().numpy()
            past = {
                name: present + draw.normal(scale=SPREAD, size=len(present))
                for name in ("old", "reference")
            }
            moved.append(replace(one, constants={**one.constants, **past}))
        found.append(Sample(group.index, (prompt, *moved)))
    return found


def clip(ratio, advantage: float, settings: PolicySettings):
    """The clipped term of one ratio, case by case."""
    if advantage >= 0:
        return advantage * ratio.clamp(max=settings.highest)
    return advantage * ratio.clamp(1 - settings.clip, settings.delta)


def by_hand(module, name: str, samples: list[Sample], settings: PolicySettings, temperature: float):
    """The loss of a step as the papers write it: loops over completions and tokens."""
    rows = [(s.segments[0], one) for s in samples for one in s.segments[1:]]
    num_tokens = sum(len(one.tokens) for _, one in rows)
    total = torch.zeros((), dtype=torch.float64)
    for prompt, one in rows:
        logprobs = plain_logprobs(module, prompt, one, temperature).double()
        old, reference = (torch.tensor(one.constants[key]) for key in ("old", "reference"))
        advantage, length = float(one.constants["advantage"][0]), len(one.tokens)
        logs = logprobs - old
        whole = {"gspo": (logs.sum() / length).exp(), "rloo": logs.sum().exp()}.get(name)
        gains = penalties = torch.zeros((), dtype=torch.float64)
        for t in range(length):
            ratio = logs[t].exp()
            if name == "cispo":
                weight = min(ratio.item(), settings.highest)
                gains = gains + weight * advantage * logprobs[t]
            elif name == "reinforce":
                gains = gains + advantage * logprobs[t]
            else:
                gains = gains + clip(ratio if whole is None else whole, advantage, settings)
            away = reference[t] - logprobs[t]
            penalties = penalties + settings.beta * ratio * (away.exp() - away - 1)
        term = penalties - gains
        if name in ("grpo", "gspo", "rloo"):
            total = total + term / length / len(rows)
        elif name == "reinforce":
            total = total + (penalties / length - gains) / len(rows)
        elif name == "dr_grpo":
            total = total + term / (len(rows) * settings.completion_tokens)
        else:
            total = total + term / num_tokens
    return total


def joined(module, temperature: float, inner=None) -> LanguageModel:
    """The engine's model at a temperature; inner: the model inside of an adapter's module."""
    dtype = next(module.parameters()).dtype
    model = join_model(inner or module, Precision(dtype, dtype, "for the test"))
    model.module = module
    model.head = replace(model.head, temperature=temperature)
    return model


def engine_step(
    model: LanguageModel, samples: list[Sample], loss: LossFunction, budget: int = 10_000
) -> LossOutput:
    """A step's loss and metrics, cut into micro-batches; its gradients are in the model."""
    counts = count_step(samples)
    total = torch.zeros((), dtype=torch.float64)
    metrics: dict[str, float] = {}
    for indices in plan_micro_batches(samples, budget, padded=model.layout != "forest"):
        batch = model.make_batch([samples[i] for i in indices], counts=counts, indices=indices)
        with model.laid_out(batch):
            scores = model.scores(batch, entropies=True)
            assert scores.entropies is not None
            carried = {**batch.constants, "entropy": scores.entropies}
            output = loss(scores.logprobs, replace(batch, constants=carried))
            output.total.backward()
        total += output.total.detach()
        for name, value in output.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + float(value)
    return LossOutput(total, metrics)
