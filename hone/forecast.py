"""What a stage will take, said before step 1: room on the disk, and memory for the weights.

Called by `stages/`. The disk's figures are upper bounds, those of the memory lower ones: what is
computed at once can be cut to fit, weights and optimizer state cannot.
"""

import shutil
from dataclasses import dataclass

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from hone.checkpoints import folder_bytes
from hone.device import choose_precision
from hone.errors import UserError
from hone.memory import in_words
from hone.recipe.training import Full, QLora, TrainingStage
from hone.training import Training

# Bytes of state for each trained parameter, at least and at most. AdamW keeps two means in fp32, in
# 8 bits only those of large tensors; SGD keeps one with momentum, Adafactor a row and a column.
STATE_BYTES = {"adamw": (8, 8), "adamw_8bit": (2, 8), "sgd": (0, 4), "adafactor": (0, 4)}


@dataclass(frozen=True)
class DiskForecast:
    """Bytes: of a checkpoint, of the result, of all that may lie there at once and is not there
    yet, and what is free.
    """

    checkpoint: int
    result: int
    needed: int
    free: int

    def __str__(self) -> str:
        return (
            f"disk: checkpoints of {in_words(self.checkpoint)} and a result of "
            f"{in_words(self.result)}, {in_words(self.needed)} more at most; "
            f"{in_words(self.free)} free"
        )


def check_memory(
    model: PreTrainedModel, settings: TrainingStage, device: torch.device, limit: int
) -> None:
    """Raises UserError where weights, gradients and optimizer state alone are over `limit` bytes.

    model: the stage's base, which may be without weights.
    """
    adapter = settings.trains
    count = sum(parameter.numel() for parameter in model.parameters())
    if isinstance(adapter, Full):
        trained = count if adapter.layers == "all" else 0
        needed = 4 * count + (4 + STATE_BYTES[settings.optimizer.type][0]) * trained
    else:
        precision = choose_precision(settings.precision, device, trains_weights=False)
        bits = adapter.bits if isinstance(adapter, QLora) else 8 * precision.weights.itemsize
        needed = count * bits // 8
    if needed > limit:
        raise UserError(
            f"the weights, gradients and optimizer state of {count:,} parameters take at least "
            f"{in_words(needed)}, and the run may hold {in_words(limit)}",
            hint="take an adapter instead of full weights, `adapter: {type: qlora}`, a smaller "
            "model, or more memory",
        )


def forecast_disk(training: Training) -> DiskForecast:
    """What the stage's checkpoints and result will take on the disk."""
    trained = [parameter for _, parameter in training.model.trainable()]
    module = training.model.module
    saved = [  # of an adapter also what is frozen below it
        parameter
        for name, parameter in module.named_parameters()
        if not isinstance(module, PeftModel) or parameter.requires_grad or ".lora_" in name
    ]
    result = sum(parameter.numel() * parameter.element_size() for parameter in saved)
    count = sum(parameter.numel() for parameter in trained)
    checkpoint = result + count * STATE_BYTES[training.settings.optimizer.type][1]
    settings = training.settings.checkpoint
    kept = settings.keep + 1  # the one that is being written
    kept += training.settings.evaluation is not None  # the best one
    kept += training.total_steps // settings.keep_every if settings.keep_every else 0
    present = folder_bytes(training.checkpoints)
    needed = max(0, kept * checkpoint - present) + result
    return DiskForecast(checkpoint, result, needed, shutil.disk_usage(training.folder).free)


def check_disk(training: Training) -> DiskForecast:
    """The forecast; raises UserError where not even one checkpoint and the result have room, and
    warns where not all of it has.
    """
    forecast = forecast_disk(training)
    if forecast.free < forecast.checkpoint + forecast.result:
        raise UserError(
            f"the disk of {training.folder} has {in_words(forecast.free)} free; a checkpoint of "
            f"{in_words(forecast.checkpoint)} and the result of {in_words(forecast.result)} "
            "have no room",
            hint="make room, or name another place: --runs FOLDER",
        )
    if forecast.free < forecast.needed:
        training.warn(
            f"{forecast}: where it becomes full, only the newest checkpoint and the best one stay"
        )
    return forecast
