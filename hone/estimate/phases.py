"""The bytes of each phase of a stage, computed by running the engine on tensors without numbers.

`trace` is the one memory model: forward, backward and update of the largest micro-batch, passes
without gradients, a token of every sequence that is drawn. Kinds of tensors are told apart by who
holds them. Called by `examine.py`.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import nn

from hone.adapters import cast_once
from hone.attention import attend_by
from hone.choosing import SamplingSettings, choose
from hone.decoding import LENGTH_MULTIPLE, KeyValues, NextTokens, Places
from hone.estimate.pieces import Pieces
from hone.estimate.shadow import faked
from hone.estimate.storages import Storages
from hone.forest import count_step
from hone.logprobs import compute_logits, compute_scores
from hone.models import LanguageModel
from hone.recipe.policy import Grpo
from hone.recipe.training import (
    AdamW,
    AdamW8bit,
    LowRank,
    Optimizer,
    QLora,
    TrainingStage,
)
from hone.records import Sample
from hone.sampler import filled_up

# bitsandbytes: numbers that share a scale; those of smaller tensors stay in 32 bits.
STATE_BLOCK, SMALLEST_8BIT = 256, 4096
# For each number of the largest tensor, what an update takes besides, measured (docs/memory.md):
# both means unpacked with their new codes; two copies of the update.
UPDATE_BYTES = {"adamw": 0, "adamw_8bit": 20, "sgd": 0, "adafactor": 8}


@dataclass(frozen=True)
class Phase:
    """Bytes of a phase: what stands there all the time, and the most that comes and goes."""

    standing: int
    transient: int


@dataclass
class Parts:
    """Bytes by what holds them, and phases.

    activations: of the largest micro-batch, kept for the way back; projection: logits computed at
    once, and what is computed of them. keys_and_values: of all that is drawn together. reference: a
    frozen copy of what is trained. whole_forward: the most of a forward that keeps all for the way
    back; recomputes: this one does not. between: blocks as large as weights come and go in it.
    """

    weights: int = 0
    adapter: int = 0
    optimizer: int = 0
    gradients: int = 0
    activations: int = 0
    projection: int = 0
    keys_and_values: int = 0
    reference: int = 0
    whole_forward: int = 0
    recomputes: bool = False
    between: bool = False
    phases: dict[str, Phase] = field(default_factory=dict)


def trained_bytes(model: LanguageModel) -> int:
    """Bytes of all that is trained."""
    return sum(parameter.nbytes for _, parameter in model.trainable())


def state_bytes(parameters: Sequence[nn.Parameter], settings: Optimizer) -> int:
    """Bytes of the optimizer's state after its first step."""
    if isinstance(settings, AdamW):
        return sum(8 * parameter.numel() + 4 for parameter in parameters)
    if isinstance(settings, AdamW8bit):
        return sum(_state_8bit(parameter.numel()) for parameter in parameters)
    if settings.type == "adafactor":
        return sum(_factored(parameter) for parameter in parameters)
    momentum = getattr(settings, "momentum", 0.0)
    return sum(4 * parameter.numel() for parameter in parameters) if momentum else 0


