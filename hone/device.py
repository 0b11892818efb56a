"""The device, the number format with its reason, seeds as pure functions, and measured memory.

Used by `fit.py` and `stages/`; which seeds there are is said in `seeds.py`.
"""

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from hone.errors import UserError
from hone.seeds import derive_seed


@dataclass(frozen=True)
class Precision:
    """weights: format of the stored weights; compute: format of the arithmetic; reason: why, in
    words.

    Frozen weights are stored in the compute format. Weights that are trained stay in fp32 and are
    cast on use.
    """

    weights: torch.dtype
    compute: torch.dtype
    reason: str

    @property
    def casts(self) -> bool:
        """True where the arithmetic's format differs from the weights'."""
        return self.weights != self.compute


def choose_device(device: str) -> torch.device:
    """`auto`, `cpu` or `cuda` to a torch device; raises UserError for an accelerator that is not
    there.
    """
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            'device is "cuda" but this machine has no usable CUDA device',
            hint="set `device: cpu`, or leave it out to take what there is",
            exit_code=2,
        )
    return torch.device("cuda")


def describe_device(device: torch.device) -> dict[str, str]:
    """kind, name and capability: what may change the bytes of a result from machine to machine."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name = torch.cuda.get_device_name(device)
        return {"kind": "cuda", "name": name, "capability": f"{major}.{minor}"}
    listed = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", listed, re.MULTILINE)
    name = found.group(1).strip() if found else platform.processor() or platform.machine()
    return {"kind": "cpu", "name": name, "capability": torch.backends.cpu.get_cpu_capability()}


def make_deterministic(device: torch.device) -> None:
    """On CUDA: kernels that give the same bytes every time, and no tuning by timing."""
    if device.type != "cuda":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def has_fast_bf16(device: torch.device) -> bool:
    """True where bf16 products are faster than fp32: AVX512-BF16 or AMX on a CPU, Ampere or newer
    on CUDA.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = Path("/proc/cpuinfo")
    words = flags.read_text().split() if flags.exists() else []
    return "avx512_bf16" in words or "amx_bf16" in words


def choose_precision(setting: str, device: torch.device, *, trains_weights: bool) -> Precision:
    """The recipe's `precision` to number formats; `auto` takes bf16 where the device is faster with
    it.
    """
    fast = has_fast_bf16(device)
    where = "this GPU" if device.type == "cuda" else "this CPU"
    if setting == "auto":
        name = "bf16" if fast else "fp32"
        reason = f"{where} {'multiplies bf16 faster' if fast else 'has no fast bf16 arithmetic'}"
    else:
        name, reason = setting, "set in the recipe"
    compute = {"bf16": torch.bfloat16, "fp32": torch.float32}[name]
    if trains_weights and compute == torch.bfloat16:
        return Precision(torch.float32, compute, f"{reason}; trained weights stay in fp32")
    return Precision(compute, compute, reason)


def seed_torch(*parts: int | str) -> None:
    """Seed torch's generators on all devices from `parts`."""
    torch.manual_seed(derive_seed(*parts))


def use_threads(threads: int) -> None:
    """Use `threads` CPU threads; the count is part of what exactness depends on."""
    torch.set_num_threads(threads)


def count_cores() -> int:
    """Cores this process may run on, or OMP_NUM_THREADS where it is set."""
    wished = os.environ.get("OMP_NUM_THREADS", "")
    return int(wished) if wished.isdigit() and int(wished) > 0 else len(os.sched_getaffinity(0))


def total_memory_bytes(device: torch.device) -> int:
    """All memory of the device: of the GPU, or of the machine (the control group's limit where it
    is lower).
    """
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return min(total, int(text)) if text.isdigit() else total


def data_bytes() -> int:
    """Private memory this process has asked for (VmData): what `RLIMIT_DATA` counts."""
    return _status_bytes("VmData")


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory held since the start or the last reset: the GPU's allocator, or this
    process's VmHWM.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status_bytes("VmHWM")


def resident_bytes() -> int:
    """Memory this process holds now (VmRSS)."""
    return _status_bytes("VmRSS")


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement of the peak, where the system allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def _status_bytes(field: str) -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = re.search(rf"^{field}:\s+(\d+) kB", status.read_text(), re.MULTILINE)
    return int(found.group(1)) * 1024 if found else 0
