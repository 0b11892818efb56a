"""Hone against TRL, side by side: `make bench`, or `python -m benchmarks.sft --help`.

Makes the workload, runs every contender in a fresh process, round after round in rotating order,
and prints medians as a table and as JSON. Every contender of a whole pass must have trained the
same samples and tokens. Left out: judging; the numbers are for a quiet machine, and the load before
and after is printed with them.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.contenders import Contender, contenders_of, run_contender
from benchmarks.measure import Outcome
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
from benchmarks.workload import SHAPES, Workload, describe_lengths, write_workload

RESULTS = Path(__file__).parent / "results" / "sft.json"
PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets")


def read_arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; an unknown contender ends it with the names there are."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sft", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of all contenders")
    parser.add_argument("--samples", type=int, help="samples of a pass")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", action="append", metavar="CONTENDER", help="may be repeated")
    parser.add_argument("--all", action="store_true", help="the extra contenders too")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="a tiny model and one short round")
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="PATH")
    arguments = parser.parse_args(given)
    known = contenders_of(arguments.device, fast_bf16=False)
    for name in arguments.only or []:
        if name not in known:
            parser.error(f'--only "{name}": expected some of: {", ".join(known)}')
    return arguments


def choose_workload(arguments: argparse.Namespace) -> Workload:
    """The workload of a device; `--quick` shrinks everything."""
    if arguments.quick:
        return Workload(SHAPES["tiny"], arguments.samples or 24, 8, rank=4, alpha=8)
    if arguments.device == "cuda":
        return Workload(SHAPES["0.5b"], arguments.samples or 1280, 32)
    return Workload(SHAPES["40m"], arguments.samples or 320, 8)


def choose_contenders(arguments: argparse.Namespace) -> dict[str, Contender]:
    """Those asked for, or all that are measured by default."""
    import torch

    from hone.device import has_fast_bf16

    known = contenders_of(arguments.device, has_fast_bf16(torch.device(arguments.device)))
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
    return [
        f"Llama of {shape.count_weights():,} weights (hidden {shape.hidden_size}, "
        f"{shape.num_hidden_layers} layers, vocabulary {shape.vocab_size:,}), "
        f"LoRA {workload.rank} on all linear layers",
        f"{lengths['samples']} samples, {workload.batch} a step, {lengths['steps']} steps a pass; "
        f"{lengths['tokens']:,} tokens, {lengths['trained_tokens']:,} trained",
        f"medians: prompt {lengths['prompt_median']:.0f}, "
        f"completion {lengths['completion_median']:.0f} tokens; both together: {quantiles}",
        f"{machine.get('device', 'CPU')}, {machine['cores']} cores, {threads} threads, "
        f"load {machine['load_before']} before; {versions}",
    ]


def make_console() -> Console:
    """Wide enough for the table where nobody looks on."""
    return Console() if sys.stdout.isatty() else Console(width=140)


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
                f"round {number}  {name}: {summary['samples_per_s']:.2f} samples/s, "
                f"{summary['peak_memory_bytes'] / 2**20:,.0f} MiB  ({found.note})",
                highlight=False,
                soft_wrap=True,
            )
    return outcomes


def conclude(
    outcomes: dict[str, list[Outcome]],
    contenders: dict[str, Contender],
    workload: Workload,
    machine: dict[str, Any],
) -> dict[str, Any]:
    """Medians, ratios and the curve; raises ValueError where contenders did other work."""
    full = [name for name in outcomes if not contenders[name].few]
    counts = check_same_work([each for name in full for each in outcomes[name]]) if full else {}
    summaries = {name: summarise(found) for name, found in outcomes.items()}
    for name, found in outcomes.items():
        summaries[name]["spread"] = spread(found)
        share = counts and share_of_peak(
            workload, counts, summaries[name], machine.get("device", "")
        )
        if share:
            summaries[name]["share_of_peak"] = share
    curve = {}
    if "hone" in outcomes and "hone fp32" in outcomes:
        curve = compute_curve_distance(outcomes["hone"], outcomes["hone fp32"])
    return {
        "counts": counts,
        "summary": summaries,
        "ratios": compute_ratios(summaries, full),
        "curve": curve,
    }


def main(given: Sequence[str] | None = None) -> int:
    """Measure, print, write the JSON; returns the exit status."""
    arguments = read_arguments(given)
    console = make_console()
    if arguments.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            console.print("skipped: this machine has no usable CUDA device")
            return 0
    workload, contenders = choose_workload(arguments), choose_contenders(arguments)
    lengths, machine = describe_lengths(workload), describe_machine(arguments.device)
    for line in describe(workload, lengths, machine, arguments.threads):
        console.print(line, highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory(prefix="hone-bench-") as place:
        write_workload(workload, Path(place))
        outcomes = measure(contenders, arguments, Path(place), console)
    machine["load_after"] = round(os.getloadavg()[0], 2)
    found = conclude(outcomes, contenders, workload, machine)
    console.print(make_table(found["summary"]))
    for line in make_lines(found["ratios"], found["curve"]):
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


if __name__ == "__main__":
    sys.exit(main())
