"""From outcomes to medians, ratios and the table. Pure functions; used by `harness.py`.

Throughput leaves step 1 out for everybody (it warms caches and kernels up); the time of the whole
pass has it. What is computed for every sample before step 1 counts in both, sample by sample.
Tokens are those of the samples, so that padding counts as time and never as work.
"""

from collections.abc import Callable, Sequence
from statistics import mean, median
from typing import Any

from rich.table import Table

from benchmarks.measure import Outcome
from benchmarks.workload import Workload

LAST = 5  # steps that "final loss" and the smoothed loss are the mean of
CURVE_LIMIT = 0.01  # up to which two loss curves count as the same

# Dense bf16 FLOP/s by a part of the device's name; from the makers' data sheets.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}

Summary = dict[str, Any]


def summarise(outcomes: Sequence[Outcome]) -> Summary:
    """Medians over the rounds of one contender."""
    parts = [_of_one(outcome) for outcome in outcomes]
    names = parts[0].keys()
    return {name: median(part[name] for part in parts) for name in names}


def _of_one(outcome: Outcome) -> dict[str, float]:
    steps = outcome.steps[1:]
    samples = sum(step.samples for step in steps)
    seconds = sum(step.seconds for step in steps)
    if outcome.before_samples:
        seconds += samples * outcome.before_s / outcome.before_samples
    return {
        "samples_per_s": samples / seconds,
        "tokens_per_s": sum(step.tokens for step in steps) / seconds,
        "trained_tokens_per_s": sum(step.trained_tokens for step in steps) / seconds,
        "step_s": seconds / len(steps),
        "before_s": outcome.before_s,
        "peak_memory_bytes": outcome.peak_bytes - outcome.floor_bytes,
        "to_trainer_s": outcome.to_trainer_s,
        "to_first_step_s": outcome.to_first_step_s,
        "trainer_to_first_step_s": outcome.to_first_step_s - outcome.to_trainer_s,
        "pass_s": outcome.pass_s,
        "steps": len(outcome.steps),
        "final_loss": mean(step.loss for step in outcome.steps[-LAST:]),
    }


def check_same_work(outcomes: Sequence[Outcome], tolerance: float = 0.0) -> dict[str, int]:
    """Samples, tokens and trained tokens of a pass; raises ValueError where contenders differ.

    tolerance: the share by which tokens may differ, where every contender samples its own.
    """
    found = {
        (outcome.contender, outcome.round): {
            name: sum(getattr(step, name) for step in outcome.steps)
            for name in ("samples", "tokens", "trained_tokens")
        }
        for outcome in outcomes
    }
    first = next(iter(found.values()))
    for (name, number), counts in found.items():
        far = any(abs(counts[each] - first[each]) > tolerance * first[each] for each in counts)
        if far or counts["samples"] != first["samples"]:
            raise ValueError(f'"{name}" did other work in round {number}: {counts}, not {first}')
    return first


def compute_ratios(summaries: dict[str, Summary], full: Sequence[str]) -> dict[str, Any]:
    """Hone against the fastest of TRL's contenders that made a whole pass, and against the one with
    the least memory.
    """
    rivals = [name for name in full if name.startswith("trl")]
    if "hone" not in summaries or not rivals:
        return {}
    hone = summaries["hone"]
    fastest = max(rivals, key=lambda name: summaries[name]["samples_per_s"])
    leanest = min(rivals, key=lambda name: summaries[name]["peak_memory_bytes"])
    best = summaries[fastest]
    return {
        "trl_best": fastest,
        "samples_per_s": hone["samples_per_s"] / best["samples_per_s"],
        "pass": best["pass_s"] / hone["pass_s"],
        "memory": hone["peak_memory_bytes"] / best["peak_memory_bytes"],
        "trl_leanest": leanest,
        "memory_against_leanest": hone["peak_memory_bytes"]
        / summaries[leanest]["peak_memory_bytes"],
    }


def running_means(losses: Sequence[float], width: int) -> list[float]:
    """The mean of every `width` neighbours; of all where there are fewer."""
    width = min(width, len(losses))
    return [mean(losses[n : n + width]) for n in range(len(losses) - width + 1)]


def compute_curve_distance(
    outcomes: Sequence[Outcome], exact: Sequence[Outcome]
) -> dict[str, float]:
    """The largest relative difference of two loss curves over all rounds, of single steps and
    smoothed.

    fallen: the share by which the exact loss falls, so that it is seen that there was something to
    differ in.
    """
    steps: list[float] = []
    smoothed: list[float] = []
    fallen = []
    for one, other in zip(outcomes, exact, strict=True):
        a, b = ([step.loss for step in each.steps] for each in (one, other))
        steps += _relative(a, b)
        smoothed += _relative(running_means(a, LAST), running_means(b, LAST))
        means = running_means(b, LAST)
        fallen.append(1 - means[-1] / means[0])
    return {"steps": max(steps), "smoothed": max(smoothed), "fallen": median(fallen)}


