"""Tokens that a stage adds: into the tokenizer, as rows of the embeddings and of the head,
and, with adapters, as the only rows of both that are trained.

`stages/` call `add_tokens` before data are rendered, and the rest when the model is built. PEFT
owns the trained rows and their file format; its forward copies the whole embedding matrix for each
batch, so `use_fast_rows` and `Head.rows_KD` put the few rows beside the frozen matrices instead.

Shapes: K added tokens, V vocabulary, D hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils.other import TrainableTokensWrapper
from tokenizers import AddedToken
from torch import nn
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from hone.errors import UserError
from hone.logprobs import Head

CHUNK_ROWS = 8192  # rows of an embedding matrix that are held in fp64 at once


@dataclass(frozen=True)
class AddedTokens:
    """What `add_tokens` did. ids: the new tokens'. existing: tokens that were there before.
    rows_before: the rows that the tokenizer used without the new ones.
    """

    ids: tuple[int, ...] = ()
    existing: tuple[str, ...] = ()
    rows_before: int = 0

    @property
    def rows(self) -> int:
        """The rows that a model needs for them."""
        return max(self.ids, default=-1) + 1


NONE = AddedTokens()


def rows_needed(tokenizer: PreTrainedTokenizerBase) -> int:
    """One row for each id up to the highest."""
    return max(tokenizer.get_vocab().values()) + 1


def add_tokens(tokenizer: PreTrainedTokenizerBase, wished: Sequence[str]) -> AddedTokens:
    """Add special tokens to a tokenizer, in place; those it has are left as they are."""
    before, known = rows_needed(tokenizer), tokenizer.get_vocab()
    new = [token for token in wished if token not in known]
    made = [AddedToken(token, special=True, normalized=False) for token in new]
    tokenizer.add_tokens(made, special_tokens=True)
    ids = tuple(tokenizer.convert_tokens_to_ids(new))
    return AddedTokens(ids, tuple(token for token in wished if token in known), before)


def describe_added(tokenizer: PreTrainedTokenizerBase, added: AddedTokens) -> list[str]:
    """What became of `add_tokens`, in lines for the person."""
    lines = []
    if added.ids:
        names = ", ".join(tokenizer.convert_ids_to_tokens(list(added.ids)))
        lines.append(f"tokens added: {names}")
    if added.existing:
        lines.append(f"tokens that exist are left as they are: {', '.join(added.existing)}")
    return lines


def check_sizes(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises UserError where the tokenizer has tokens that the model has no embedding for.

    Special tokens that its chat template does not write may lie beyond (Gemma 3 1B has one for
    images); data that hold them are refused by `stages/data.py`.
    """
    rows, needed = len(model.get_input_embeddings().weight), rows_needed(tokenizer)
    beyond = [i for i in tokenizer.get_vocab().values() if i >= rows]
    added, template = tokenizer.added_tokens_decoder, str(tokenizer.chat_template)
    harmless = (i in added and added[i].special and str(added[i]) not in template for i in beyond)
    if not all(harmless):
        raise UserError(
            f"the tokenizer has {needed} tokens and the model {rows} embeddings",
            hint="the folder mixes files of two models; expected as many embeddings as tokens",
            exit_code=2,
        )


def has_rows(model: PreTrainedModel, added: AddedTokens) -> bool:
    """True where the model has an embedding for each added token already."""
    return len(model.get_input_embeddings().weight) >= added.rows


@torch.no_grad()
def grow(model: PreTrainedModel, added: AddedTokens) -> None:
    """Give the added tokens rows of their own, each the mean of the rows there were before.

    Embeddings and head become larger only where they have too few rows. Nothing is random.
    """
    if not added.ids:
        return
    if not has_rows(model, added):
        model.resize_token_embeddings(added.rows, mean_resizing=False)
    ids = list(added.ids)
    for matrix in matrices(model):
        matrix.weight[ids] = mean_row(matrix.weight, added.rows_before).to(matrix.weight)
        if getattr(matrix, "bias", None) is not None:
            matrix.bias[ids] = matrix.bias[: added.rows_before].mean()


