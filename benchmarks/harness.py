"""What all benchmarks share: fresh processes in rounds, the same floor, medians, table and JSON.

A benchmark (`sft.py`, `dpo.py`, `grpo.py`) is a `Benchmark` and `run` of it. Makes the workload,
runs every contender in a fresh process, round after round in rotating order, and prints medians as
a table and as JSON. Every contender of a whole pass must have done the same work. Left out:
judging; the numbers are for a quiet machine, and the load before and after is printed with them.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.measure import Outcome, Request, now
from benchmarks.report import (
    check_same_work,
    compute_curve_distance,
    compute_ratios,
    make_lines,
    make_table,
    rotations,
    share_of_peak,
    spread,
    summarise,
)
from benchmarks.workload import (
    LONGEST_SAMPLED,
    NUM_COMPLETIONS,
    SHAPES,
    Workload,
    describe_lengths,
    write_workload,
)

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets")
FEW_STEPS = 5  # of contenders that are too slow for a whole pass
SAMPLED_APART = 0.03  # share of tokens by which contenders may differ that sample their own


@dataclass(frozen=True)
class Contender:
    """system: the module that runs it. settings: what differs from what that module sets.

    few: only some steps, not a pass. extra: measured only when asked for.
    """

    system: str
    settings: dict[str, Any] = field(default_factory=dict)
    few: bool = False
    extra: bool = False


@dataclass(frozen=True)
class Benchmark:
    """method: what is measured, a key of `workload.ROWS`. columns: of the table. rate: what the
    ratio is of, in words. sizes: (rows of a pass, rows a step) for "quick", "cpu" and "cuda".
    contenders: those of (device, bf16 is worth a whole pass of TRL's). sampled: every contender
    draws its own completions.
    """

    method: str
    description: str
    columns: tuple[str, ...]
    rate: str
    sizes: dict[str, tuple[int, int]]
    contenders: Callable[[str, bool], dict[str, Contender]]
    sampled: bool = False


def run(benchmark: Benchmark, given: Sequence[str] | None = None) -> int:
    """Measure, print, write the JSON; returns the exit status."""
    arguments = read_arguments(benchmark, given)
    console = make_console()
    if arguments.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            console.print("skipped: this machine has no usable CUDA device")
            return 0
    workload = choose_workload(benchmark, arguments)
    contenders = choose_contenders(benchmark, arguments)
    lengths, machine = describe_lengths(workload), describe_machine(arguments.device)
    for line in describe(workload, lengths, machine, arguments.threads):
        console.print(line, highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory(prefix="hone-bench-") as place:
        write_workload(workload, Path(place))
        outcomes = measure(contenders, arguments, Path(place), console)
    machine["load_after"] = round(os.getloadavg()[0], 2)
    found = conclude(benchmark, outcomes, contenders, workload, machine)
    console.print(make_table(found["summary"], benchmark.columns))
    for line in make_lines(found["ratios"], found["curve"], benchmark.rate):
        console.print(line, highlight=False, soft_wrap=True)
    document = {
        "workload": asdict(workload),
        "lengths": lengths,
        "threads": arguments.threads,
        "machine": machine,
        **found,
        "rounds": [asdict(each) for one in outcomes.values() for each in one],
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(document, indent=2))
    console.print(f"written to {arguments.json}", highlight=False, soft_wrap=True)
    return 0


def read_arguments(benchmark: Benchmark, given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; an unknown contender ends it with the names there are."""
    name = benchmark.method
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=benchmark.description
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds of all contenders")
    parser.add_argument("--samples", type=int, help="rows of a pass")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", action="append", metavar="CONTENDER", help="may be repeated")
    parser.add_argument("--all", action="store_true", help="the extra contenders too")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="a tiny model and one short round")
    parser.add_argument("--json", type=Path, default=RESULTS / f"{name}.json", metavar="PATH")
    arguments = parser.parse_args(given)
    known = benchmark.contenders(arguments.device, False)
    for name in arguments.only or []:
        if name not in known:
            parser.error(f'--only "{name}": expected some of: {", ".join(known)}')
    return arguments


def choose_workload(benchmark: Benchmark, arguments: argparse.Namespace) -> Workload:
    """The workload of a device; `--quick` shrinks everything."""
    size = "quick" if arguments.quick else arguments.device
    rows, batch = benchmark.sizes[size]
    shape = SHAPES[{"quick": "tiny", "cpu": "40m", "cuda": "0.5b"}[size]]
    rank = {"rank": 4, "alpha": 8} if arguments.quick else {}
    return Workload(shape, arguments.samples or rows, batch, benchmark.method, **rank)


def choose_contenders(benchmark: Benchmark, arguments: argparse.Namespace) -> dict[str, Contender]:
    """Those asked for, or all that are measured by default."""
    import torch

    from hone.device import has_fast_bf16

    fast = has_fast_bf16(torch.device(arguments.device))
    known = benchmark.contenders(arguments.device, fast)
    if arguments.only:
        return {name: known[name] for name in known if name in arguments.only}
    return {name: each for name, each in known.items() if arguments.all or not each.extra}


