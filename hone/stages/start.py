"""Where a stage starts: the base model or the result of the stage before, and its model."""

from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from hone.adapters import add_lora, choose_targets, use_fast_forward
from hone.checkpoints import find_fault, write_folder
from hone.device import Precision, seed_torch
from hone.errors import UserError
from hone.hub import find_model
from hone.models import LanguageModel, join_model, load_tokenizer, read_weights, save_model
from hone.recipe.schema import Full, Lora
from hone.sampling import base_of_adapter


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
    adapter: Lora | Full,
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
        model.module.requires_grad_(True)
        return model
    continued = continues(start, adapter)
    base = start.base if continued or not start.adapter else str(merged_base(start, folder))
    model = join_model(read_weights(base, precision.weights).to(device), precision, layout=layout)
    existing = checkpoint or (start.adapter if continued else None)
    if existing:
        config = LoraConfig.from_pretrained(str(existing))
        config.lora_dropout = adapter.dropout  # may be another one than in the stage before
        model.module = PeftModel.from_pretrained(
            model.causal, str(existing), is_trainable=True, config=config
        )
    else:
        seed_torch(*seed, "adapter")
        model.module = add_lora(model.causal, adapter)
    use_fast_forward(model.module)
    return model


def continues(start: Start, adapter: Lora) -> bool:
    """True where the stage goes on with the adapter of the stage before: same rank, scale and
    layers.
    """
    if start.adapter is None:
        return False
    before = LoraConfig.from_pretrained(str(start.adapter))
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(find_model(start.base))
        base = AutoModelForCausalLM.from_config(config)
    same_layers = set(before.target_modules or ()) == set(choose_targets(base, adapter.targets))
    return (before.r, before.lora_alpha) == (adapter.rank, adapter.alpha) and same_layers


def merge(weights: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """The base with an adapter folded into its weights, in fp32, in the base's format."""
    dtype = weights.dtype
    merged = PeftModel.from_pretrained(weights.float(), str(adapter)).merge_and_unload()
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


__all__ = ["Start", "build_model", "check_sizes", "choose_targets", "open_tokenizer"]
