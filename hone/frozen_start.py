"""The trained parameters as they were at the start of a stage: the reference of a KL term.

Only what is trained is kept, in the stage's `start/` and in the memory, never a second model. Used
by `rollouts.py`, which has the log-probabilities of rollouts computed with them in place.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from safetensors.torch import load_file, save_file

from hone.checkpoints import find_fault, list_checkpoints, write_folder
from hone.errors import UserError
from hone.models import LanguageModel
from hone.signals import uninterrupted
from hone.training import Training

FOLDER, FILE = "start", "trained.safetensors"


class FrozenStart:
    """A copy of the trained parameters of a model."""

    def __init__(self, model: LanguageModel, tensors: dict[str, torch.Tensor]) -> None:
        self.model = model
        self.tensors = {name: tensor.to(model.device) for name, tensor in tensors.items()}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model is what it was at the start; nothing is to be trained there.

        A stop is only raised by `check_stop` there, so that no checkpoint can have these weights.
        """
        with uninterrupted():
            self._swap()
            try:
                yield
            finally:
                self._swap()

    def _swap(self) -> None:
        for name, parameter in self.model.trainable():
            parameter.data, self.tensors[name] = self.tensors[name], parameter.data


def open_start(training: Training) -> FrozenStart:
    """The reference of a stage: the parameters as they are before step 1, kept in `start/`; or what
    is kept there, where the stage goes on from a checkpoint.

    Raises UserError where it goes on and they are not there any more.
    """
    folder = training.folder / FOLDER
    if list_checkpoints(training.checkpoints):
        if fault := find_fault(folder):
            raise UserError(
                f"`{folder}`, the weights at the start of the stage that its KL term needs, cannot "
                f"be used: {fault}",
                hint="put the folder back, or start a new run",
            )
        return FrozenStart(training.model, load_file(folder / FILE))
    tensors = {
        name: parameter.detach().cpu().clone().contiguous()
        for name, parameter in training.model.trainable()
    }
    write_folder(folder, lambda path: save_file(tensors, path / FILE))
    return FrozenStart(training.model, tensors)
