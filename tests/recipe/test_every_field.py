"""Every field of a recipe has an effect: a change of it is seen in the result, or refused.

The fields are taken from the schema; the table says for each one where a run starts from, what is
changed and what has to differ. Runs are real ones of a tiny model, in this process. What is
compared is never the recipe itself.
"""

import hashlib
import io
import json
import os
import re
import shutil
import sqlite3
import types
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
import torch
from rich.console import Console
from torch.autograd.graph import saved_tensors_hooks

from hone.checkpoints import list_checkpoints
from hone.errors import UserError
from hone.metrics import canonical_metrics
from hone.recipe.load import load_recipe
from hone.recipe.node import Node
from hone.recipe.schema import STAGES, Recipe, Sft
from hone.runs import Run, create_run
from hone.stages.run import prepare_stage, run_recipe
from tests.recipe import cases_policy as policy
from tests.recipe import cases_preference as preference
from tests.recipe import cases_verify as proof
from tests.recipe.cases import Case
from tests.recipe.cases_supervised import (
    DATA,
    MLFLOW,
    REFUSED,
    SFT,
    STAGE,
    TENSORBOARD,
    TOGETHER,
    TOP,
    TWO_STAGES,
    WANDB,
)
from tests.recipe.ground import (
    write_adapters,
    write_hub_data,
    write_models,
    write_rows,
    write_stores,
)
from tests.trackers.reading import records_of

# --- The table -----------------------------------------------------------------------------------


def held_out(each: Case) -> Case:
    """A case of a data source as one of a source that is only evaluated on."""
    differs = each.differs.replace("weights", "metrics")
    return Case(each.changes, differs, each.start, same="" if "error" in differs else "weights")


def under(prefix: str, each: Case) -> Case:
    """The case with its overrides below `prefix`, but for keys of the top level and of a stage."""

    def written_out(override: str) -> str:
        top = re.split(r"[.=]", override)[0] in {*Recipe.model_fields, *STAGES}
        return override if top else f"{prefix}.{override}"

    changes, start = tuple(map(written_out, each.changes)), tuple(map(written_out, each.start))
    return Case(changes, each.differs, start, each.same)


def all_cases() -> dict[str, tuple[str, Case]]:
    """Dotted path of a field to (name of the recipe, case with its overrides written out)."""
    cases = {path: ("sft", each) for path, each in TOP.items()}
    for path, (recipe, each) in policy.all_cases(STAGE):
        cases[f"grpo.{path}"] = (recipe, under("grpo", each))
    for method, settings, data in (("sft", SFT, DATA), ("dpo", preference.STAGE, preference.DATA)):
        for path, each in settings.items():
            cases[f"{method}.{path}"] = (method, under(method, each))
        for path, each in data.items():
            place = f"{method}.data"
            cases[f"{place}.{path}"] = (method, under(place, each))
    for path, prefix, (recipe, each) in proof.all_cases(DATA):
        cases[f"verify.{path}".rstrip(".")] = (recipe, under(prefix, each))
    for path, each in DATA.items():
        place = "sft.evaluation.data"
        cases[f"{place}.{path}"] = ("sft-held-out", under(place, held_out(each)))
    return cases


def is_shared(path: str) -> bool:
    """True for a field that a method has in common with `sft`, where it has a case."""
    method, _, rest = path.partition(".")
    name = rest.split(".")[0]
    if method not in STAGES or method == "sft" or name not in Sft.model_fields:
        return False
    own, usual = (stage.model_fields[name].annotation for stage in (STAGES[method], Sft))
    return own == usual and f"sft.{rest}" in all_cases()


# --- The fields ----------------------------------------------------------------------------------


def fields_of(node: type[Node], prefix: str = "") -> Iterator[str]:
    """The dotted paths of all fields; those that are nothing but a node stand for what is in it."""
    for name, field in node.model_fields.items():
        path = f"{prefix}{name}"
        members = list(members_of(field.annotation))
        nodes = [each for each in members if isinstance(each, type) and issubclass(each, Node)]
        if len(nodes) < len(members):
            yield path
        for inner in nodes:
            kind = inner.model_fields.get("type")
            tag = f"{kind.default}." if kind else ""
            yield from fields_of(inner, "" if path == "stages" else f"{path}.{tag}")


def members_of(annotation: Any) -> Iterator[Any]:
    """The types that a field's annotation joins; a list counts besides what it holds."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from members_of(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from members_of(member)
    elif origin is list:
        yield list
        yield from members_of(get_args(annotation)[0])
    else:
        yield annotation


def test_the_table_has_exactly_the_fields_there_are() -> None:
    """What all methods have in common is the engine's: its cases are those of `sft`."""
    fields, cases = set(fields_of(Recipe)), set(all_cases())
    assert cases - fields == set()
    assert {path for path in fields - cases if not is_shared(path)} == set()


