"""Whether a recipe fits into the memory it may hold, and what to change where it does not.

Called by `hone check` with the recipe's data, and by `hone run` without them. What is computed at
once is cut by a run itself until it fits, so only that is refused which does not fit with one
sample at once; all suggestions are computed with the same model.
"""

from collections.abc import Iterator

import torch

from hone.device import data_bytes, resident_bytes
from hone.errors import UserError
from hone.estimate.allocator import LIBRARIES, TOP
from hone.estimate.examine import (
    StageEstimate,
    Subject,
    estimate_stage,
    open_material,
    pieces_of,
    standing_bytes,
    subjects,
)
from hone.estimate.pieces import Pieces, alone, shortened
from hone.memory import in_words, limit_bytes
from hone.models import token_bytes
from hone.recipe.load import LoadedRecipe
from hone.recipe.policy import Grpo
from hone.recipe.training import AdamW8bit, DataStage, Full, Lora, QLora, TrainingStage

TOLERANCE = 0.1  # of an estimate, by which it may be too high
SURELY = 0.25  # of the memory, below which rough figures suffice to say that all fits
SMALLEST_TOKENS = 64  # that are suggested


def check_memory(loaded: LoadedRecipe, *, with_data: bool) -> list[str]:
    """What will be cut to fit, in words, a line for each stage where something is.

    Raises UserError for a stage that cannot fit, with what would make it.
    """
    notes = []
    for subject in subjects(loaded):
        limit = limit_bytes(loaded.recipe.memory, subject.device)
        room = limit - held_bytes(subject.device)
        if surely_fits(subject, room):
            continue
        standing = standing_bytes(subject)
        if standing > room:
            raise standing_refusal(subject, standing, room, limit)
        if not with_data:
            continue
        subject.material = open_material(subject)
        pieces = pieces_of(subject)
        smallest = estimate_stage(subject, pieces=alone(pieces))
        if not fits(smallest, room):
            raise refusal(subject, pieces, smallest, room, limit)
        if cut := describe_cut(subject, room):
            notes.append(f"stage {subject.title}: {cut}")
    return notes


def held_bytes(device: torch.device) -> int:
    """What a process holds before it has a model: none of the GPU's memory."""
    return 0 if device.type == "cuda" else min(data_bytes(), resident_bytes())


def fits(estimate: StageEstimate, room: int) -> bool:
    """True unless the peak is above `room` bytes by more than the estimate may be wrong; the
    libraries' code counts against no limit.
    """
    return (estimate.peak - LIBRARIES - TOP) * (1 - TOLERANCE) <= room


def surely_fits(subject: Subject, room: int) -> bool:
    """True where even rough upper figures are far below `room`."""
    settings, model = subject.settings, subject.meta()
    count = sum(parameter.numel() for parameter in model.parameters())
    config = model.config.get_text_config()
    if isinstance(settings, Grpo):
        tokens = settings.prompt_tokens + settings.group * settings.completion_tokens
        tokens += settings.sequences_at_once * settings.completion_tokens
    else:
        tokens = settings.max_tokens if isinstance(settings, DataStage) else 0
    tokens = 3 * max(tokens, settings.token_budget or 0)  # pairs have two sides
    each = config.num_hidden_layers * token_bytes(config, torch.float32)
    return 16 * count + tokens * each < SURELY * room


def describe_cut(subject: Subject, room: int) -> str | None:
    """To how many tokens at once a run will cut its work, where it has to."""
    whole = estimate_stage(subject)
    if whole.peak <= room:
        return None
    budget, found = whole.budget, whole
    while found.peak > room and budget > 1:
        budget //= 2
        before, found = found, estimate_stage(subject, budget=budget)
        if found.tokens == before.tokens and found.phases == before.phases and budget < 256:
            break
    needed = f"{whole.tokens:,} tokens at once need about {in_words(whole.peak)}"
    return (
        f"{needed} of {in_words(room)}; they will be cut, `token_budget: {budget}` needs about "
        f"{in_words(found.peak)}"
    )


def standing_refusal(subject: Subject, standing: int, room: int, limit: int) -> UserError:
    """Why a stage cannot be done whatever its data are."""
    found = [
        f"`{words}` needs at least {in_words(needed)}"
        for words, changed in changes(subject)
        if (needed := standing_bytes(changed)) <= room
    ]
    return UserError(
        f"the weights, gradients and optimizer state of stage {subject.title} take at least "
        f"{in_words(standing)}, and the run may hold {in_words(limit)}",
        hint=_one_of(found, room),
    )


def _one_of(found: list[str], room: int) -> str:
    if found:
        return f"there is room for {in_words(room)}; one of these: {'; '.join(found)}"
    return "take a smaller model or more memory; no single change of the recipe suffices"


def refusal(
    subject: Subject, pieces: Pieces, smallest: StageEstimate, room: int, limit: int
) -> UserError:
    """Why a stage cannot be done, and each change that would let it."""
    found = list(suggestions(subject, pieces, room))
    longest = pieces.longest[0].num_tokens
    return UserError(
        f"stage {subject.title} will take at least {in_words(smallest.peak)} beside what the "
        f"libraries hold ({smallest.phase}; the longest sample alone, {longest:,} tokens), and "
        f"the run may hold {in_words(limit)}",
        hint=_one_of(found, room),
    )


def suggestions(subject: Subject, pieces: Pieces, room: int) -> Iterator[str]:
    """Changes after which the stage fits, each with what it would take."""
    for words, changed in changes(subject):
        found = estimate_stage(changed, pieces=alone(pieces))
        if fits(found, room):
            yield f"`{words}` needs about {in_words(found.peak)}"
    if isinstance(subject.settings, DataStage):
        tokens = 1 << (pieces.longest[0].num_tokens - 1).bit_length() - 1
        while tokens >= SMALLEST_TOKENS:
            found = estimate_stage(subject, pieces=alone(shortened(pieces, tokens)))
            if fits(found, room):
                yield f"`max_tokens: {tokens}` needs about {in_words(found.peak)}"
                return
            tokens //= 2


def changes(subject: Subject) -> Iterator[tuple[str, Subject]]:
    """One change each of adapter, precision, checkpointing and optimizer, as the recipe says it."""
    settings = subject.settings
    adapter = settings.trains
    has_adapter = "adapter" in type(settings).model_fields
    if has_adapter and isinstance(adapter, Full):
        yield "adapter: lora", subject.with_settings(adapter=Lora())
    if has_adapter and not isinstance(adapter, QLora):
        yield "adapter: qlora", subject.with_settings(adapter=_packed(settings))
    if settings.precision != "bf16":
        yield "precision: bf16", subject.with_settings(precision="bf16")
    if not settings.gradient_checkpointing:
        checkpointing = subject.with_settings(gradient_checkpointing=True)
        yield "gradient_checkpointing: true", checkpointing
    if isinstance(adapter, Full) and settings.optimizer.type == "adamw":
        yield "optimizer: adamw_8bit", subject.with_settings(optimizer=AdamW8bit())


def _packed(settings: TrainingStage) -> QLora:
    adapter = settings.trains
    if not isinstance(adapter, Lora):
        return QLora()
    return QLora.model_validate({**adapter.model_dump(exclude={"type"}), "type": "qlora"})
