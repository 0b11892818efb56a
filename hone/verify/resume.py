"""The check `resume`: a slice of the run done again twice, once with a kill in its middle.

Made only when asked for. The first steps of each stage are trained again in fresh processes, from
the stage's start and what lock.json holds: once without interruption; once with SIGKILL to the
whole process group between two checkpoints, and resumed. Both have to be the same to the byte, and
their rows of metrics those that the run itself recorded. Checkpoints are written more often than in
the run, which changes no row. All of it is in a temporary folder; the run is only read. Left out:
later steps, and the stages that would take too long.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from hone.changes import describe_accepted
from hone.comparison import compare_runs
from hone.data.prepared import default_cache_folder
from hone.errors import UserError
from hone.files import read_json_lines
from hone.metrics import read_metrics
from hone.recipe.load import load_resolved
from hone.reproduction import find_input_changes, locked_values
from hone.runs import Run, create_run
from hone.signals import check_stop
from hone.verify.replay import KILL
from hone.verify.subject import StageResult, Subject
from hone.verify.verdicts import (
    Found,
    NotApplicableError,
    Part,
    join_parts,
    not_applicable,
    status_of,
)

HOW = (
    "the first steps of each stage trained again in fresh processes, once through and once with "
    "SIGKILL in the middle and resumed; checkpoints, rollouts and metrics compared byte by byte, "
    "and metrics with those of the run"
)
STEPS = 4  # of a slice: a checkpoint, a step, the kill, a checkpoint
LIMIT_S = (
    300.0  # what all slices may take by the clock of the run itself; the last stage's may more
)
POLL_S = 0.2


@dataclass(frozen=True)
class Slice:
    """The first `steps` steps of a stage. seconds: what they took the run."""

    stage: StageResult
    steps: int
    seconds: float

    @property
    def kill(self) -> int:
        """The step after which it is killed: one after a checkpoint, where it has two."""
        return min(STEPS - 1, self.steps)

    @property
    def newest(self) -> int:
        """The step of the checkpoint that is there then; 0 for none."""
        return self.kill - 1

    @property
    def every(self) -> int:
        """Steps between checkpoints."""
        return max(1, self.newest)


def check_resume(subject: Subject) -> Found:
    """A killed and resumed slice of each stage ends in the bytes of one that never was."""
    check_repeatable(subject.run)
    slices, parts = choose(subject.stages)
    place = default_cache_folder().parent
    place.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="verify-resume-", dir=place) as folder:
        parts += replay_all(subject, slices, Path(folder))
    return join_parts(sorted(parts, key=lambda part: part.of))


def check_repeatable(run: Run) -> None:
    """Raises NotApplicableError where data or model are not there as they were."""
    changes = describe_accepted(run) or [each.in_words() for each in find_input_changes(run)]
    if changes:
        raise NotApplicableError(f"it cannot be trained again from what is here: {changes[0]}")


def choose(stages: Sequence[StageResult]) -> tuple[list[Slice], list[Part]]:
    """The slices that are done again, from the last stage on while there is time, and why others
    are not.
    """
    chosen: list[Slice] = []
    left_out: list[Part] = []
    total = 0.0
    for stage in reversed(stages):
        rows = [r for r in read_metrics(stage.folder / "metrics.jsonl") if "split" not in r]
        steps = min(STEPS, len(rows))
        seconds = sum(row.get("step_s", 0.0) for row in rows[:steps])
        if not steps:
            left_out.append(not_applicable(stage.name, "it has no step"))
        elif chosen and total + seconds > LIMIT_S:
            reason = f"{steps} steps take {seconds:.0f} s, with later stages more than {LIMIT_S:g}"
            left_out.append(not_applicable(stage.name, reason))
        else:
            chosen.append(Slice(stage, steps, seconds))
            total += seconds
    return chosen, left_out


def replay_all(subject: Subject, slices: Sequence[Slice], folder: Path) -> list[Part]:
    """Do all slices again below `folder`, which is empty, and compare."""
    through = [make_run(subject.run, each, folder / "through") for each in slices]
    killed = [make_run(subject.run, each, folder / "killed") for each in slices]

    def ends(runs: Sequence[Run], steps: Sequence[int]) -> list[tuple[Run, int, int]]:
        numbers = [each.stage.index + 1 for each in slices]
        return list(zip(runs, numbers, steps, strict=True))

    last = [each.steps for each in slices]
    subject.told("resume: slices without interruption")
    start(ends(through, last), folder)
    for end in ends(killed, [each.kill for each in slices]):
        subject.told(f"resume: stage {end[1]}, killed")
        start([end], folder, kill=True)
    subject.told("resume: killed slices go on")
    start(ends(killed, last), folder)
    return [
        part
        for each, one, other in zip(slices, through, killed, strict=True)
        for part in compare(subject.run, each, one, other)
    ]


def make_run(run: Run, each: Slice, folder: Path) -> Run:
    """A run that begins with the slice's stage: what comes before is linked to, read only."""
    found = run.loaded_recipe()
    resolved = deepcopy(found.resolved)
    resolved["stages"][each.stage.index][each.stage.method]["checkpoint"] = {"every": each.every}
    loaded = load_resolved(resolved, found.folder)
    text = (run.path / "recipe.yaml").read_text()
    made = create_run(replace(loaded, text=text), each.stage.name, folder, lock=locked_values(run))
    link(run.path / "base", made.path / "base")
    for before in run.stage_folders()[: each.stage.index]:
        beside = made.path / before.relative_to(run.path)
        for name in ("model", "metrics.jsonl"):
            link(before / name, beside / name)
    return made


