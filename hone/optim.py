"""Parameter groups, optimizers and learning-rate schedules.

The schedule is a pure function of the step, so that a resumed run needs nothing but the step's
number.
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn
from transformers.optimization import Adafactor as TransformersAdafactor

from hone.errors import UserError
from hone.quantisation import import_bitsandbytes
from hone.recipe.training import Adafactor, AdamW, AdamW8bit, Optimizer, TrainingStage, WarmUp

_SHARED = ("|qmap1", "|qmap2")  # what the 8-bit numbers of AdamW8bit stand for


def decays(name: str, parameter: nn.Parameter, embeddings: set[int]) -> bool:
    """True for matrices of linear layers and adapters; False for norms, biases and embeddings,
    single rows of which PEFT names `trainable_tokens_delta`.
    """
    if id(parameter) in embeddings or "trainable_tokens_delta" in name:
        return False
    return parameter.ndim >= 2 and not name.endswith(".bias")


def make_optimizer(model: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """The optimizer over all trained parameters of `model`, in two groups: with weight decay and
    without.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {
            "params": [p for name, p in named if decays(name, p, embeddings) is decayed],
            "weight_decay": settings.weight_decay if decayed else 0.0,
        }
        for decayed in (True, False)
    ]
    groups = [group for group in groups if group["params"]]
    if isinstance(settings, AdamW8bit):
        library = import_bitsandbytes("optim", "`optimizer.type: adamw_8bit`")
        return library.AdamW8bit(groups, lr=0.0, betas=settings.betas, eps=settings.epsilon)
    if isinstance(settings, Adafactor):
        # The schedule's rate as it is: the paper's relative steps (sections 7 and 8) would make it
        # a share of each matrix's size, which is zero for fresh adapters.
        return TransformersAdafactor(groups, lr=0.0, relative_step=False, scale_parameter=False)
    if isinstance(settings, AdamW):
        return torch.optim.AdamW(
            groups, lr=0.0, betas=settings.betas, eps=settings.epsilon, fused=True
        )
    return torch.optim.SGD(groups, lr=0.0, momentum=settings.momentum)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Use `learning_rate` in every group of the next update."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def warmup_steps(settings: TrainingStage, total: int) -> int:
    """Steps of warm-up; raises UserError when nothing would be left at the full rate."""
    asked = settings.warmup
    if isinstance(asked, WarmUp):
        # 0.29 * 100 is 28.999999999999996
        steps = min(asked.steps, math.floor(asked.at_most * total + 1e-9))
    else:
        steps = asked if isinstance(asked, int) else round(asked * total)
    if steps and steps >= total:
        raise UserError(
            f"warmup: {asked} gives {steps} steps of warm-up and the stage has {total}; "
            "nothing would be trained at the full rate",
            hint=f"expected fewer than {total} steps, for example `warmup: 0.1`",
            exit_code=2,
        )
    return steps


def describe_cut_warmup(settings: TrainingStage, total: int) -> str | None:
    """What is said of a warm-up that is shorter than asked for; None where it is not."""
    asked, steps = settings.warmup, warmup_steps(settings, total)
    if not isinstance(asked, WarmUp) or steps == asked.steps:
        return None
    words = f"{steps:,} step" if steps == 1 else f"{steps:,} steps"
    share = f"{100 * asked.at_most:g} % of the stage's {total:,}"
    return f"warm-up: {words}, {share}, instead of {asked.steps:,}"


def make_schedule(settings: TrainingStage, total: int) -> Callable[[int], float]:
    """The learning rate of step 1, 2, ... `total`: a linear warm-up, then `cosine`, `linear` or
    `constant`.
    """
    warmup = warmup_steps(settings, total)

    def learning_rate(step: int) -> float:
        if step <= warmup:
            return settings.learning_rate * step / (warmup + 1)
        gone = (step - warmup - 1) / (total - warmup)
        falling = {
            "cosine": 0.5 * (1 + math.cos(math.pi * gone)),
            "linear": 1 - gone,
            "constant": 1.0,
        }
        return settings.learning_rate * falling[settings.schedule]

    return learning_rate


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, named: Iterable[tuple[str, nn.Parameter]]
) -> dict[str, torch.Tensor]:
    """The optimizer's state as named tensors: `<parameter>|<entry>`, a step that is a plain number
    as int64. Tables of numbers that parameters share are written for each.
    """
    tensors = {
        f"{name}|{entry}": torch.as_tensor(value)
        for name, parameter in named
        for entry, value in sorted(optimizer.state.get(parameter, {}).items())
        if isinstance(value, torch.Tensor | int)
    }
    return {
        key: value.clone() if key.endswith(_SHARED) else value.contiguous()
        for key, value in tensors.items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    named: Iterable[tuple[str, nn.Parameter]],
    tensors: dict[str, torch.Tensor],
) -> None:
    """Put back what `optimizer_tensors` gave."""
    parameters = dict(named)
    for key, value in tensors.items():
        name, _, entry = key.rpartition("|")
        parameter = parameters[name]
        if value.dtype == torch.int64:
            optimizer.state[parameter][entry] = int(value)
        else:
            kept = entry == "step"
            optimizer.state[parameter][entry] = value if kept else value.to(parameter.device)