def test_the_walk_finds_what_stands_deep_in_a_union() -> None:
    class Inner(Node):
        type: Literal["inner"] = "inner"
        depth: int = 1

    class Outer(Node):
        inner: Annotated[Inner | None, "a note"] = None
        many: tuple[()] | list[Inner] = ()
        only: Inner = Inner()

    below = ["inner.inner.type", "inner.inner.depth", "many.inner.type", "many.inner.depth"]
    below += ["only.inner.type", "only.inner.depth"]
    assert sorted(fields_of(Outer)) == sorted(["inner", "many", *below])


# --- A run and what is seen of it ----------------------------------------------------------------

Outcome = dict[str, str]
"""weights: hash of the results' tensors. metrics: canonical. checkpoints: names of the folders.
tracked: what the trackers hold, and warnings. printed: what the person saw, speed aside.
kept: tensors kept for the way back. threads: torch's.
error: the message that ended the run.
"""
Observe = Callable[..., Outcome]

RECIPE = """
model: llama
seed: 5
threads: 1
stages:
  - METHOD:
      data: rows.jsonl
      batch: {samples: 4}
      steps: 3
      learning_rate: 0.01
      precision: fp32
      evaluation: {share: 0.3, every: 1}
      checkpoint: {every: 1}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with models, data and two recipes for each kind of stage."""
    folder = tmp_path_factory.mktemp("every-field")
    write_rows(folder)
    write_models(folder)
    write_adapters(folder)
    write_hub_data(folder)
    write_stores(folder)
    policy.write_files(folder)
    proof.write_files(folder)
    for method in ("pretrain", "sft", "dpo"):
        adapter = "      adapter: {type: full}\n"
        has_one = "adapter" in STAGES[method].model_fields
        recipe = RECIPE.replace("METHOD", method) + (adapter if has_one else "")
        (folder / f"{method}.yaml").write_text(recipe)
        recipe = recipe.replace("share: 0.3", "data: rows.jsonl")
        (folder / f"{method}-held-out.yaml").write_text(recipe)
    return folder


@pytest.fixture(scope="module")
def observe(folder: Path) -> Iterator[Observe]:
    """A function from (recipe, overrides) to the outcome of that run; each is made only once."""
    with pytest.MonkeyPatch.context() as patch:
        # What is compared has to be right, not to survive a power loss.
        patch.setattr(os, "fsync", lambda descriptor: None)
        for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_TR"))]:
            patch.delenv(name)
        patch.setenv("NETRC", str(folder / "no-netrc"))
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "hub")

        def observe(recipe: str, overrides: tuple[str, ...]) -> Outcome:
            if proof.is_proven(recipe):
                return proof.prove(folder, recipe, overrides)
            look = policy.judge if policy.is_judged(recipe) else run_once
            return look(folder, recipe, overrides)

        yield cache(observe)


def run_once(folder: Path, recipe: str, overrides: tuple[str, ...]) -> Outcome:
    """Run a recipe with overrides; the run directory has the same name each time."""
    console = Console(file=io.StringIO(), width=200)
    kept = Kept()
    error = ""
    try:
        try:
            loaded = load_recipe(folder / f"{recipe}.yaml", overrides)
            run = create_run(loaded, "run", folder / "runs")
            with run.attempt(), saved_tensors_hooks(kept.count, lambda tensor: tensor):
                run_recipe(run, console=console)
        except UserError as refused:
            error = refused.message
        return {
            **describe(Run(folder / "runs" / "run")),
            "printed": "\n".join(said(console)),
            "kept": f"{kept.tensors} tensors, {kept.numbers} numbers",
            "threads": str(torch.get_num_threads()),
            "error": error,
        }
    finally:
        shutil.rmtree(folder / "runs", ignore_errors=True)


class Kept:
    """Counts the tensors that a run keeps for its backward passes."""

    def __init__(self) -> None:
        self.tensors = self.numbers = 0

    def count(self, tensor: torch.Tensor) -> torch.Tensor:
        self.tensors += 1
        self.numbers += tensor.numel()
        return tensor


def describe(run: Run) -> Outcome:
    """What a run has left on disk, apart from its recipe."""
    stages = run.stage_folders()
    results = [path for stage in stages for path in sorted((stage / "model").glob("*.safetensors"))]
    metrics = [canonical_metrics(stage / "metrics.jsonl").decode() for stage in stages]
    found = [path for stage in stages for path in list_checkpoints(stage / "checkpoints")]
    warned = [event["message"] for event in run.events() if event["event"] == "warning"]
    return {
        "weights": " ".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in results),
        "metrics": "".join(metrics),
        "checkpoints": " ".join(str(path.relative_to(run.path)) for path in found),
        "tracked": json.dumps([*warned, *describe_trackers(run)]),
    }


