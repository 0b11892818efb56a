"""One contender's process: a run of a recipe, as `hone run` does it. Started by `harness.py`.

Nothing of Hone is replaced: steps are read from the run's metrics.jsonl, and what is printed tells
the clock and the memory when the stage began to compute and when references were there.
"""

import json
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measure import Memory, Outcome, Request, Step, now, read_request
from benchmarks.workload import LONGEST, Workload

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
    length = {"steps": request.max_steps} if request.max_steps else {"epochs": 1.0}
    stage = {
        "data": str(request.folder / "data.jsonl"),
        "adapter": {"rank": workload.rank, "alpha": float(workload.alpha)},
        "batch": {"samples": workload.batch},
        "learning_rate": workload.learning_rate,
        "schedule": "constant",
        "max_tokens": LONGEST,
        "checkpoint": {"every": 10**6},
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
    counted, from the prepared data and the order of the steps.
    """
    from hone.data.prepared import open_prepared
    from hone.metrics import read_metrics
    from hone.seeds import Order

    rows = read_metrics(run.stage_folder(0, method) / "metrics.jsonl")
    prepared = open_prepared(run.read_lock_json()["stages"]["1"]["data"]["key"])
    assert prepared is not None, "the prepared data is not in the cache"
    recipe = run.loaded_recipe().recipe
    order = Order(prepared.lengths, recipe.stages[0].settings.batch, recipe.seed, 0)
    ends = [0.0, *(row["time_s"] for row in rows)]
    steps = [
        Step(
            seconds=end - before,
            samples=row["samples"],
            tokens=int(prepared.lengths[order.samples_of(row["step"])].sum()),
            trained_tokens=row["trained_tokens"],
            loss=row["loss"],
        )
        for row, (before, end) in zip(rows, pairwise(ends), strict=True)
    ]
    return steps, ends[-1], max(row["peak_memory_bytes"] for row in rows)


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
        peak_bytes=max(memory.look(), peak),  # Hone starts a new peak at every step
        before_s=before_s,
        before_samples=workload.samples if before_s else 0,
        note="; ".join(line.partition(": ")[2] for line in said),
        steps=steps,
    ).write(request.scratch / "outcome.json")


if __name__ == "__main__":
    main()
