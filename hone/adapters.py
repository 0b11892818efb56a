"""Low-rank adapters: which kinds there are, PEFT's modules, and a faster plain forward.

PEFT owns the file format and the modules. Its forward casts activations around fp32 adapters and
keeps several copies of them; `_LoraLinear` computes the same with one copy, the low-rank products
joined to the frozen layer's own, whose weights may be packed. DoRA and stacked adapters keep PEFT's
forward. What happens to an adapter that is there already: `choose_before`.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.nn.functional as F
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
)
from peft.tuners.lora.layer import Linear as PeftLinear
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hone.architecture import first_line
from hone.errors import UserError
from hone.memory import is_out_of_memory
from hone.model_files import (
    ADAPTER,
    NOTHING,
    Trust,
    check_adapter_files,
    read_header,
    some_of,
)
from hone.quantisation import has_transposed, read_quantisation
from hone.recipe.training import LowRank, QLora
from hone.targets import block_numbers, choose_blocks, choose_targets, find_blocks, linear_layers


@dataclass(frozen=True)
class Kind:
    """What has to agree where an adapter is trained on.

    bits: those of the frozen weights, None where they are not packed. where: full names of the
    layers that have adapters. low_rank_only: nothing but low-rank factors was trained.
    """

    rank: int
    alpha: float
    rslora: bool
    dora: bool
    bits: int | None
    where: frozenset[str]
    low_rank_only: bool = True

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def on(self, lower: "Kind") -> "Kind":
        """The one adapter that this one and `lower` below it are together."""
        rank = self.rank + lower.rank
        where = self.where | lower.where
        return replace(self, rank=rank, alpha=self.scale * rank, rslora=False, where=where)


def wished_kind(settings: LowRank, model: PreTrainedModel) -> Kind:
    """The kind of adapter that a recipe asks for; raises UserError for targets and layers that the
    model does not have.
    """
    targets = choose_targets(model, settings.targets, settings.layers)
    names = linear_layers(model)
    if settings.layers != "all":
        within = tuple(f"{block}." for block in choose_blocks(model, settings.layers))
        names = [name for name in names if name.startswith(within)]
    ends = tuple(f".{target}" for target in targets)
    return Kind(
        rank=settings.rank,
        alpha=settings.alpha,
        rslora=settings.rslora,
        dora=settings.dora,
        bits=settings.bits if isinstance(settings, QLora) else None,
        where=frozenset(name for name in names if f".{name}".endswith(ends)),
    )


def found_kind(folder: Path, model: PreTrainedModel) -> Kind:
    """The kind of an adapter on disk. model: its base, which may be without weights."""
    config = LoraConfig.from_pretrained(str(folder))
    more = (
        *(config.modules_to_save, config.trainable_token_indices),
        *(config.rank_pattern, config.alpha_pattern),
    )
    names = (name for name, _ in model.named_modules() if name)
    return Kind(
        rank=config.r,
        alpha=config.lora_alpha,
        rslora=config.use_rslora,
        dora=config.use_dora,
        bits=read_quantisation(folder),
        where=frozenset(name for name in names if check_target_module_exists(config, name)),
        low_rank_only=config.bias == "none" and not any(more),
    )


def choose_before(found: Kind | None, wished: Kind, setting: str) -> str | None:
    """What is done with the adapter that is there: "continue", "merge" or "stack", None for none.

    Raises UserError where the recipe's `before` cannot be done.
    """
    if found is None:
        if setting in ("continue", "stack"):
            raise UserError(
                f"adapter.before: {setting} needs an adapter, and this stage starts from whole "
                "weights",
                hint="leave `before` out, or start from an adapter: after a stage that trains one, "
                "or with its folder as the `model`",
                exit_code=2,
            )
        return None
    differing = differences(found, wished)
    if setting == "auto":
        return "merge" if differing else "continue"
    if setting == "continue" and differing:
        raise UserError(
            f"adapter.before: continue needs the adapter as it is, but {', '.join(differing)}",
            hint="give this stage the same settings, or `before: merge` or `before: stack`",
            exit_code=2,
        )
    if setting == "stack":
        check_stackable(found, wished)
    return setting


def differences(found: Kind, wished: Kind) -> list[str]:
    """What two kinds differ in, in words."""
    words = [
        f"{name} was {_shown(getattr(found, name))} and is {_shown(getattr(wished, name))}"
        for name in ("rank", "alpha", "rslora", "dora", "bits")
        if getattr(found, name) != getattr(wished, name)
    ]
    if found.where != wished.where:
        words.append(f"it stands on {len(found.where)} layers, the new one on others")
        if len(found.where) != len(wished.where):
            words[-1] = f"it stands on {len(found.where)} layers instead of {len(wished.where)}"
    return words


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else f"{value:g}"


def check_stackable(found: Kind, wished: Kind) -> None:
    """Raises UserError where one adapter cannot say what both together compute."""
    reason = None
    if found.dora or wished.dora:
        reason = "an adapter with `dora: true` is no sum of low-rank updates"
    elif not found.low_rank_only:
        reason = "the adapter before holds more than low-rank factors of one rank"
    elif found.bits != wished.bits:
        reason = (
            f"the adapter before was trained beside weights of {_shown(found.bits)} bits and this "
            f"one has {_shown(wished.bits)} (none: not packed)"
        )
    if reason:
        raise UserError(
            f"adapter.before: stack cannot be done: {reason}",
            hint="set `before: merge` to fold the adapter before into the base",
            exit_code=2,
        )


def add_lora(
    model: PreTrainedModel, settings: LowRank, token_rows: dict[str, list[int]] | None = None
) -> PeftModel:
    """Wrap `model` with fresh fp32 adapters from torch's current seed; the base is frozen.

    token_rows: rows of embeddings and head that are trained besides (vocabulary.py).
    """
    alpha = int(settings.alpha) if float(settings.alpha).is_integer() else settings.alpha
    numbers = None
    if settings.layers != "all":
        numbers = block_numbers(settings.layers, len(find_blocks(model)))
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT takes any number
        lora_dropout=settings.dropout,
        target_modules=choose_targets(model, settings.targets, settings.layers),
        layers_to_transform=numbers,
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        fan_in_fan_out=has_transposed(model, packed=False),
        task_type="CAUSAL_LM",
        trainable_token_indices=token_rows,
    )
    try:
        return _as_saved(get_peft_model(model, config))  # type: ignore[arg-type]
    except ValueError as error:  # of some families PEFT leaves out some layers
        raise UserError(
            f"adapter.targets: PEFT cannot adapt all of these layers: {first_line(error)}",
            hint=f"name those to adapt, some of: {', '.join(config.target_modules or ())}",
            exit_code=2,
        ) from error


def open_adapter(
    model: PreTrainedModel,
    folder: Path,
    trust: Trust = NOTHING,
    *,
    dropout: float | None = None,
    trainable: bool = False,
) -> PeftModel:
    """An adapter's folder on its base, whose weights may be packed; raises UserError where it is
    not whole or was made for another model.
    """
    config = PeftConfig.from_pretrained(str(folder))
    if isinstance(config, LoraConfig):
        config.fan_in_fan_out = has_transposed(model, packed=False)
        if dropout is not None:  # may be another one than in the stage before
            config.lora_dropout = dropout
    return _as_saved(read_adapter(model, folder, trust, is_trainable=trainable, config=config))


def read_adapter(
    module: PreTrainedModel, folder: Path, trust: Trust = NOTHING, **settings: Any
) -> PeftModel:
    """The model with the adapter of a folder; `settings` go to PEFT.

    Raises UserError for an adapter that is not whole or was made for another model.
    """
    check_adapter_files(folder, trust)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            model = PeftModel.from_pretrained(module, str(folder), **settings)
    except (RuntimeError, ValueError, KeyError, UserWarning, UnpicklingError) as error:
        if is_out_of_memory(error):
            raise
        raise _unfit_adapter(folder, module, first_line(error)) from error
    if (folder / ADAPTER).exists():  # PEFT says nothing of tensors that it leaves out
        taken = {
            *get_peft_model_state_dict(model, save_embedding_layers=False),
            *model.state_dict(),
        }
        left = read_header(folder / ADAPTER, f'the adapter "{folder}"').keys() - taken
        if left:
            raise _unfit_adapter(folder, module, f"{some_of(left)} has no place")
    return model


def _unfit_adapter(folder: Path, module: PreTrainedModel, reason: str) -> UserError:
    return UserError(
        f'the adapter "{folder}" does not fit the model "{module.name_or_path}": {reason}',
        hint="base_model_name_or_path in its adapter_config.json names the model it is for",
        exit_code=2,
    )


def _as_saved(model: PeftModel) -> PeftModel:
    """The configuration speaks of the base on disk, whose layers are not packed."""
    for config in model.peft_config.values():
        if isinstance(config, LoraConfig):
            config.fan_in_fan_out = has_transposed(model, packed=True)
    return model


def use_fast_forward(model: PeftModel) -> int:
    """Give every plain LoRA layer the faster forward; returns how many."""
    changed = 0
    for module in model.modules():
        if type(module) is PeftLinear and not module.lora_variant and len(module.lora_A) == 1:
            module.forward = partial(_adapted_forward, module)  # type: ignore[method-assign]
            changed += 1
    return changed


def _adapted_forward(layer: PeftLinear, x: torch.Tensor) -> torch.Tensor:
    (name,) = layer.lora_A
    base = layer.get_base_layer()
    if layer.disable_adapters or layer.merged:
        return base(x)
    return _LoraLinear.apply(
        x,
        layer.lora_dropout[name](x),
        base,
        layer.lora_A[name].weight,
        layer.lora_B[name].weight,
        layer.scaling[name],
    )


@contextmanager
def cast_once(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Inside, and without gradients, the factors of the faster forward are cast to `dtype`, that of
    the activations, once and not at every call.
    """
    changed: dict[PeftLinear, Any] = {}
    try:
        for module in model.modules():
            forward = vars(module).get("forward")
            if isinstance(forward, partial) and forward.func is _adapted_forward:
                assert isinstance(module, PeftLinear)
                changed[module] = forward
                module.forward = _make_cast_forward(module, dtype)  # type: ignore[method-assign]
        yield
    finally:
        for module, forward in changed.items():
            module.forward = forward  # type: ignore[method-assign]


