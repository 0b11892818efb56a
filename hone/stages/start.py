"""Where a stage starts: the base model or the result of the stage before, and its model."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from hone.adapters import (
    add_lora,
    choose_before,
    found_kind,
    open_adapter,
    use_fast_forward,
    wished_kind,
)
from hone.architecture import check_model, empty_model
from hone.checkpoints import Announce, find_fault, say_nothing, write_folder
from hone.device import Precision, seed_torch
from hone.errors import UserError
from hone.model_files import NOTHING, Trust, check_adapter_files
from hone.models import (
    LanguageModel,
    join_model,
    load_tokenizer,
    read_quantised,
    read_weights,
    save_model,
)
from hone.quantisation import read_quantisation
from hone.recipe.training import Full, LowRank, QLora
from hone.sampling import base_of_adapter
from hone.stacking import restore_new, stack
from hone.targets import choose_blocks, describe_targets, train_blocks
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
    adapter: LowRank | Full,
    *,
    added: AddedTokens = NONE,
    folder: Path,
    precision: Precision,
    device: torch.device,
    layout: str,
    seed: tuple[int, ...],
    announce: Announce = say_nothing,
) -> LanguageModel:
    """The model of a stage with what is trained, from its start or from one of its checkpoints.

    added: tokens that the stage adds. folder: the stage's; a base of its own is kept there, and
    announced. seed: what the initial adapters are drawn from.
    """
    if isinstance(adapter, Full):
        source = str(checkpoint) if checkpoint else start.base
        weights = read_weights(source, precision.weights, start.trust)
        if start.adapter and not checkpoint:
            weights = merge(weights, start.adapter, start.trust)
        if not checkpoint:
            grow(weights, added)
        model = join_model(weights.to(device), precision, layout=layout)
        model.remarks += describe_before(start, "merge" if start.adapter else None)
        train_blocks(model.causal, adapter.layers)
        return model
    before = plan_adapter(start, adapter, added)
    base = start.base
    if before == "merge" or not has_all_rows(start, added):
        base = str(own_base(start, folder, added, announce))
    bits = adapter.bits if isinstance(adapter, QLora) else None
    weights = (
        read_quantised(base, bits, precision.weights, device, start.trust)
        if bits
        else read_weights(base, precision.weights, start.trust).to(device)
    )
    model = join_model(weights, precision, layout=layout)
    if mapped := describe_targets(model.causal, adapter.targets):
        model.remarks.append(f"targets mapped to this model's layers: {mapped}")
    model.remarks += describe_before(start, before)
    seed_torch(*seed, "adapter")
    model.module = wrap(model.causal, start, checkpoint, adapter, before, added)
    use_fast_forward(model.module)
    use_fast_rows(model.module)
    model.head = with_rows(model.head, model.causal)
    return model


def wrap(
    causal: PreTrainedModel,
    start: Start,
    checkpoint: Path | None,
    adapter: LowRank,
    before: str | None,
    added: AddedTokens,
) -> PeftModel:
    """A base model with its adapters: fresh ones, those of the stage before, or a checkpoint's."""
    if before == "stack":
        assert start.adapter is not None
        stacked = add_lora(causal, adapter)
        stack(stacked, start.adapter)
        if checkpoint:
            restore_new(stacked, checkpoint)
        return stacked
    existing = checkpoint or (start.adapter if before == "continue" else None)
    if existing:
        return open_adapter(causal, existing, start.trust, dropout=adapter.dropout, trainable=True)
    fresh = add_lora(causal, adapter, trained_rows(causal, added))
    start_rows(fresh, added)
    return fresh


def describe_before(start: Start, before: str | None) -> list[str]:
    """What is done with the adapter that a stage starts from, in words."""
    if before is None:
        return []
    assert start.adapter is not None
    done = {
        "continue": "trained on",
        "merge": "merged into the base in fp32",
        "stack": "frozen, with a new one on top; both are saved as one",
    }[before]
    remarks = [f"the adapter before is {done}"]
    if before == "merge" and read_quantisation(start.adapter):
        remarks.append(
            "it was trained beside packed weights and is merged into those of the base itself, "
            "so that this stage starts slightly elsewhere"
        )
    return remarks


def plan_adapter(start: Start, adapter: LowRank, added: AddedTokens = NONE) -> str | None:
    """What is done with the adapter that a stage starts from; see `adapters.choose_before`. One
    adapter has one set of trained rows: for new tokens, the one before is merged.
    """
    if start.adapter is None and adapter.before in ("auto", "merge"):
        return None
    if start.adapter and added.ids:
        if adapter.before in ("continue", "stack"):
            raise UserError(
                f"adapter.before: {adapter.before} keeps the adapter as it is, and `add_tokens` "
                "gives it rows that it does not have",
                hint="set `before: merge`, or add the tokens in the first stage with an adapter",
                exit_code=2,
            )
        return "merge"
    base = empty_model(start.base, start.trust)
    found = found_kind(start.adapter, base) if start.adapter else None
    done = choose_before(found, wished_kind(adapter, base), adapter.before)
    if not added.ids or done is None:
        return done
    if adapter.before in ("continue", "stack"):
        raise UserError(
            f"adapter.before: {adapter.before} cannot be done in a stage that adds tokens: the "
            "adapter before has no rows for them",
            hint="set `before: merge`, or add the tokens in the first stage",
            exit_code=2,
        )
    return "merge"


def check_adapters(
    model: PreTrainedModel, start: Start | None, adapters: Iterable[LowRank | Full]
) -> None:
    """Raises UserError for targets, layers and `before` of a recipe's stages that cannot be.

    model: the base, which may be without weights. start: where the first stage starts; None for a
    new model.
    """
    found = found_kind(start.adapter, model) if start and start.adapter else None
    for adapter in adapters:
        if isinstance(adapter, Full):
            found = None
            if adapter.layers != "all":
                choose_blocks(model, adapter.layers)
            continue
        wished = wished_kind(adapter, model)
        done = choose_before(found, wished, adapter.before)
        found = wished.on(found) if done == "stack" and found else wished


def has_all_rows(start: Start, added: AddedTokens) -> bool:
    """True where the start's base has a row for every added token."""
    return not added.ids or has_rows(empty_model(start.base, start.trust), added)


def merge(weights: PreTrainedModel, adapter: Path, trust: Trust = NOTHING) -> PreTrainedModel:
    """The base with an adapter folded into its weights, in fp32, in the base's format."""
    dtype = weights.dtype
    merged = open_adapter(weights.float(), adapter, trust).merge_and_unload()
    return merged.to(dtype)


def own_base(
    start: Start, folder: Path, added: AddedTokens = NONE, announce: Announce = say_nothing
) -> Path:
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
        write_folder(base, lambda path: save_model(weights, path), announce)
    return base


def open_tokenizer(start: Start) -> PreTrainedTokenizerBase:
    """The tokenizer that a stage begins with."""
    return load_tokenizer(start.tokenizer, start.trust)
