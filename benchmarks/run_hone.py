"""One contender's process: a run of a recipe, as `hone run` does it. Started by `harness.py`.

Nothing of Hone is replaced: steps are read from the run's metrics.jsonl, and what is printed tells
the clock and the memory when the stage began to compute and when references were there.
"""

import json
from collections.abc import Callable
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import reward
from benchmarks.measure import Memory, Outcome, Request, Step, now, read_request
from benchmarks.workload import LONGEST, LONGEST_SAMPLED, NUM_COMPLETIONS, Workload

if TYPE_CHECKING:
    from hone.runs import Run


BEGUN, REFERENCE = ": step 0 of ", "reference: the policy"  # what Hone prints at these moments


class Watch(StringIO):
    """The console's file: every text printed is a moment to look at the memory and the clock."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.memory = memory
        self.seen: dict[str, float] = {}

    def write(self, text: str) -> int:
        self.memory.look()
        for sign in (BEGUN, REFERENCE):
            if sign in text:
                self.seen.setdefault(sign, now())
        print(text, end="", flush=True)
        return super().write(text)


def write_recipe(request: Request, workload: Workload) -> Path:
    """The workload as a recipe; everything that is not said here is Hone's default."""
    data = str(request.folder / "data.jsonl")
    own: dict[str, dict[str, Any]] = {
        "sft": {"data": data, "max_tokens": LONGEST},
        "dpo": {"data": data, "max_tokens": LONGEST},
        "grpo": {
            "data": data,
            "rewards": [f"{Path(reward.__file__).resolve()}:{reward.even.__name__}"],
            "group": NUM_COMPLETIONS,
            "completion_tokens": LONGEST_SAMPLED,
            "loss": "dapo",
        },
    }
    length = {"steps": request.max_steps} if request.max_steps else {"epochs": 1.0}
    stage = {
        "adapter": {"rank": workload.rank, "alpha": float(workload.alpha)},
        "batch": {"samples": workload.batch},
        "learning_rate": workload.learning_rate,
        "schedule": "constant",
        "checkpoint": {"every": 10**6},
        **own[workload.method],
        **length,
        **request.settings,
    }
    recipe = {
        "model": str(request.folder / "model"),
        "device": request.device,
        "threads": request.threads,
        "stages": [{workload.method: stage}],
    }
    path = request.scratch / "recipe.yaml"
    path.write_text(json.dumps(recipe, indent=2))  # JSON is YAML
    return path


def read_steps(run: "Run", method: str) -> tuple[list[Step], float, int]:
    """(steps, seconds of all of them, peak memory of any).

    The metrics count the tokens the model was run over, filling included; here the samples' own are
    counted.
    """
    from hone.metrics import read_metrics

    folder = run.stage_folder(0, method)
    rows = read_metrics(folder / "metrics.jsonl")
    tokens_of = count_sampled(folder) if method == "grpo" else count_prepared(run)
    ends = [0.0, *(row["time_s"] for row in rows)]
    steps = [
        Step(
            seconds=end - before,
            samples=row["samples"],
            tokens=tokens_of(row["step"]),
            trained_tokens=row["trained_tokens"],
            loss=row["loss"],
        )
        for row, (before, end) in zip(rows, pairwise(ends), strict=True)
    ]
    return steps, ends[-1], max(row["peak_memory_bytes"] for row in rows)


def count_prepared(run: "Run") -> Callable[[int], int]:
    """The tokens of a step, from the prepared data and the order of the steps."""
    from hone.data.prepared import open_prepared
    from hone.seeds import Order

    prepared = open_prepared(run.read_lock_json()["stages"]["1"]["data"]["key"])
    assert prepared is not None, "the prepared data is not in the cache"
    recipe = run.loaded_recipe().recipe
    order = Order(prepared.lengths, recipe.stages[0].settings.batch, recipe.seed, 0)
    return lambda step: int(prepared.lengths[order.samples_of(step)].sum())


def count_sampled(folder: Path) -> Callable[[int], int]:
    """The tokens of a step, from what was sampled for it: each prompt once."""
    from hone.recorded import TRAINING, groups_of, read_rollouts, rollouts_path

    def count(step: int) -> int:
        groups = groups_of(read_rollouts(rollouts_path(folder, TRAINING, step)) or [])
        return sum(len(g[0].prompt_ids) + sum(len(each.ids) for each in g) for g in groups)

    return count


def main() -> None:
    """Do what the request says and leave `outcome.json` beside it."""
    request = read_request()
    workload = Workload.read(request.folder)
    from rich.console import Console

    from hone.recipe.load import load_recipe
    from hone.runs import create_run
    from hone.stages.run import run_recipe

    trainer_at = now()
    memory = Memory(request.device)
    watch = Watch(memory)
    loaded = load_recipe(write_recipe(request, workload))
    run = create_run(loaded, "measured", request.scratch / "runs")
    with run.attempt():
        run_recipe(run, console=Console(file=watch, width=200))
    steps, pass_s, peak = read_steps(run, workload.method)
    steps_from = max(watch.seen.values())
    before_s = steps_from - watch.seen[BEGUN]
    said = [
        line for line in watch.getvalue().splitlines() if "precision" in line or "layout" in line
    ]
    Outcome(
        contender=request.contender,
        round=request.round,
        to_trainer_s=trainer_at - request.started,
        to_first_step_s=steps_from + steps[0].seconds - request.started,
        pass_s=pass_s + before_s,
        floor_bytes=memory.floor,
        peak_bytes=max(memory.look(), peak + memory.beside),  # each step starts a new peak
        before_s=before_s,
        before_samples=workload.samples if before_s else 0,
        note="; ".join(line.partition(": ")[2] for line in said),
        steps=steps,
    ).write(request.scratch / "outcome.json")


if __name__ == "__main__":
    main()
