"""The cases of `verify`: what the checks say of one run that was made before.

`prove` gives the outcome of a recipe whose name begins with `proven-`: the check that follows is
made of the run, with the settings of `verify` that the recipe has.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from rich.console import Console

from hone.errors import UserError
from hone.estimate.measure import Measured
from hone.files import write_json
from hone.recipe.load import load_recipe
from hone.runs import Run, create_run
from hone.stages.run import run_recipe
from hone.verify.examine import CHECKS, make_checks
from hone.verify.memory import compare
from hone.verify.subject import Subject
from tests.recipe.cases import Case, case

RECIPE = """
model: llama
seed: 5
threads: 1
stages:
  - grpo:
      data: rows.jsonl
      rewards: [reward.py:sometimes]
      adapter: {rank: 4}
      batch: {samples: 2}
      group: 3
      completion_tokens: 6
      steps: 2
      learning_rate: 0.01
      precision: fp32
      max_failures: 0.9
      evaluation: {share: 0.5, every: 10}
  - sft:
      data: rows.jsonl
      adapter: full
      batch: {samples: 8}
      steps: 10
      learning_rate: 0.01
      precision: fp32
      evaluation: {data: other.jsonl, every: 10}
verify: {forgetting: [rows.jsonl]}
"""

STATUS = "statuses"
MEASURED = (Measured(0, 600, {}), Measured(0, 1000, {}))  # an adapter, and full fine-tuning
VERIFY: dict[str, tuple[str, Case]] = {
    "": ("", case("verify=null", differs="asked")),
    "measure": ("learning", case("measure=contains", differs="values")),
    "samples": ("loss", case("samples=3", differs="values")),
    "completion_tokens": ("stages", case("completion_tokens=1", differs="values")),
    "leave_out": ("loss", case("leave_out=[loss]", differs=STATUS)),
    "forgetting": ("forgetting", case("forgetting=[]", differs=STATUS)),
}
# (threshold before, changed one): with one the run passes, with the other it does not.
THRESHOLDS: dict[str, tuple[float, float]] = {
    "loss": (0.05, 1),
    "learning": (0.3, 1),
    "parameters": (0.8, 1),
    "memory": (0.3, 0.5),
    "merged": (1e-3, 1e-12),
    "forgetting": (100, 0),  # on a text that nothing of the training resembles
    "format": (0, 1),
    "failures": (1, 0),
    "constant": (1, 0),
}
REWARDS = ("format", "failures", "constant")


def all_cases(data: Mapping[str, Case]) -> Iterator[tuple[str, str, tuple[str, Case]]]:
    """(path below `verify`, prefix of its overrides, (name of the recipe, case)). data: the cases
    of any data source.
    """
    for path, (check, each) in VERIFY.items():
        yield path, "verify", (f"proven-{check}", each)
    for name, (before, after) in THRESHOLDS.items():
        noise = ["verify.forgetting=[noise.jsonl]"] if name == "forgetting" else []
        place = f"verify.thresholds.{name}"  # `memory` alone is a key of the recipe itself
        changed = case(f"{place}={after}", start=(*noise, f"{place}={before}"), differs=STATUS)
        check = "rewards" if name in REWARDS else name
        yield f"thresholds.{name}", "verify", (f"proven-{check}", changed)
    for path, each in data.items():
        differs = "error" if "error" in each.differs else "values"
        of_set = Case(each.changes, differs, each.start)
        yield f"forgetting.{path}", "verify.forgetting[0]", ("proven-forgetting", of_set)


def is_proven(recipe: str) -> bool:
    """True for a recipe whose settings are held against a run that was made before."""
    return recipe.startswith("proven-")


def write_files(folder: Path) -> None:
    """The recipe, and a set that the model forgets."""
    (folder / "proven.yaml").write_text(RECIPE)
    rows = [{"text": "".join(chr(33 + (n * m) % 15) for m in range(20))} for n in range(1, 9)]
    (folder / "noise.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@cache
def make_run(folder: Path) -> Run:
    """The run that all of these look at; other runs come and go beside it."""
    run = create_run(load_recipe(folder / "proven.yaml"), "run", folder / "proven")
    with run.attempt():
        run_recipe(run, console=Console(quiet=True))
    return run


@cache
def rewarded_run(folder: Path) -> Subject:
    """The run opened once: answers are scored once. No case of theirs changes what is asked."""
    return Subject(make_run(folder))


def prove(folder: Path, recipe: str, overrides: tuple[str, ...]) -> dict[str, str]:
    """Statuses and values of all parts of a check, and whether the run is verified at its end."""
    run, check, error = make_run(folder), recipe.removeprefix("proven-"), ""
    statuses: list[object] = []
    values: list[object] = []
    asked = ""
    try:
        loaded = load_recipe(folder / "proven.yaml", overrides)
        copy = Run(folder / "asked")
        shutil.copytree(run.path, copy.path)
        write_json(copy.path / "recipe.resolved.json", loaded.resolved)
        asked = str(copy.lacks_verdicts())
        others = [name for name in CHECKS if name != check]
        scores = check in ("rewards", "learning")
        subject = rewarded_run(folder) if scores else Subject(run)
        given = loaded.recipe.verify or subject.settings
        left_out = [*given.leave_out, *others]
        subject.settings = given.model_copy(update={"leave_out": left_out})
        if check == "memory":
            # This model is too small for the check; what was measured of another one stands in.
            part = compare(subject, subject.stages[0], *MEASURED)
            return {"statuses": part.status, "values": "", "asked": "", "error": ""}
        for verdict in make_checks(subject, resume=False):
            if verdict.name == check:
                statuses = [verdict.status, *((part.of, part.status) for part in verdict.parts)]
                values = [(part.of, part.value, part.n, part.details) for part in verdict.parts]
                values += [verdict.value, verdict.n]
                if verdict.status == "failed" and not verdict.parts:
                    error = verdict.reason
    except UserError as refused:
        error = refused.message
    finally:
        shutil.rmtree(folder / "asked", ignore_errors=True)
    found = {"statuses": json.dumps(statuses), "values": json.dumps(values, default=repr)}
    return {**found, "asked": asked, "error": error}