def describe_trackers(run: Run) -> Iterator[Any]:
    """What the trackers' own files say about a run, apart from numbers that nobody chose."""
    for path in sorted((run.path / "trackers").glob("*.json")):
        told = json.loads(path.read_text())
        yield path.stem, told["state"], told["points"]
        if path.stem == "tensorboard":
            folder = Path(told["remote"]["folder"])
            files = sorted(folder.rglob("*.hone"))
            yield os.path.relpath(folder, run.path), [str(f.relative_to(folder)) for f in files]
    for path in (run.path / "trackers").glob("wandb/offline-run-*/*.wandb"):
        for record in records_of(path):
            if record.HasField("run"):
                made = record.run
                yield made.project, made.entity, made.display_name, made.run_group, [*made.tags]
    for name in ("store", "other"):
        yield from mlflow_runs(run.path.parents[1] / f"{name}.db", run.path.parent)


def mlflow_runs(store: Path, runs: Path) -> Iterator[Any]:
    """Experiment and number of values of the newest run, where this recipe's is in that store."""
    path = runs / "run" / "trackers" / "mlflow.json"
    number = json.loads(path.read_text())["remote"]["run_id"] if path.exists() else ""
    with closing(sqlite3.connect(store)) as database:
        query = (
            "SELECT e.name FROM experiments e JOIN runs USING (experiment_id) WHERE run_uuid = ?"
        )
        for (experiment,) in database.execute(query, (number,)).fetchall():
            query = "SELECT count(*) FROM metrics WHERE run_uuid = ?"
            yield store.name, experiment, database.execute(query, (number,)).fetchone()


def said(console: Console) -> Iterator[str]:
    """The lines on the console without those that tell the speed, or what is free on the disk."""
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    return (line for line in lines if "tokens/s" not in line and "disk: " not in line)


# --- The tests -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "each"), [pytest.param(*each, id=path) for path, each in all_cases().items()]
)
def test_the_field_has_an_effect(recipe: str, each: Case, observe: Observe) -> None:
    check(observe, recipe, each)


@pytest.mark.parametrize("each", TOGETHER.values(), ids=TOGETHER)
def test_what_goes_beyond_one_field(each: Case, observe: Observe) -> None:
    held_out = any("evaluation.data" in override for override in (*each.start, *each.changes))
    check(observe, "sft-held-out" if held_out else "sft", each)


def check(observe: Observe, recipe: str, each: Case) -> None:
    before = observe(recipe, each.start)
    assert not before["error"] or "error" in each.differs, before["error"]
    for change in each.changes:
        after = observe(recipe, (*each.start, change))
        assert not after["error"] or "error" in each.differs, f"{change}: {after['error']}"
        differing = {part for part in before if before[part] != after[part]}
        assert set(each.differs.split()) <= differing, f"{change} changes {sorted(differing)}"
        assert not differing & set(each.same.split()), f"{change} changes {sorted(differing)}"


@pytest.mark.parametrize(
    ("method", "overrides", "words"),
    [
        pytest.param(method, *each, id=str(each[0]))
        for method, table in {"sft": REFUSED, "dpo": preference.REFUSED}.items()
        for each in table.items()
    ],
)
def test_what_would_have_no_effect_is_refused(
    method: str, overrides: tuple[str, ...], words: str, folder: Path, observe: Observe
) -> None:
    assert words.replace("FOLDER", str(folder)) in observe(method, overrides)["error"]


def test_the_same_recipe_has_the_same_outcome(folder: Path, observe: Observe) -> None:
    """What differs in the tests above differs because of the field, not from run to run."""
    lora = ("sft.adapter={type: lora, dropout: 0.5}",)
    trackers = [("sft", (each,)) for each in (TENSORBOARD, WANDB, MLFLOW)]
    preferences = [("dpo", ()), ("dpo", ("dpo.loss=kto", "dpo.adapter={type: lora, dropout: 0.5}"))]
    own = [("pretrain", ()), ("sft", ()), ("sft", lora), *preferences]
    for recipe, overrides in (*own, *trackers):
        assert run_once(folder, recipe, overrides) == observe(recipe, overrides)


def test_a_stage_is_shown_with_the_template_of_the_stage_before(folder: Path) -> None:
    """What `hone data show` prepares is what the run trains on, with the tokens of each stage."""
    overrides = [TWO_STAGES, "sft[0].data.template=brackets.jinja"]
    overrides += ["sft[0].add_tokens=[is after]", "sft[1].add_tokens=[and so on]"]
    loaded = load_recipe(folder / "sft.yaml", overrides)
    run = create_run(loaded, "shown", folder / "runs")
    run_recipe(run, console=Console(file=io.StringIO()))
    trained = [run.read_lock_json()["stages"][number]["data"]["key"] for number in "12"]
    assert [prepare_stage(loaded, index)[0].sets[0].key for index in (0, 1)] == trained