def describe_machine(device: str) -> dict[str, Any]:
    """What the numbers depend on."""
    found: dict[str, Any] = {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(os.getloadavg()[0], 2),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    if device == "cuda":
        import torch

        found["device"] = torch.cuda.get_device_name()
    return found


def describe(
    workload: Workload, lengths: dict[str, Any], machine: dict[str, Any], threads: int
) -> list[str]:
    """What is measured, in words."""
    shape = workload.shape
    quantiles = ", ".join(f"{name} {tokens}" for name, tokens in lengths["total_quantiles"].items())
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    counted = {
        "sft": f"{lengths['tokens']:,} tokens, {lengths['trained_tokens']:,} trained",
        "dpo": f"{lengths['tokens']:,} tokens with each prompt once, "
        f"{lengths['trained_tokens']:,} of completions",
        "grpo": f"{NUM_COMPLETIONS} completions of up to {LONGEST_SAMPLED} tokens for each, "
        "that end where the end token is drawn",
    }[workload.method]
    completions = f"completion {lengths['completion_median']:.0f}, "
    return [
        f"Llama of {shape.count_weights():,} weights (hidden {shape.hidden_size}, "
        f"{shape.num_hidden_layers} layers, vocabulary {shape.vocab_size:,}), "
        f"LoRA {workload.rank} on all linear layers",
        f"{lengths['samples']} rows, {workload.batch} a step, {lengths['steps']} steps a pass; "
        f"{counted}",
        f"medians: prompt {lengths['prompt_median']:.0f}, "
        f"{completions if lengths['completion_median'] else ''}tokens; "
        f"the longest sequence of a row: {quantiles}",
        f"{machine.get('device', 'CPU')}, {machine['cores']} cores, {threads} threads, "
        f"load {machine['load_before']} before; {versions}",
    ]


def make_console() -> Console:
    """Wide enough for the table where nobody looks on."""
    return Console() if sys.stdout.isatty() else Console(width=150)


def measure(
    contenders: dict[str, Contender],
    arguments: argparse.Namespace,
    folder: Path,
    console: Console,
) -> dict[str, list[Outcome]]:
    """All rounds; a line for every process that is done."""
    outcomes: dict[str, list[Outcome]] = {name: [] for name in contenders}
    rounds = 1 if arguments.quick else arguments.rounds
    for number, order in enumerate(rotations(list(contenders), rounds), 1):
        for name in order:
            found = run_contender(
                name,
                contenders[name],
                number=number,
                folder=folder,
                scratch=folder / "scratch",
                device=arguments.device,
                threads=arguments.threads,
            )
            outcomes[name].append(found)
            summary = summarise([found])
            console.print(
                f"round {number}  {name}: {summary['samples_per_s']:.2f} rows/s, "
                f"{summary['step_s']:.2f} s a step, "
                f"{summary['peak_memory_bytes'] / 2**20:,.0f} MiB  ({found.note})",
                highlight=False,
                soft_wrap=True,
            )
    return outcomes


def run_contender(
    name: str,
    contender: Contender,
    *,
    number: int,
    folder: Path,
    scratch: Path,
    device: str,
    threads: int,
) -> Outcome:
    """Measure one contender in a fresh process; raises RuntimeError with the end of its log where
    it fails.
    """
    place = scratch / f"{number}-{name.replace(' ', '-')}"
    place.mkdir(parents=True)
    request = Request(
        contender=name,
        round=number,
        folder=folder,
        scratch=place,
        device=device,
        threads=threads,
        settings=contender.settings,
        max_steps=FEW_STEPS if contender.few else None,
        started=now(),
    )
    request.write(place / "request.json")
    command = [sys.executable, "-m", f"benchmarks.{contender.system}", str(place / "request.json")]
    log = place / "log.txt"
    with log.open("w") as file:
        done = subprocess.run(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=surroundings(place, threads),
            check=False,
        )
    if done.returncode != 0:
        tail = "\n".join(log.read_text().splitlines()[-30:])
        raise RuntimeError(f'"{name}" ended with {done.returncode}:\n{tail}')
    return Outcome.read(place / "outcome.json")


def surroundings(scratch: Path, threads: int) -> dict[str, str]:
    """The environment of every contender: the same threads, no network, caches that nobody has
    filled, since references computed before are work.
    """
    return {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(scratch / "huggingface"),
        "HONE_CACHE": str(scratch / "hone"),
    }


def conclude(
    benchmark: Benchmark,
    outcomes: dict[str, list[Outcome]],
    contenders: dict[str, Contender],
    workload: Workload,
    machine: dict[str, Any],
) -> dict[str, Any]:
    """Medians, ratios and the curve; raises ValueError where contenders did other work."""
    full = [name for name in outcomes if not contenders[name].few]
    whole = [each for name in full for each in outcomes[name]]
    apart = SAMPLED_APART if benchmark.sampled else 0.0
    counts = check_same_work(whole, apart) if full else {}
    summaries = {name: summarise(found) for name, found in outcomes.items()}
    for name, found in outcomes.items():
        summaries[name]["spread"] = spread(found)
        share = counts and share_of_peak(
            workload, counts, summaries[name], machine.get("device", "")
        )
        if share:
            summaries[name]["share_of_peak"] = share
    curve = {}
    if not benchmark.sampled and "hone" in outcomes and "hone fp32" in outcomes:
        curve = compute_curve_distance(outcomes["hone"], outcomes["hone fp32"])
    return {
        "counts": counts,
        "summary": summaries,
        "ratios": compute_ratios(summaries, full),
        "curve": curve,
    }
