"""`hone info`: this machine as a run would find it, what is installed, and what could be."""

import os
import platform
import shutil
from pathlib import Path
from typing import Any

from hone.cli.arguments import RUNS_FOLDER, AsJson, RunsFolder
from hone.cli.output import print_json, print_table

# What decides how fast a CPU multiplies; other flags are left out.
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "sve")


def info(runs: RunsFolder = RUNS_FOLDER, as_json: AsJson = False) -> None:
    """Describe this machine and what is installed.

    Device, memory, number formats, versions, the cache, and the extras with what each adds.

    \b
    Example:
      hone info
      hone info --json
    """
    described = describe(runs)
    if as_json:
        print_json(described)
    else:
        _print(described)


def describe(runs: Path) -> dict[str, Any]:
    """All that `hone info` prints, as JSON. Sizes are in bytes."""
    from hone.data.prepared import default_cache_folder
    from hone.runs import installed_versions, list_runs

    return {
        **_machine(),
        "versions": {**installed_versions(), "system": platform.platform()},
        "cache": _folder(default_cache_folder().parent),
        "runs": {"folder": str(runs.absolute()), "count": len(list_runs(runs))},
        "extras": _extras(),
    }


def _machine() -> dict[str, Any]:
    """What torch and the system say; the formats are those that `precision: auto` takes."""
    import torch

    from hone.device import (
        choose_device,
        choose_precision,
        count_cores,
        resident_bytes,
        total_memory_bytes,
    )

    device, cpu = choose_device("auto"), torch.device("cpu")
    precision = choose_precision("auto", device, trains_weights=False)
    names = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    usable = total_memory_bytes(cpu)
    return {
        "device": device.type,
        "gpus": [{"name": each.name, "memory": each.total_memory} for each in names],
        "cuda": torch.version.cuda,
        "precision": {
            "format": str(precision.compute).removeprefix("torch."),
            "reason": precision.reason,
        },
        "cpu": {
            **_cpu(),
            "cores": os.cpu_count(),
            "usable_cores": len(os.sched_getaffinity(0)),
            "threads": count_cores(),
        },
        "memory": {
            "machine": total,
            "limit": usable if usable < total else None,
            "hone": resident_bytes(),
        },
    }


def _cpu() -> dict[str, Any]:
    """Its name and those features that matter, as Linux tells them."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    parted = [line.partition(":") for line in reversed(lines)]  # the first processor counts
    told = {key.strip(): text.strip() for key, _, text in parted}
    flags = f"{told.get('flags', '')} {told.get('Features', '')}".split()
    return {
        "name": told.get("model name") or platform.processor() or platform.machine(),
        "features": [feature for feature in FEATURES if feature in flags],
    }


def _folder(path: Path) -> dict[str, Any]:
    """A folder's size and the room beside it; it need not exist."""
    files = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
    parent = next(place for place in (path, *path.parents) if place.exists())
    return {
        "folder": str(path),
        "size": sum(file.lstat().st_size for file in files if file.exists()),
        "free": shutil.disk_usage(parent).free,
    }


def _extras() -> dict[str, Any]:
    from hone.extras import EXTRAS, install_command, is_installed

    return {
        name: {
            "installed": is_installed(name),
            "adds": extra.adds,
            "command": install_command(name),
        }
        for name, extra in EXTRAS.items()
    }


def _print(described: dict[str, Any]) -> None:
    cpu, memory, cache = described["cpu"], described["memory"], described["cache"]
    precision, versions = described["precision"], described["versions"]
    limit = f", {_size(memory['limit'])} for this process" if memory["limit"] else ""
    cores = f"{cpu['usable_cores']} of {cpu['cores']} cores, {cpu['threads']} threads by default"
    gpus = [("gpu", f"{gpu['name']}, {_size(gpu['memory'])}") for gpu in described["gpus"]]
    rows = [
        ("device", described["device"]),
        *(gpus or [("gpu", "none that torch can use")]),
        ("cpu", cpu["name"]),
        ("", cores),
        ("", " ".join(cpu["features"]) or "no features known"),
        ("memory", f"{_size(memory['machine'])}{limit}"),
        ("precision", f"{precision['format']}: {precision['reason']}"),
        ("cache", f"{cache['folder']}, {_size(cache['size'])}; {_size(cache['free'])} free"),
        ("runs", f"{described['runs']['folder']}, {described['runs']['count']} there"),
    ]
    print_table(rows)
    print()
    print_table([(name, version or "not installed") for name, version in versions.items()])
    print()
    extras = [
        (name, "installed" if extra["installed"] else extra["command"], extra["adds"])
        for name, extra in described["extras"].items()
    ]
    print_table([("EXTRA", "", "ADDS"), *extras])


def _size(count: int) -> str:
    """Bytes as they are read: "1.5 GB", of 10^9 bytes."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