def matrices(model: PreTrainedModel) -> list[nn.Module]:
    """The embeddings, and the head where it has a matrix of its own."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(embeddings, nn.Embedding):
        raise UserError(
            f"add_tokens: the embeddings of this model are a {type(embeddings).__name__}; expected "
            "one row for each token",
            hint="leave out `add_tokens`, or choose another model",
            exit_code=2,
        )
    return [embeddings] if head.weight is embeddings.weight else [embeddings, head]


def mean_row(weight_VD: torch.Tensor, rows: int) -> torch.Tensor:
    """The mean (D,) of the first `rows` rows, in fp64."""
    total = sum(chunk.double().sum(0) for chunk in weight_VD[:rows].split(CHUNK_ROWS))
    assert isinstance(total, torch.Tensor), "a vocabulary has tokens"
    return total / min(rows, len(weight_VD))


def trained_rows(model: PreTrainedModel, added: AddedTokens) -> dict[str, list[int]] | None:
    """PEFT's `trainable_token_indices` for the added tokens; None where there are none."""
    if not added.ids:
        return None
    check_rows(model)
    names = {id(module): name for name, module in model.named_modules(remove_duplicate=False)}
    return {names[id(matrix)]: list(added.ids) for matrix in matrices(model)}


def check_rows(model: PreTrainedModel) -> None:
    """Raises UserError for a model of which PEFT cannot train single rows."""
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        raise UserError(
            "add_tokens: the head of this model has a bias, with which adapters cannot train "
            "single rows",
            hint="train all weights: adapter: {type: full}",
            exit_code=2,
        )
    matrices(model)


@torch.no_grad()
def start_rows(model: PeftModel, added: AddedTokens) -> None:
    """Start the trained rows of a fresh adapter at the mean of the rows there were before."""
    for layer in row_layers(model):
        if added.ids and not layer.tied_adapter:
            (rows_KD,) = layer.trainable_tokens_delta.values()
            mean = mean_row(layer.get_base_layer().weight, added.rows_before)
            rows_KD.copy_(mean.to(rows_KD).expand_as(rows_KD))


def row_layers(model: nn.Module) -> list[TrainableTokensLayer]:
    """PEFT's layers with trained rows, of the embeddings and of the head."""
    return [module for module in model.modules() if isinstance(module, TrainableTokensLayer)]


def use_fast_rows(model: PeftModel) -> int:
    """Give embeddings with trained rows the faster forward; returns how many."""
    changed = 0
    for module in model.modules():
        if isinstance(module, TrainableTokensWrapper) and isinstance(
            module.token_adapter.get_base_layer(), nn.Embedding
        ):
            module.forward = partial(_embed, module.token_adapter)  # type: ignore[method-assign]
            changed += 1
    return changed


def _embed(layer: TrainableTokensLayer, ids: torch.Tensor) -> torch.Tensor:
    """The frozen embeddings of `ids`, with the trained rows where an id is one of theirs."""
    base = layer.get_base_layer()
    out = base(ids)
    if layer.disable_adapters or layer.merged:
        return out
    row_ids_K, rows_KD = _rows_of(layer)
    is_row = ids[..., None] == row_ids_K
    rows = F.embedding(is_row.int().argmax(-1), rows_KD.to(out.dtype))
    scale = getattr(base, "embed_scale", None)  # Gemma 3 scales in the embedding's own forward
    if scale is not None:
        rows = rows * scale.to(out.dtype)
    return torch.where(is_row.any(-1, keepdim=True), rows, out)


def _rows_of(layer: TrainableTokensLayer) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (K,) and values (K, D) of a layer's trained rows."""
    (name,) = layer.trainable_tokens_delta
    rows_KD = layer.trainable_tokens_delta[name]
    return torch.tensor(layer.token_indices[name], device=rows_KD.device), rows_KD


def with_rows(head: Head, model: PreTrainedModel) -> Head:
    """The head with the trained rows of the model's output layer, where it has some."""
    layer = model.get_output_embeddings()
    if not isinstance(layer, TrainableTokensWrapper):
        return head
    row_ids_K, rows_KD = _rows_of(layer.token_adapter)
    return replace(head, row_ids_K=row_ids_K, rows_KD=rows_KD)
