"""Where a stage starts: the base model or the result of the stage before, and its model."""

from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from hone.adapters import add_lora, choose_targets, use_fast_forward
from hone.architecture import check_model, empty_model
from hone.checkpoints import find_fault, write_folder
from hone.device import Precision, seed_torch
from hone.model_files import NOTHING, Trust, check_adapter_files
from hone.models import (
    LanguageModel,
    join_model,
    load_tokenizer,
    read_adapter,
    read_weights,
    save_model,
)
from hone.recipe.schema import Full, Lora
from hone.sampling import base_of_adapter
from hone.vocabulary import (
    NONE,
    AddedTokens,
    check_sizes,
    grow,
    has_rows,
    start_rows,
    trained_rows,
    use_fast_rows,
    with_rows,
)


@dataclass(frozen=True)
class Start:
    """A base model, and the adapter on it where the stage before made one. tokenizer: folder or Hub
    id. trust: what of them may be used although it can run code.
    """

    base: str
    adapter: Path | None
    tokenizer: str
    trust: Trust = NOTHING

    @classmethod
    def at(cls, source: str, trust: Trust = NOTHING) -> "Start":
        """The start that a model folder, an adapter folder or a Hub id gives."""
        folder = Path(source)
        base = base_of_adapter(folder) if folder.is_dir() else None
        return cls(base or source, folder if base else None, source, trust)


def check_start(start: Start) -> PreTrainedModel:
    """The start's model on the meta device, after all that can be checked without loading weights.

    Raises UserError for files that are missing, cut off, of different models or not to be trusted,
    and for a tokenizer with more tokens than the model has embeddings.
    """
    if start.adapter:
        check_adapter_files(start.adapter, start.trust)
    model = check_model(start.base, start.trust)
    check_sizes(model, open_tokenizer(start))
    return model


def build_model(
    start: Start,
    checkpoint: Path | None,
    adapter: Lora | Full,
    *,
    added: AddedTokens = NONE,
    folder: Path,
    precision: Precision,
    device: torch.device,
    layout: str,
    seed: tuple[int, ...],
) -> LanguageModel:
    """The model of a stage with what is trained, from its start or from one of its checkpoints.

    added: tokens that the stage adds. folder: the stage's; a base of its own is kept there. seed:
    what the initial adapters are drawn from.
    """
    if isinstance(adapter, Full):
        source = str(checkpoint) if checkpoint else start.base
        weights = read_weights(source, precision.weights, start.trust)
        if start.adapter and not checkpoint:
            weights = merge(weights, start.adapter, start.trust)
        if not checkpoint:
            grow(weights, added)
        model = join_model(weights.to(device), precision, layout=layout)
        model.module.requires_grad_(True)
        return model
    continued = continues(start, adapter) and not added.ids
    base = (
        start.base if continued or stands_on(start, added) else str(own_base(start, folder, added))
    )
    weights = read_weights(base, precision.weights, start.trust)
    model = join_model(weights.to(device), precision, layout=layout)
    existing = checkpoint or (start.adapter if continued else None)
    if existing:
        config = LoraConfig.from_pretrained(str(existing))
        config.lora_dropout = adapter.dropout  # may be another one than in the stage before
        model.module = read_adapter(
            model.causal, existing, start.trust, is_trainable=True, config=config
        )
    else:
        seed_torch(*seed, "adapter")
        model.module = add_lora(model.causal, adapter, trained_rows(model.causal, added))
        start_rows(model.module, added)
    use_fast_forward(model.module)
    use_fast_rows(model.module)
    model.head = with_rows(model.head, model.causal)
    return model


def continues(start: Start, adapter: Lora) -> bool:
    """True where the stage goes on with the adapter of the stage before: same rank, scale and
    layers.
    """
    if start.adapter is None:
        return False
    before = LoraConfig.from_pretrained(str(start.adapter))
    base = empty_model(start.base, start.trust)
    same_layers = set(before.target_modules or ()) == set(choose_targets(base, adapter.targets))
    return (before.r, before.lora_alpha) == (adapter.rank, adapter.alpha) and same_layers


def stands_on(start: Start, added: AddedTokens) -> bool:
    """True where a new adapter can stand on the start's base as it is: nothing is to be merged, and
    every added token has a row.
    """
    if start.adapter:
        return False
    return not added.ids or has_rows(empty_model(start.base, start.trust), added)


def merge(weights: PreTrainedModel, adapter: Path, trust: Trust = NOTHING) -> PreTrainedModel:
    """The base with an adapter folded into its weights, in fp32, in the base's format."""
    dtype = weights.dtype
    merged = read_adapter(weights.float(), adapter, trust).merge_and_unload()
    return merged.to(dtype)


def own_base(start: Start, folder: Path, added: AddedTokens = NONE) -> Path:
    """The model that a new adapter stands on where it cannot be the start's: with the adapter of
    the stage before merged, and rows for added tokens. Kept in the stage's folder, made only once.
    """
    base = folder / "base"
    if find_fault(base) is not None:
        # Without an adapter nothing is computed, and the weights stay as they are.
        weights = read_weights(start.base, torch.float32 if start.adapter else "auto", start.trust)
        if start.adapter:
            weights = merge(weights, start.adapter, start.trust)
        grow(weights, added)
        write_folder(base, lambda path: save_model(weights, path))
    return base


def open_tokenizer(start: Start) -> PreTrainedTokenizerBase:
    """The tokenizer that a stage begins with."""
    return load_tokenizer(start.tokenizer, start.trust)


__all__ = ["Start", "build_model", "check_start", "choose_targets", "open_tokenizer"]
