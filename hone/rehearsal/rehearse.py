"""`hone check --rehearse`: a recipe is played on a few rows, in a process and a folder of its own.

Called by `cli/check.py` where `hone check` has found no fault, so that all data are prepared. What
comes of it are findings as those of `check_recipe`, and a figure or two for each stage. The folder
holds data, cache and run of the rehearsal, and is removed however it ends, but for `kill -9`; the
process ends with this one. What is played and how: `play.py`; with what: `slices.py`.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hone.errors import UserError
from hone.memory import in_words
from hone.model_files import Trust
from hone.recipe.load import LoadedRecipe
from hone.recipe.schema import NewModel
from hone.recipe.training import DataStage
from hone.rehearsal.outlook import Outlook, data_outlook, forecast_s, tasks_outlook
from hone.rehearsal.play import Played
from hone.rehearsal.slices import slice_recipe
from hone.runs import create_run
from hone.signals import uninterrupted
from hone.stages.data import StageData, prepare_data, prepare_sources, split_data
from hone.stages.run import Finding, base_tokenizer, stage_tasks, stage_tokenizer, today

NAME = "rehearsal"


@dataclass(frozen=True)
class Rehearsal:
    """What came of it. stages: of each that was played to its end, what it took and `forecast_s`,
    the seconds that all its steps and evaluations will take at that pace.
    """

    findings: list[Finding]
    stages: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Figures as JSON; the findings stand with those of `hone check`."""
        return {"seconds": self.seconds, "stages": self.stages}


def rehearse(loaded: LoadedRecipe, told: Callable[[str], None] = lambda text: None) -> Rehearsal:
    """Play the recipe on a slice of its data. told: hears what is being done."""
    began = time.perf_counter()
    told("reading a slice of the data")
    with own_folder() as folder:
        material = [find_material(loaded, index) for index in range(len(loaded.recipe.stages))]
        outlooks = [make_outlook(loaded, index, data) for index, data in enumerate(material)]
        try:
            tokenizer = save_tokenizer(loaded, folder / "tokenizer")
            sliced = slice_recipe(loaded, material, folder / "data", tokenizer)
        except UserError as error:
            return Rehearsal([Finding("error", f"rehearsal: {error.message}", error.hint)])
        run = create_run(sliced, NAME, folder / "runs")
        findings, played = follow(run.path, folder, told)
    stages = [asdict(each) for each in played]
    for each, stage in zip(played, stages, strict=True):
        stage["forecast_s"] = round(forecast_s(outlooks[each.stage - 1], each), 1)
        findings += describe(each, outlooks[each.stage - 1])
    return Rehearsal(findings, stages, round(time.perf_counter() - began, 1))


@contextmanager
def own_folder() -> Iterator[Path]:
    """An empty folder that is gone afterwards, also where a stop signal ends the work."""
    folder = Path(tempfile.mkdtemp(prefix=f"hone-{NAME}-"))
    try:
        yield folder
    finally:
        with uninterrupted():
            shutil.rmtree(folder)


def find_material(loaded: LoadedRecipe, index: int) -> StageData | None:
    """The data that a stage of a run would have, from the cache; None where it samples."""
    settings = loaded.recipe.stages[index].settings
    if not isinstance(settings, DataStage):
        return None
    tokenizer = stage_tokenizer(loaded, index)
    sets = prepare_sources(
        settings, lambda _, data: prepare_data(settings, data, tokenizer, date=today())
    )
    return split_data(settings, *sets, loaded.recipe.seed, index)


def make_outlook(loaded: LoadedRecipe, index: int, data: StageData | None) -> Outlook:
    """How much a stage of a run would compute."""
    if data is not None:
        return data_outlook(data)
    return tasks_outlook(stage_tasks(loaded, index)[0])


def save_tokenizer(loaded: LoadedRecipe, folder: Path) -> Path:
    """The tokenizer that a run would make, where its model is a new one."""
    if isinstance(loaded.recipe.model, NewModel):
        tokenizer = base_tokenizer(loaded.recipe.model, Trust.of(loaded.recipe.trust))
        tokenizer.save_pretrained(folder)
    return folder


def follow(
    run: Path, folder: Path, told: Callable[[str], None]
) -> tuple[list[Finding], list[Played]]:
    """Play the run in a process of its own; returns what it found, and the stages it has played."""
    findings: list[Finding] = []
    played: list[Played] = []
    doing = "loading"
    with playing(run, folder) as process:
        assert process.stdout is not None
        for line in process.stdout:
            ((kind, value),) = json.loads(line).items()
            if kind == "doing":
                doing = value
                told(doing)
            elif kind == "stage":
                played.append(Played(**value))
            elif kind == "note":
                findings.append(Finding("note", f"rehearsal: {value}"))
            elif kind == "fault":
                message = f"rehearsal, {value['where']}: {value['message']}"
                findings.append(Finding("error", message, value["hint"]))
    ended = process.returncode
    if ended and not any(finding.severity == "error" for finding in findings):
        how = f"signal {-ended}" if ended < 0 else f"exit code {ended}"
        hint = "the system ends what takes too much memory: set `memory: {limit: ...}`"
        findings.append(
            Finding(
                "error",
                f"rehearsal, {doing}: the process ended with {how}",
                hint if ended == -9 else "what it said stands above; HONE_DEBUG=1 says more",
            )
        )
    return findings, played


@contextmanager
def playing(run: Path, folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """The process, with a cache and temporary files of its own; it is gone afterwards, and what it
    started with it.
    """
    temporary = folder / "temporary"
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "hone.rehearsal.play", str(run)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "HONE_CACHE": str(folder / "cache"), "TMPDIR": str(temporary)},
        start_new_session=True,  # a key press stops this process, which ends that one
    )
    try:
        yield process
        process.wait()
    finally:
        with uninterrupted():
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def describe(played: Played, outlook: Outlook) -> list[Finding]:
    """A stage's figures and what was tried with its result, as notes."""
    title = f"rehearsal, stage {played.stage} {played.method}"
    pace = f"{played.tokens_per_s:,.0f} tokens/s"
    if played.sampled_tokens_per_s:
        pace += f", {played.sampled_tokens_per_s:,.0f} sampled tokens/s"
    forecast = duration(forecast_s(outlook, played))
    lines = [
        f"a step takes {played.step_s:.2f} s ({pace}) and at most "
        f"{in_words(played.peak_memory_bytes)}; all {outlook.steps:,} steps take about {forecast}",
        *played.trials.values(),
    ]
    return [Finding("note", f"{title}: {line}") for line in lines]


def duration(seconds: float) -> str:
    """Seconds as a person says them: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