def _state_8bit(count: int) -> int:
    if count < SMALLEST_8BIT:
        return 8 * count
    return 2 * (count + 4 * -(-count // STATE_BLOCK))


def _factored(parameter: nn.Parameter) -> int:
    if parameter.ndim < 2:
        return 4 * parameter.numel()
    rows = parameter.numel() // parameter.shape[-1]
    columns = parameter.numel() // parameter.shape[-2]
    return 4 * (rows + columns)


def trace(
    storages: Storages, model: LanguageModel, settings: TrainingStage, pieces: Pieces
) -> Parts:
    """Parts and phases of a stage with these largest pieces; call inside `storages.counted`."""
    trained = [parameter for _, parameter in model.trainable()]
    found = Parts(
        optimizer=state_bytes(trained, settings.optimizer), gradients=trained_bytes(model)
    )
    everything = sum(each.nbytes for each in _tensors(model.module))
    full = all(parameter.requires_grad for parameter in model.module.parameters())
    found.adapter = 0 if full else found.gradients
    found.weights = everything - found.adapter
    if isinstance(settings, Grpo) and settings.beta:
        found.reference = found.gradients
    standing = everything + found.reference
    phases = found.phases
    if pieces.reference:
        phases["reference"] = Phase(standing, without_gradients(storages, model, pieces.reference))
    standing += found.optimizer
    if isinstance(settings, Grpo):
        found.keys_and_values, beside = draw_tokens(storages, model, settings, pieces)
        phases["sampling"] = Phase(standing, found.keys_and_values + beside)
    step = run_step(storages, model, pieces, wants_entropies=isinstance(settings, Grpo))
    found.activations, found.projection = step.activations, step.projection
    phases["forward"] = Phase(standing, step.forward)
    phases["backward"] = Phase(standing, step.backward)
    found.whole_forward, found.recomputes = step.forward, settings.gradient_checkpointing
    if found.recomputes:
        model.causal.activation_checkpointing_disable()
        again = run_step(storages, model, pieces, wants_entropies=False)
        found.whole_forward = again.forward
    adapter = settings.trains
    weighty = isinstance(adapter, LowRank) and (adapter.dora or isinstance(adapter, QLora))
    found.between = weighty or model.precision.casts
    standing += found.gradients
    phases["update"] = Phase(standing, update_bytes(model, settings.optimizer))
    if pieces.held_out:
        held_out = without_gradients(storages, model, pieces.held_out)
        phases["evaluation"] = Phase(standing, held_out)
    phases["save"] = Phase(standing, max(p.nbytes for _, p in model.trainable()))
    return found


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]  # tied ones come once


def without_gradients(storages: Storages, model: LanguageModel, samples: Sequence[Sample]) -> int:
    """The most bytes of a pass without gradients over these samples at once."""
    batch = faked(model.make_batch(list(samples), counts=count_step(samples)))
    model.module.eval()
    before = storages.restart()
    with torch.no_grad(), model.laid_out(batch):
        model.logprobs(batch)
    return storages.peak - before


@dataclass(frozen=True)
class Step:
    """Bytes above what stands. activations: held at the end of the forward; projection: the most
    that the head takes besides; forward, backward: the most of each, gradients included.
    """

    activations: int
    projection: int
    forward: int
    backward: int


def run_step(
    storages: Storages, model: LanguageModel, pieces: Pieces, *, wants_entropies: bool
) -> Step:
    """The last micro-batch of a step: where there are several, gradients are there already."""
    batch = faked(model.make_batch(pieces.step, counts=count_step(pieces.step)))
    model.module.train()
    before = storages.live
    for _ in range(2 if pieces.several else 1):
        begun = storages.restart()
        with model.laid_out(batch):
            hidden = model.hidden(batch)
            layers, through = storages.live, storages.peak
            storages.restart()
            chosen = hidden.reshape(-1, hidden.shape[-1]).index_select(0, batch.sources_P)
            dtype = model.precision.compute
            scores = compute_scores(
                chosen, batch.targets_P, model.head, dtype, entropies=wants_entropies
            )
            del hidden, chosen
            projected = storages.peak
            activations = storages.restart() - begun
            (-scores.logprobs.sum()).backward()
            del scores
        backward = storages.peak
    model.module.zero_grad(set_to_none=True)
    return Step(
        activations, projected - layers, max(through, projected) - before, backward - before
    )


def update_bytes(model: LanguageModel, settings: Optimizer) -> int:
    """The most bytes that an update takes besides parameters, gradients and state."""
    largest = max(parameter.numel() for _, parameter in model.trainable())
    return UPDATE_BYTES[settings.type] * largest


def draw_tokens(
    storages: Storages, model: LanguageModel, settings: Grpo, pieces: Pieces
) -> tuple[int, int]:
    """(bytes of keys and values, the most that drawing a token takes besides) where all completions
    have nearly their full length.
    """
    prompts = [len(sample.segments[0].tokens) for sample in pieces.asked]
    longest = max(prompts)
    at_once = settings.sequences_at_once
    at_once = min(at_once, len(prompts) * settings.group)
    number = -(-at_once // settings.group)
    own, shared = KeyValues(), KeyValues()
    shared.reserve(number, longest)
    model.module.eval()
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(model.autocast())
        if not model.precision.casts:
            stack.enter_context(cast_once(model.module, model.precision.compute))
        before = storages.restart()
        places = Places([n // settings.group for n in range(at_once)], model.device)
        length = settings.completion_tokens - 1
        room = -(-settings.completion_tokens // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        own.reserve(at_once, max(1, room - LENGTH_MULTIPLE))
        tokens = torch.zeros(at_once, dtype=torch.long)
        lengths = torch.full((at_once,), min(length, own.room[1] - 1), dtype=torch.long)
        longest_own = min(length, own.room[1] - 1) + 1
        attend = NextTokens(shared, own, places, tokens, lengths, (longest, longest_own))
        ids, positions = (filled_up(row)[None] for row in (tokens, tokens + lengths))
        with attend_by(attend):
            hidden = model.hidden_of(ids, positions)[0]
        logits = compute_logits(hidden, model.head, model.precision.compute)
        drawn = SamplingSettings(settings.completion_tokens, settings.temperature)
        choose(logits[:at_once], drawn, torch.zeros(at_once, dtype=torch.float64))
        first = storages.peak - before
        held = _bytes_of(own) + _bytes_of(shared)
        beside = first - held
        del hidden, logits
        storages.restart()
        if room > own.room[1]:
            own.reserve(at_once, room)  # old and new at once
            beside = max(beside, storages.peak - storages.live)
        held = _bytes_of(own) + _bytes_of(shared)
    return held, beside


def _bytes_of(kept: KeyValues) -> int:
    return sum(tensor.nbytes for pair in kept.layers for tensor in pair)
