"""What a stage will take on the disk, said before step 1; the figures are upper bounds.

Called by `stages/` and by `estimate/`, which says the same of the memory.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel
from torch import nn

from hone.checkpoints import folder_bytes
from hone.errors import UserError
from hone.memory import in_words
from hone.recipe.training import TrainingStage
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


def forecast_disk(
    module: nn.Module, settings: TrainingStage, total_steps: int, folder: Path
) -> DiskForecast:
    """What checkpoints and result of a stage will take on the disk of its folder."""
    named = list(module.named_parameters())
    saved = [  # of an adapter also what is frozen below it
        parameter
        for name, parameter in named
        if not isinstance(module, PeftModel) or parameter.requires_grad or ".lora_" in name
    ]
    result = sum(parameter.numel() * parameter.element_size() for parameter in saved)
    count = sum(parameter.numel() for _, parameter in named if parameter.requires_grad)
    checkpoint = result + count * STATE_BYTES[settings.optimizer.type][1]
    kept = settings.checkpoint.keep + 1  # the one that is being written
    kept += settings.evaluation is not None  # the best one
    if settings.checkpoint.keep_every:
        kept += total_steps // settings.checkpoint.keep_every
    present = folder_bytes(folder / "checkpoints")
    needed = max(0, kept * checkpoint - present) + result
    return DiskForecast(checkpoint, result, needed, shutil.disk_usage(folder).free)


def check_disk(training: Training) -> DiskForecast:
    """The forecast; raises UserError where not even one checkpoint and the result have room, and
    warns where not all of it has.
    """
    forecast = forecast_disk(
        training.model.module, training.settings, training.total_steps, training.folder
    )
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
