"""The process of a rehearsal: plays every stage of a sliced run and tells what it sees.

Started by `rehearse.py` as `python -m hone.rehearsal.play RUN`. Each stage makes step 1, is stopped
with its checkpoint, is resumed by a fresh attempt, makes step 2 and saves its result, which the
next stage starts from; all of it is the code of `hone run`. Then each result is loaded again and
goes through the `TRIALS`. What is seen goes to stdout, a JSON object a line.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from hone.device import choose_device
from hone.errors import UserError
from hone.metrics import Row, read_metrics
from hone.model_files import Trust
from hone.recorded import list_rollout_files
from hone.rehearsal.slices import STEPS
from hone.rewards.worker import end_with
from hone.runs import Run
from hone.sampling import load_artifact
from hone.signals import StepReached
from hone.stages.data import StageData
from hone.stages.methods import WORK
from hone.stages.run import find_result, quieten_libraries, run_recipe
from hone.stages.start import Start, open_tokenizer
from hone.stages.tasks import Tasks
from hone.vocabulary import add_tokens

ANSWER_TOKENS = 16
PLAIN_PROMPT_TOKENS = 8  # of a text that has no prompt

Tell = Callable[[str, Any], None]
"""Is given what kind of thing was seen (doing, stage, note, fault) and what it was."""


@dataclass(frozen=True)
class Played:
    """What the two steps of a stage took, by its own metrics.

    stage: from 1. step_s, tokens_per_s: of the faster step, the other one may have had to warm up;
    of those that sampled, where the stage does. sampling_s: seconds of it for sampling and scoring.
    held_out: the loss (or reward) before step 1
    and after step 2, None where nothing is held out. trials: what came of each trial of the result.
    """

    stage: int
    method: str
    step_s: float
    tokens_per_s: float
    peak_memory_bytes: int
    sampling_s: float
    sampled_tokens_per_s: float
    held_out: tuple[float, float] | None
    trials: dict[str, str]


def main(path: str) -> int:
    """Play the run in this folder; 0 where all went well, 1 where a fault was told."""
    end_with(os.getppid())
    quieten_libraries()

    def tell(kind: str, value: Any) -> None:
        print(json.dumps({kind: value}), flush=True)

    run = Run(Path(path))
    try:
        play(run, tell)
    except UserError as error:
        tell("fault", {"where": reached(run), "message": error.message, "hint": error.hint})
        return 1
    finally:
        for note in notes_of(run):
            tell("note", note)
    return 0


def play(run: Run, tell: Tell) -> None:
    """All stages, each stopped once, then the trials of each result."""
    stages = run.loaded_recipe().recipe.stages
    for index, stage in enumerate(stages):
        before = f"; stage {index} resumed and finished" if index else ""
        tell("doing", f"stage {index + 1} {stage.method}: step 1 and a checkpoint{before}")
        attempt(run, until=(index + 1, 1))
    tell("doing", f"stage {len(stages)} {stages[-1].method}: resumed and finished")
    attempt(run)
    for index, stage in enumerate(stages):
        tell("doing", f"stage {index + 1} {stage.method}: the result, loaded again")
        tell("stage", asdict(played(run, index)))


def attempt(run: Run, until: tuple[int, int] | None = None) -> None:
    """One attempt at the run, which ends after (stage from 1, step); trackers stay out of it."""
    try:
        with run.attempt():
            run_recipe(run, console=Console(quiet=True), until=until, tracks=False)
    except StepReached:
        pass


def reached(run: Run) -> str:
    """How far the run is, in words: the stage that has begun last, and its last step."""
    folders = run.stage_folders()
    if not folders:
        return "before stage 1"
    number, _, method = folders[-1].name.partition("-")
    steps = [row["step"] for row in read_metrics(folders[-1] / "metrics.jsonl")]
    told = f"after step {max(steps)}" if steps else "before step 1"
    return f"stage {number} {method}, {told}"


def notes_of(run: Run) -> list[str]:
    """What the run has warned of, and rollouts that were not scored."""
    notes = [str(event["message"]) for event in run.events() if event["event"] == "warning"]
    for file in list_rollout_files(run.stage_folders()):
        rollouts = file.read()
        failures = [rollout.failure for rollout in rollouts if rollout.failure is not None]
        if failures:
            notes.append(
                f"stage {file.stage.replace('-', ' ', 1)}: {len(failures)} of {len(rollouts)} "
                f"answers could not be scored ({failures[0]})"
            )
    return list(dict.fromkeys(notes))


def played(run: Run, index: int) -> Played:
    """What a finished stage's metrics say, and the trials of its result.

    Raises UserError for a held-out loss that is not finite.
    """
    method = run.loaded_recipe().recipe.stages[index].method
    rows = read_metrics(run.stage_folder(index, method) / "metrics.jsonl")
    steps = [row for row in rows if "split" not in row]
    assert [row["step"] for row in steps] == list(range(1, STEPS + 1)), "a step is missing"
    whole = [row for row in steps if "sampling_s" in row] or steps
    faster = max(whole, key=lambda row: float(row["tokens_per_s"]))
    return Played(
        stage=index + 1,
        method=method,
        step_s=faster["step_s"],
        tokens_per_s=faster["tokens_per_s"],
        peak_memory_bytes=max(row["peak_memory_bytes"] for row in steps),
        sampling_s=faster.get("sampling_s", 0.0) + faster.get("scoring_s", 0.0),
        sampled_tokens_per_s=faster.get("sampled_tokens_per_s", 0.0),
        held_out=held_out_of([row for row in rows if "split" in row]),
        trials={name: trial(run, index) for name, trial in TRIALS.items()},
    )


def held_out_of(rows: list[Row]) -> tuple[float, float] | None:
    """What is measured on held-out samples first and last: the loss, or the reward."""
    if not rows:
        return None
    found = [row["loss"] if "loss" in row else row.get("reward") for row in rows]
    finite = [float(value) for value in found if value is not None and math.isfinite(value)]
    if len(finite) < len(found):
        raise UserError(
            "what is measured on held-out samples is not finite",
            hint="look at the held-out rows, or try `precision: fp32`",
        )
    return finite[0], finite[-1]


# What is tried with a result: a function from the run and the stage (from 0) to what came of it,
# in words; it raises UserError where it fails.


def answer_once(run: Run, index: int) -> str:
    """The greedy answer of the saved result to the first prompt that the stage has."""
    recipe = run.loaded_recipe().recipe
    trust = Trust.of(recipe.trust)
    began = time.perf_counter()
    artifact = load_artifact(find_result(run, index), choose_device(recipe.device), trust=trust)
    ids = first_prompt(run, index, trust)
    (drawn,) = artifact.generate([ids], max_new_tokens=ANSWER_TOKENS)
    taken = time.perf_counter() - began
    prompt, answer = map(artifact.renderer.tokenizer.decode, (ids, drawn))
    return f"{prompt[-60:]!r} is answered with {answer!r} ({taken:.1f} s with loading)"


TRIALS: dict[str, Callable[[Run, int], str]] = {"answer": answer_once}


def first_prompt(run: Run, index: int, trust: Trust) -> list[int]:
    """The tokens before the first trained one of the stage's first sample or task; of a text whose
    every token is trained, its beginning.
    """
    recipe = run.loaded_recipe().recipe
    stage = recipe.stages[index]
    start = Start.at(find_result(run, index - 1 if index else "base"), trust)
    tokenizer = open_tokenizer(start)
    add_tokens(tokenizer, stage.settings.add_tokens)
    work: Any = WORK[stage.method](run, recipe, index, Console(quiet=True))
    material: StageData | Tasks = work.open_material(tokenizer)
    if isinstance(material, Tasks):
        return list(material.questions[0].ids)
    segment = material.training[0].segments[0]
    trained = segment.trained.nonzero()[0]
    before = int(trained[0]) if len(trained) else len(segment.tokens)
    return [int(token) for token in segment.tokens[: before or PLAIN_PROMPT_TOKENS]]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
