"""Where a stage starts: the base model or the result of the stage before, and its model."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from hone.adapters import (
    add_lora,
    choose_before,
    found_kind,
    open_adapter,
    use_fast_forward,
    wished_kind,
)
from hone.checkpoints import find_fault, write_folder
from hone.device import Precision, seed_torch
from hone.errors import UserError
from hone.hub import find_model
from hone.models import (
    LanguageModel,
    join_model,
    load_tokenizer,
    read_quantised,
    read_weights,
    save_model,
)
from hone.quantisation import read_quantisation
from hone.recipe.schema import Full, LowRank, QLora
from hone.sampling import base_of_adapter
from hone.stacking import restore_new, stack
from hone.targets import choose_blocks, describe_targets, train_blocks


@dataclass(frozen=True)
class Start:
    """A base model, and the adapter on it where the stage before made one. tokenizer: folder or Hub
    id.
    """

    base: str
    adapter: Path | None
    tokenizer: str

    @classmethod
    def at(cls, source: str) -> "Start":
        """The start that a model folder, an adapter folder or a Hub id gives."""
        folder = Path(source)
        base = base_of_adapter(folder) if folder.is_dir() else None
        return cls(base or source, folder if base else None, source)


def build_model(
    start: Start,
    checkpoint: Path | None,
    adapter: LowRank | Full,
    *,
    folder: Path,
    precision: Precision,
    device: torch.device,
    layout: str,
    seed: tuple[int, ...],
) -> LanguageModel:
    """The model of a stage with what is trained, from its start or from one of its checkpoints.

    folder: the stage's; a merged base is kept there. seed: what the initial adapters are drawn
    from.
    """
    if isinstance(adapter, Full):
        source = str(checkpoint) if checkpoint else start.base
        weights = read_weights(source, precision.weights)
        if start.adapter and not checkpoint:
            weights = merge(weights, start.adapter)
        model = join_model(weights.to(device), precision, layout=layout)
        model.remarks += describe_before(start, "merge" if start.adapter else None)
        train_blocks(model.causal, adapter.layers)
        return model
    before = plan_adapter(start, adapter)
    base = str(merged_base(start, folder)) if before == "merge" else start.base
    bits = adapter.bits if isinstance(adapter, QLora) else None
    weights = (
        read_quantised(base, bits, precision.weights, device)
        if bits
        else read_weights(base, precision.weights).to(device)
    )
    model = join_model(weights, precision, layout=layout)
    if mapped := describe_targets(model.causal, adapter.targets):
        model.remarks.append(f"targets mapped to this model's layers: {mapped}")
    model.remarks += describe_before(start, before)
    seed_torch(*seed, "adapter")
    model.module = wrap(model.causal, start, checkpoint, adapter, before)
    use_fast_forward(model.module)
    return model


def wrap(
    causal: PreTrainedModel,
    start: Start,
    checkpoint: Path | None,
    adapter: LowRank,
    before: str | None,
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
        return open_adapter(causal, existing, dropout=adapter.dropout, trainable=True)
    return add_lora(causal, adapter)


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


def empty_base(source: str) -> PreTrainedModel:
    """The base of a start, without weights."""
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(find_model(source))
        return AutoModelForCausalLM.from_config(config)


def plan_adapter(start: Start, adapter: LowRank) -> str | None:
    """What is done with the adapter that a stage starts from; see `adapters.choose_before`."""
    if start.adapter is None and adapter.before in ("auto", "merge"):
        return None
    base = empty_base(start.base)
    found = found_kind(start.adapter, base) if start.adapter else None
    return choose_before(found, wished_kind(adapter, base), adapter.before)


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


def merge(weights: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """The base with an adapter folded into its weights, in fp32, in the base's format."""
    dtype = weights.dtype
    merged = open_adapter(weights.float(), adapter).merge_and_unload()
    return merged.to(dtype)


def merged_base(start: Start, folder: Path) -> Path:
    """The merged model a new adapter stands on, kept in the stage's folder and made only once."""
    assert start.adapter is not None
    adapter, base = start.adapter, folder / "base"
    if find_fault(base) is not None:
        merged = merge(read_weights(start.base, torch.float32), adapter)
        write_folder(base, lambda path: save_model(merged, path))
    return base


def open_tokenizer(start: Start) -> PreTrainedTokenizerBase:
    """The tokenizer of a stage."""
    return load_tokenizer(start.tokenizer)


def check_sizes(model: LanguageModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises UserError where the tokenizer has tokens that the model has no embedding for."""
    rows = model.causal.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens and the model {rows} embeddings",
            hint="the folder mixes files of two models; expected as many embeddings as tokens",
        )