def _make_cast_forward(
    layer: PeftLinear, dtype: torch.dtype
) -> Callable[[torch.Tensor], torch.Tensor]:
    """What `_LoraLinear` computes in evaluation mode."""
    (name,) = layer.lora_A
    base, scaling = layer.get_base_layer(), layer.scaling[name]
    if layer.disable_adapters or layer.merged:
        return base
    down, up = (f[name].weight.detach().to(dtype).T for f in (layer.lora_A, layer.lora_B))

    def forward(x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        out = F.linear(flat, _weight_of(base), base.bias)
        out.addmm_(flat @ down, up, alpha=scaling)
        return out.view(*x.shape[:-1], -1)

    return forward


def _weight_of(base: nn.Module) -> torch.Tensor:
    """(O, I), unpacked where it is packed."""
    return base.weight.T if isinstance(base, Conv1D) else base.weight


class _LoraLinear(torch.autograd.Function):
    """y = x W^T + b + s * (d A^T) B^T with d = dropout(x); W and b frozen (arXiv:2106.09685,
    equation 3).

    x, d: (..., I). base: the frozen layer, W: (O, I), read anew on the way back since it may be
    packed. A: (r, I), B: (O, r), in their own format, cast to x's for the products.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        dropped: torch.Tensor,
        base: nn.Module,
        lora_a: torch.Tensor,
        lora_b: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        flat = dropped.reshape(-1, dropped.shape[-1])
        a, b = lora_a.to(x.dtype), lora_b.to(x.dtype)
        low = flat @ a.T
        out = F.linear(x.reshape(-1, x.shape[-1]), _weight_of(base), base.bias)
        out.addmm_(low, b.T, alpha=scaling)
        ctx.save_for_backward(flat, low, lora_a, lora_b)
        ctx.base, ctx.scaling, ctx.separate = base, scaling, dropped is not x
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        flat, low, lora_a, lora_b = ctx.saved_tensors
        shape = (*grad.shape[:-1], lora_a.shape[1])
        grad = grad.reshape(-1, grad.shape[-1])
        a, b = lora_a.to(grad.dtype), lora_b.to(grad.dtype)
        grad_low = (grad @ b).mul_(ctx.scaling)
        grad_b = (grad.T @ low).to(lora_b.dtype).mul_(ctx.scaling)
        grad_a = (grad_low.T @ flat).to(lora_a.dtype)
        grad_x = grad_dropped = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ _weight_of(ctx.base)
            if not ctx.separate:
                grad_x.addmm_(grad_low, a)
            grad_x = grad_x.view(shape)
        if ctx.separate and ctx.needs_input_grad[1]:
            grad_dropped = (grad_low @ a).view(shape)
        return grad_x, grad_dropped, None, grad_a, grad_b, None
