"""The memory a run may hold: a limit of its own, what running out of it looks like, a forecast.

On a CPU the system ends a process that takes too much, and nothing can be caught; under a limit of
its own (`RLIMIT_DATA`) the allocation fails instead and torch raises. `fit.py` then cuts the step
into smaller pieces. Used by `stages/`, `fit.py` and `hone check`.
"""

import ctypes
import gc
import resource

import torch

from hone.device import data_bytes, total_memory_bytes
from hone.errors import UserError
from hone.recipe.node import size_bytes
from hone.recipe.schema import Memory

SMALLEST_ROOM = 64 * 2**20  # bytes that must be left to begin with at all

# What torch, oneDNN and the C++ library say when an allocation fails; seen on a CPU.
OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "could not create a primitive",
    "could not create a memory",
    "bad_alloc",
    "bad allocation",
)


def limit_bytes(memory: Memory | None, device: torch.device) -> int:
    """The recipe's limit, or what the machine has where that is less or none is given."""
    whole = total_memory_bytes(device)
    return min(whole, size_bytes(memory.limit)) if memory else whole


def check_limit(memory: Memory | None, device: torch.device) -> None:
    """Raises UserError for a limit that is less than what a process holds before it has a model."""
    held = data_bytes()
    if memory is None or device.type == "cuda" or held + SMALLEST_ROOM <= size_bytes(memory.limit):
        return
    raise UserError(
        f'memory.limit: "{memory.limit}" is too little: Hone and its libraries hold '
        f"{in_words(held)} before a model is loaded",
        hint=f"expected at least memory: {{limit: {1 + (held + SMALLEST_ROOM) // 10**6}MB}}",
        exit_code=2,
    )


def use_memory_limit(memory: Memory | None, device: torch.device) -> int:
    """Hold this process to the recipe's limit, or to what the machine has; returns the bytes.

    Raises UserError for a limit that is less than what the process holds before it has a model.
    """
    whole, limit = total_memory_bytes(device), limit_bytes(memory, device)
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(limit / whole, device)
        return limit
    check_limit(memory, device)
    _, highest = resource.getrlimit(resource.RLIMIT_DATA)
    soft = limit if highest == resource.RLIM_INFINITY else min(limit, highest)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, highest))
    return limit


def usable_memory_bytes(device: torch.device) -> int:
    """What the device has, or the process's limit where that is lower."""
    whole = total_memory_bytes(device)
    soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
    return whole if device.type == "cuda" or soft == resource.RLIM_INFINITY else min(whole, soft)


def is_out_of_memory(error: BaseException) -> bool:
    """True for what torch and Python raise where an allocation failed."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


def release_memory(device: torch.device) -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:  # glibc keeps what was freed in pieces; other C libraries have no such call
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim:
            trim(0)


def in_words(count: float) -> str:
    """Bytes with a unit: 8.2 GB."""
    for unit in ("bytes", "kB", "MB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"
