"""The peak of memory of a few steps, in a fresh process, above what it held after its imports.

`hone estimate --measure`, the benchmark's grid and the check `memory` of `hone verify` use it. The
steps are those of a real run in a folder of its own, which is deleted; data come from the cache.
"""

import copy
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

from hone.architecture import empty_model
from hone.device import choose_device, peak_memory_bytes, reset_peak_memory, resident_bytes
from hone.errors import UserError
from hone.memory import release_memory
from hone.metrics import read_metrics
from hone.recipe.load import LoadedRecipe, load_resolved
from hone.runs import Run, create_run
from hone.stages.run import prepare_base, quieten_libraries, run_recipe

STEPS = 3  # the first has no optimizer state yet, and the allocator's pieces settle
STEP_BEGINS, REFERENCE = ": step 0 of ", "reference: the policy"  # what a stage prints then
REQUEST, RESULT = "request.json", "measured.json"


@dataclass(frozen=True)
class Measured:
    """Bytes. floor: held after the imports; peak: the most, above the floor; phases: the same of
    loading, references, steps, and the last step with evaluation and saving.
    """

    floor: int
    peak: int
    phases: dict[str, int]


def measure_peak(
    loaded: LoadedRecipe,
    stage: int = 0,
    *,
    steps: int = STEPS,
    start: str | None = None,
    changes: Mapping[str, Any] | None = None,
    lock: Mapping[str, Any] | None = None,
) -> Measured:
    """Run the first `steps` steps of a stage (from 0) and tell what they took.

    start: where it starts, the recipe's model when left out. changes: settings of the stage that
    differ. lock: what the steps' run has in lock.json from the beginning, such as the data of a run
    that was made before. Raises UserError with the process's last words where it fails.
    """
    recipe = single_stage(loaded, stage, steps, start, changes or {})
    with tempfile.TemporaryDirectory(prefix="hone-measure-") as place:
        folder = Path(place)
        request = {"recipe": recipe, "folder": str(loaded.folder), "lock": dict(lock or {})}
        (folder / REQUEST).write_text(json.dumps(request))
        command = [sys.executable, "-m", "hone.estimate.measure", place]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            words = (done.stderr or done.stdout).strip().splitlines()
            raise UserError(
                f"the steps that were to be measured failed: {words[-1] if words else 'killed'}",
                hint="look at what `hone check` says of the recipe",
            )
        return Measured(**json.loads((folder / RESULT).read_text()))


def single_stage(
    loaded: LoadedRecipe, stage: int, steps: int, start: str | None, changes: Mapping[str, Any]
) -> dict[str, Any]:
    """The recipe of a few steps of one stage, as plain values."""
    recipe: dict[str, Any] = copy.deepcopy(loaded.resolved)
    ((method, settings),) = recipe["stages"][stage].items()
    settings |= {"epochs": None, "steps": steps, "warmup": 0, **changes}
    settings["checkpoint"] = {"every": steps, "keep": 1}
    if settings.get("evaluation"):
        settings["evaluation"] |= {"every": steps, "before": False, "early_stopping": None}
    recipe |= {"stages": [{method: settings}], "verify": None, "trackers": []}
    if start is not None:
        recipe["model"] = start
    return recipe


class _Watch(StringIO):
    """The console's file: what is printed says which phase has ended."""

    def __init__(self, look: Any) -> None:
        super().__init__()
        self.look = look

    def write(self, text: str) -> int:
        for sign, phase in ((STEP_BEGINS, "load"), (REFERENCE, "reference")):
            if sign in text:
                self.look(phase)
        return len(text)


def run_measured(
    recipe: dict[str, Any], folder: Path, place: Path, lock: dict[str, Any]
) -> Measured:
    """Do the steps in this process, whose run folder is made in `place`."""
    quieten_libraries()
    loaded = load_resolved(recipe, folder)
    run = create_run(loaded, "measured", place, lock=lock)
    device = choose_device(loaded.recipe.device)
    with run.attempt():
        start = prepare_base(run, loaded.recipe, Console(quiet=True))
        empty_model(start.base, start.trust)  # its modules are imports, too
        gc.collect()
        release_memory(device)
        floor = 0 if device.type == "cuda" else resident_bytes()
        phases: dict[str, int] = {}

        def look(phase: str) -> None:
            phases[phase] = peak_memory_bytes(device) - floor
            reset_peak_memory(device)

        reset_peak_memory(device)
        run_recipe(run, console=Console(file=_Watch(look), width=200))
        look("end")
    phases["step"] = _highest_step(run) - floor
    return Measured(floor, max(phases.values()), phases)


def _highest_step(run: Run) -> int:
    files = run.path.glob("stages/*/metrics.jsonl")
    rows = [row for file in files for row in read_metrics(file) if "split" not in row]
    return max(int(row["peak_memory_bytes"]) for row in rows)


def main() -> None:
    """Do what the request in a folder says and leave the result beside it."""
    place = Path(sys.argv[1])
    request = json.loads((place / REQUEST).read_text())
    try:
        found = run_measured(
            request["recipe"], Path(request["folder"]), place / "runs", request["lock"]
        )
    except UserError as error:
        sys.exit(error.message)
    (place / RESULT).write_text(json.dumps(asdict(found)))


if __name__ == "__main__":
    main()