def link(source: Path, target: Path) -> None:
    """Have what is there under another name as well."""
    if source.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source)


def start(ends: Sequence[tuple[Run, int, int]], folder: Path, kill: bool = False) -> None:
    """Work on each run up to its (stage, step) in one fresh process group. Raises UserError where
    that ends otherwise than it should.
    """
    words = [str(word) for run, stage, step in ends for word in (run.path, stage, step)]
    command = [sys.executable, "-m", "hone.verify.replay", *([KILL] if kill else []), *words]
    log = folder / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        code = wait(process)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if code != (-signal.SIGKILL if kill else 0):
        said = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
        raise UserError(
            f"a slice could not be done again, its process ended with {code}: {said[-1]}"
        )


def wait(process: "subprocess.Popen[bytes]") -> int:
    """What a process ends with; a stop that is asked for meanwhile is raised."""
    while True:
        try:
            return process.wait(POLL_S)
        except subprocess.TimeoutExpired:
            check_stop()


def compare(run: Run, each: Slice, through: Run, killed: Run) -> Iterator[Part]:
    """The two slices with each other, and the rows of one with those of the run."""
    name, steps = each.stage.name, each.steps
    begun = resumed_from(killed.path / each.stage.folder.relative_to(run.path))
    both = compare_runs(through, killed)
    # What is linked to has no checkpoints.
    faults = [text for text in both.missing if text.startswith(f"{name}:")]
    faults += [both.first.in_words()] if both.first else []
    faults += [f"expected to go on from step {each.newest}"] if begun != each.newest else []
    told = "; ".join(faults) or f"the same bytes after step {steps}"
    yield Part(
        f"{name} killed and resumed",
        status_of(not faults),
        max(len(both.files), len(faults)),
        0,
        both.num_files + both.rows,
        f"killed after step {each.kill}, gone on from step {begun}: {told}",
    )
    recorded = compare_runs(run, through, until=(each.stage.index + 1, steps))
    told = recorded.first.in_words() if recorded.first else "the same"
    changes = run.version_changes()
    told += f"; other versions than then: {', '.join(changes)}" if changes else ""
    yield Part(
        f"{name} as recorded",
        status_of(recorded.same),
        int(not recorded.same),
        0,
        recorded.rows,
        f"metrics up to step {steps} beside those of the run: {told}",
    )


def resumed_from(stage_folder: Path) -> int | None:
    """The step of the checkpoint that the latest attempt at a stage began with."""
    rows = read_json_lines(stage_folder / "metrics.jsonl")
    found = [row["resumed_from"] for row in rows if "resumed_from" in row]
    return found[-1] if found else None
