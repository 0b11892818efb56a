"""Bytes of tensors that hold no numbers: who is alive, and the most that was at once.

The engine's own forward, backward and update run on fake tensors (shapes and devices without
storage); every operation passes here. What kernels take inside and what the allocator keeps is not
seen: `allocator.py` adds that.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from hone.attention import forget_masks

aten = torch.ops.aten


class Storages(TorchDispatchMode):
    """Counts the bytes of all storages that operations inside have made and that are still alive.

    live, peak: bytes now, and the most since `restart`.
    """

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self.fake = fake
        self.live = self.peak = 0
        self.known: dict[int, int] = {}

    def restart(self) -> int:
        """Begin a new peak; returns what is alive."""
        self.peak = self.live
        return self.live

    def count(self, tensor: torch.Tensor) -> None:
        """Take a tensor's storage into the count, if it is not there yet."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.known:
            return
        self.known[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self.forget, key).atexit = False

    def forget(self, key: int) -> None:
        """A storage is gone."""
        self.live -= self.known.pop(key)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # What depends on numbers that are not there: nothing is too small, all sums are finite.
        if function is aten.nonzero.default:
            return args[0].new_empty((0, args[0].dim()), dtype=torch.long)
        if function is aten._local_scalar_dense.default:
            return 1
        found = function(*args, **(kwargs or {}))
        for each in tree_iter(found):
            if isinstance(each, torch.Tensor):
                self.count(each)
        return found


@contextmanager
def counted() -> Iterator[Storages]:
    """Inside, tensors hold no numbers and are counted."""
    forget_masks()  # those of real work are none of this one's, nor the other way round
    with FakeTensorMode() as fake:
        try:
            with Storages(fake) as storages:
                yield storages
        finally:
            forget_masks()