def _relative(found: Sequence[float], expected: Sequence[float]) -> list[float]:
    return [abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True)]


def count_flops(workload: Workload, tokens: float, trained_tokens: float) -> float:
    """Floating-point operations that steps with frozen weights need.

    Two for each weight and token going forward and two going back (no gradients of the weights);
    the head only at trained tokens. Adapters and attention over short samples are left out.
    """
    head = workload.shape.hidden_size * workload.shape.vocab_size
    return 4 * (workload.shape.count_layer_weights() * tokens + head * trained_tokens)


def share_of_peak(
    workload: Workload, counts: dict[str, int], summary: Summary, device_name: str
) -> float | None:
    """Share of the device's arithmetic that the needed operations take; None where its peak is not
    known.
    """
    peak = next((flops for name, flops in PEAK_FLOPS.items() if name in device_name), None)
    if peak is None:
        return None
    trained = summary["tokens_per_s"] * counts["trained_tokens"] / counts["tokens"]
    return count_flops(workload, summary["tokens_per_s"], trained) / peak


COLUMNS: dict[str, Callable[[Summary], str]] = {
    "samples/s": lambda found: f"{found['samples_per_s']:.2f}",
    "pairs/s": lambda found: f"{found['samples_per_s']:.2f}",
    "steps/h": lambda found: f"{3600 / found['step_s']:,.0f}",
    "sampled tokens/s": lambda found: f"{found['trained_tokens_per_s']:,.0f}",
    "tokens/s": lambda found: f"{found['tokens_per_s']:,.0f}",
    "s/step": lambda found: f"{found['step_s']:.3f}",
    "memory": lambda found: f"{found['peak_memory_bytes'] / 2**20:,.0f} MiB",
    "references": lambda found: f"{found['before_s']:.1f} s",
    "imports": lambda found: f"{found['to_trainer_s']:.1f} s",
    "to step 1": lambda found: f"{found['to_first_step_s']:.1f} s",
    "pass": lambda found: f"{found['pass_s']:.1f} s",
    "steps": lambda found: f"{found['steps']:.0f}",
    "final loss": lambda found: f"{found['final_loss']:.3f}",
    "spread": lambda found: f"{found['spread']:.2f}",
    "of peak": lambda found: f"{found['share_of_peak']:.1%}" if "share_of_peak" in found else "",
}


def make_table(summaries: dict[str, Summary], columns: Sequence[str]) -> Table:
    """A row for each contender."""
    table = Table(title="Medians over the rounds", title_justify="left")
    table.add_column("", no_wrap=True)
    if any("share_of_peak" in found for found in summaries.values()):
        columns = [*columns, "of peak"]
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for name, found in summaries.items():
        table.add_row(name, *(COLUMNS[column](found) for column in columns))
    return table


def make_lines(
    ratios: dict[str, Any], curve: dict[str, float], rate: str = "samples a second"
) -> list[str]:
    """The ratios and the curve in words."""
    lines = []
    if ratios:
        lines += [
            f"hone against TRL's fastest ({ratios['trl_best']}): "
            f"{ratios['samples_per_s']:.2f} times the {rate}, "
            f"{ratios['pass']:.2f} times over the whole pass, {ratios['memory']:.2f} of the memory",
            f"hone against TRL's leanest ({ratios['trl_leanest']}): "
            f"{ratios['memory_against_leanest']:.2f} of the memory",
        ]
    if curve:
        verdict = "within" if max(curve["steps"], curve["smoothed"]) <= CURVE_LIMIT else "OUTSIDE"
        lines.append(
            f"hone's loss against hone fp32: at most {curve['steps']:.3%} off in a step, "
            f"{curve['smoothed']:.3%} smoothed over {LAST} steps ({verdict} {CURVE_LIMIT:.0%}; "
            f"the loss falls by {curve['fallen']:.1%})"
        )
    return lines


def spread(outcomes: Sequence[Outcome]) -> float:
    """How far the rounds of a contender lie apart: fastest over slowest samples a second."""
    found = sorted(_of_one(outcome)["samples_per_s"] for outcome in outcomes)
    return found[-1] / found[0]


def rotations(names: Sequence[str], rounds: int) -> list[list[str]]:
    """The order of every round; each round begins with the next contender."""
    return [[*names[n % len(names) :], *names[: n % len(names)]] for n in range(rounds)]
