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
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
import torch
from mlflow.tracking import MlflowClient
from rich.console import Console
from safetensors.torch import load_file
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM, BloomConfig, LlamaConfig

from hone.adapters import add_lora
from hone.checkpoints import list_checkpoints
from hone.data.tokenizer_training import train_tokenizer
from hone.errors import UserError
from hone.metrics import canonical_metrics
from hone.models import read_quantised, read_weights, save_model
from hone.recipe.load import load_recipe
from hone.recipe.node import Node
from hone.recipe.schema import STAGES, Recipe, Sft
from hone.recipe.training import Lora
from hone.runs import Run, create_run
from hone.stages.run import prepare_stage, run_recipe
from tests.recipe import cases_policy as policy
from tests.recipe import cases_preference as preference
from tests.recipe.cases import Case, case
from tests.trackers.reading import records_of

# --- The table -----------------------------------------------------------------------------------


TENSORBOARD = "trackers=[{type: tensorboard, finish_within_s: 120.0}]"
WANDB = "trackers=[{type: wandb, mode: offline, finish_within_s: 120.0}]"
MLFLOW = "trackers=[{type: mlflow, uri: 'sqlite:///store.db', finish_within_s: 120.0}]"


def tracked(change: str, start: str | tuple[str, ...] = TENSORBOARD, differs: str = "") -> Case:
    """A case of a tracker: what it holds, or what is said of it, differs, and nothing else."""
    return case(change, start=start, differs=differs or "tracked", same="" if differs else KEPT)


KEPT = "weights metrics checkpoints kept threads"
NEW = "{architecture: llama, config: {%s}, tokenizer: {train_on: rows.jsonl, vocabulary: 300}}"
SHAPE = (
    "hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 2, "
    "intermediate_size: 16"
)
NEW_MODEL = "model=" + NEW % SHAPE
ONE_STEP = "data: {path: rows.jsonl}, batch: {samples: 2}, steps: 1"
TWO_STAGES = f"stages=[{{sft: {{{ONE_STEP}}}}}, {{sft: {{{ONE_STEP}}}}}]"
LORA = "adapter={type: lora, rank: 2}"
QLORA = "adapter={type: qlora, rank: 2}"
EIGHT_BIT = "optimizer={type: adamw_8bit}"
ADAFACTOR = "optimizer={type: adafactor}"

TOP = {
    "model": case("model=bloom"),
    "model.architecture": case("model.architecture=qwen2", start=NEW_MODEL),
    "model.config": case("model.config.hidden_size=32", start=NEW_MODEL),
    "model.tokenizer": case("model.tokenizer=llama", start=NEW_MODEL, differs="weights printed"),
    "model.tokenizer.train_on": case("model.tokenizer.train_on=other.jsonl", start=NEW_MODEL),
    "model.tokenizer.vocabulary": case("model.tokenizer.vocabulary=310", start=NEW_MODEL),
    "seed": case("seed=6", differs="weights metrics"),
    "device": case("device=cuda", differs="error" if not torch.cuda.is_available() else "printed"),
    "threads": case("threads=2", differs="threads"),
    "memory": case("memory=50MB", differs="error"),
    "memory.limit": case("memory={limit: 50MB}", differs="error"),
    "trust": case("trust=[pickle]", start="model=pickled", differs="error weights"),
    "stages": case(TWO_STAGES),
    "pretrain": case(f"stages=[{{pretrain: {{{ONE_STEP}}}}}]", differs="checkpoints"),
    "sft": case(f"stages=[{{sft: {{{ONE_STEP}}}}}]", differs="metrics checkpoints"),
    "dpo": case(f"stages=[{{dpo: {{{ONE_STEP}}}}}]", differs="metrics checkpoints"),
    "grpo": case(f"stages=[{{{policy.ONE_STEP}}}]", differs="weights metrics"),
    "trackers": tracked(TENSORBOARD, start=()),
    "trackers.tensorboard.type": tracked(TENSORBOARD, start=MLFLOW),
    "trackers.tensorboard.folder": tracked("trackers[0].folder=shared"),
    "trackers.tensorboard.answer_within_s": tracked("trackers[0].answer_within_s=0.001"),
    "trackers.tensorboard.finish_within_s": tracked("trackers[0].finish_within_s=0.001"),
    "trackers.wandb.type": tracked(WANDB, start=()),
    "trackers.wandb.project": tracked("trackers[0].project=other", start=WANDB),
    "trackers.wandb.entity": tracked("trackers[0].entity=us", start=WANDB),
    "trackers.wandb.name": tracked("trackers[0].name=other", start=WANDB),
    "trackers.wandb.group": tracked("trackers[0].group=one", start=WANDB),
    "trackers.wandb.tags": tracked("trackers[0].tags=[one]", start=WANDB),
    "trackers.wandb.mode": tracked("trackers[0].mode=online", start=WANDB, differs="error"),
    "trackers.wandb.answer_within_s": tracked("trackers[0].answer_within_s=0.001", start=WANDB),
    "trackers.wandb.finish_within_s": tracked("trackers[0].finish_within_s=0.001", start=WANDB),
    "trackers.mlflow.type": tracked(MLFLOW, start=()),
    "trackers.mlflow.uri": tracked("trackers[0].uri=sqlite:///other.db", start=MLFLOW),
    "trackers.mlflow.experiment": tracked("trackers[0].experiment=other", start=MLFLOW),
    "trackers.mlflow.answer_within_s": tracked("trackers[0].answer_within_s=0.001", start=MLFLOW),
    "trackers.mlflow.finish_within_s": tracked("trackers[0].finish_within_s=0.001", start=MLFLOW),
}

DATA = {
    "path": case("path=other.jsonl"),
    "split": case("split=test", start="path=acme/tiny"),
    "format": case(
        "format=auto",
        "format=prompt_completion",
        "format=messages",
        "format=conversations",
        "format=instruction",
        start="format=text",
    ),
    "columns.text": case("columns.text=body", start="format=text"),
    "columns.prompt": case("columns.prompt=question", start="format=prompt_completion"),
    "columns.completion": case("columns.completion=answer", start="format=prompt_completion"),
    "columns.messages": case("columns.messages=dialogue", start="format=messages"),
    "columns.conversations": case("columns.conversations=turns", start="format=conversations"),
    "columns.instruction": case("columns.instruction=task", start="format=instruction"),
    "columns.input": case("columns.input=context", start="format=instruction"),
    "columns.output": case("columns.output=reply", start="format=instruction"),
    "columns.system": case("columns.system=persona", start="format=messages"),
    "columns.tools": case(
        "columns.tools=functions", start=("format=messages", "template=tools.jinja")
    ),
    "columns.chosen": case("columns.chosen=better", differs="error"),
    "columns.rejected": case("columns.rejected=worse", differs="error"),
    "columns.label": case("columns.label=verdict", differs="error"),
    "template": case("template=chatml", "template=alpaca", "template=brackets.jinja"),
    "on_bad_row": case("on_bad_row=skip", start="path=broken.jsonl", differs="error"),
}

SETS = "data=[{path: rows.jsonl, weight: 1}, {path: other.jsonl, weight: 1}]"

# Held-out loss falls from step to step here; accuracy does not.
STOPPING = ("steps=6", "evaluation.early_stopping={patience: 2}")
EXPLODING = ("learning_rate=1e30", "optimizer={type: sgd}", "checkpoint.every=9", "steps=3")

STAGE = {
    "profile": case("profile=constant.yaml"),
    "data": case("data=[rows.jsonl, other.jsonl]", differs="weights printed"),
    "data.weight": case("data[0].weight=3", start=SETS, differs="weights printed"),
    "evaluation": case("evaluation=null", differs="metrics"),
    "evaluation.share": case("evaluation.share=0.5"),
    "evaluation.data": case(
        "evaluation={data: other.jsonl}",
        "evaluation={data: [rows.jsonl, other.jsonl]}",
        differs="metrics",
    ),
    "evaluation.every": case("evaluation.every=3", differs="metrics", same="weights"),
    "evaluation.before": case("evaluation.before=false", differs="metrics", same="weights"),
    "evaluation.samples": case("evaluation.samples=2", differs="metrics", same="weights"),
    "evaluation.early_stopping.metric": case(
        "evaluation.early_stopping.metric=accuracy", start=STOPPING, differs="metrics checkpoints"
    ),
    "evaluation.early_stopping": case(
        "evaluation.early_stopping={patience: 1, min_change: 5.0}",
        start="steps=6",
        differs="metrics",
    ),
    "evaluation.early_stopping.patience": case(
        "evaluation.early_stopping.patience=1",
        start=(*STOPPING, "evaluation.early_stopping.min_change=5.0"),
        differs="metrics",
    ),
    "evaluation.early_stopping.min_change": case(
        "evaluation.early_stopping.min_change=5.0", start=STOPPING, differs="metrics checkpoints"
    ),
    "evaluation.early_stopping.restore_best": case(
        "evaluation.early_stopping.restore_best=false",
        start=(*STOPPING, "evaluation.early_stopping.min_change=5.0"),
        same="metrics checkpoints",
    ),
    "batch.samples": case("batch.samples=3"),
    "batch.tokens": case("batch.tokens=100"),
    "epochs": case("epochs=2"),
    "steps": case("steps=2", differs="weights metrics"),
    "learning_rate": case("learning_rate=0.02"),
    "schedule": case("schedule=linear", "schedule=constant"),
    "warmup": case("warmup=1", "warmup=0.5"),
    "warmup.steps": case("warmup.steps=2", start="warmup={steps: 1, at_most: 0.9}"),
    "warmup.at_most": case(
        "warmup.at_most=0.4", start="warmup={steps: 2, at_most: 0.9}", differs="weights printed"
    ),
    "optimizer.adamw.type": case("optimizer={type: adamw}", start="optimizer={type: sgd}"),
    "optimizer.adamw.betas": case("optimizer.betas=[0.8, 0.999]", "optimizer.betas=[0.9, 0.9]"),
    "optimizer.adamw.epsilon": case("optimizer.epsilon=0.001"),
    "optimizer.adamw.weight_decay": case("optimizer.weight_decay=0.1"),
    "optimizer.adamw_8bit.type": case(EIGHT_BIT, start="optimizer={type: sgd}"),
    "optimizer.adamw_8bit.betas": case(
        "optimizer.betas=[0.8, 0.999]", "optimizer.betas=[0.9, 0.9]", start=EIGHT_BIT
    ),
    "optimizer.adamw_8bit.epsilon": case("optimizer.epsilon=0.001", start=EIGHT_BIT),
    "optimizer.adamw_8bit.weight_decay": case("optimizer.weight_decay=0.1", start=EIGHT_BIT),
    "optimizer.adafactor.type": case(ADAFACTOR),
    "optimizer.adafactor.weight_decay": case("optimizer.weight_decay=0.1", start=ADAFACTOR),
    "optimizer.sgd.type": case("optimizer={type: sgd}"),
    "optimizer.sgd.momentum": case("optimizer.momentum=0.9", start="optimizer={type: sgd}"),
    "optimizer.sgd.weight_decay": case("optimizer.weight_decay=0.1", start="optimizer={type: sgd}"),
    "max_grad_norm": case("max_grad_norm=0.01", "max_grad_norm=null"),
    "max_tokens": case("max_tokens=40", differs="weights printed"),
    "overlong": case(
        "overlong=keep_end",
        "overlong=drop",
        "overlong=split",
        start=("max_tokens=15", "data.format=text"),
    ),
    "precision": case("precision=bf16"),
    "gradient_checkpointing": case("gradient_checkpointing=true", differs="kept", same="weights"),
    "add_tokens": case("add_tokens=[is before]", differs="weights printed"),
    "layout": case("layout=padded", start="model=bloom", differs="printed"),
    "token_budget": case("token_budget=40", differs="kept printed"),
    "checkpoint.every": case(
        "checkpoint.every=2",
        start=("evaluation.every=3", "checkpoint.keep=3"),
        differs="checkpoints",
        same="weights metrics",
    ),
    "checkpoint.keep": case("checkpoint.keep=1", differs="checkpoints", same="weights metrics"),
    "checkpoint.keep_every": case(
        "checkpoint.keep_every=1",
        start="checkpoint.keep=1",
        differs="checkpoints",
        same="weights metrics",
    ),
    "max_skipped_steps": case("max_skipped_steps=0", start=EXPLODING, differs="error"),
}


def low_rank(name: str, start: str) -> dict[str, Case]:
    """The cases of what adapters on plain and on packed weights have in common."""
    there = (f"model=adapted-{name}", start)
    return {
        f"adapter.{name}.rank": case("adapter.rank=3", start=start),
        f"adapter.{name}.alpha": case("adapter.alpha=5", start=start),
        f"adapter.{name}.dropout": case("adapter.dropout=0.5", start=start),
        f"adapter.{name}.targets": case("adapter.targets=[q_proj]", start=start),
        f"adapter.{name}.layers": case("adapter.layers=[0]", "adapter.layers=[-1]", start=start),
        f"adapter.{name}.rslora": case("adapter.rslora=true", start=start),
        f"adapter.{name}.dora": case("adapter.dora=true", start=start),
        f"adapter.{name}.before": case(
            *("adapter.before=merge", "adapter.before=stack"),
            start=there,
            differs="weights printed",
        ),
    }


ADAPTERS = {
    "adapter.lora.type": case(LORA, differs="weights printed"),
    **low_rank("lora", LORA),
    "adapter.qlora.type": case(QLORA, start=LORA, differs="weights metrics"),
    "adapter.qlora.bits": case("adapter.bits=8", start=QLORA),
    **low_rank("qlora", QLORA),
    "adapter.full.layers": case(
        "adapter={type: full, layers: [0]}",
        "adapter={type: full, layers: [-1]}",
        differs="weights printed",
    ),
    "adapter.full.type": case("adapter={type: full}", start=LORA, differs="weights printed"),
}

# What a method has besides, or where a field shows in another way.
SFT = {**STAGE, **ADAPTERS, "train_on": case("train_on=all", differs="weights printed")}


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


# What goes beyond one field: settings that meet others, or those of the stage before.
TOGETHER = {
    "held-out data have the template of the training data": case(
        "sft.evaluation.data.template=brackets.jinja",
        start=("sft.data.template=brackets.jinja", "sft.evaluation.data.template=auto"),
        differs="",
        same="weights metrics",
    ),
    "held-out data may have a template of their own": case(
        "sft.evaluation.data.template=chatml",
        start="sft.data.template=brackets.jinja",
        differs="metrics",
        same="weights",
    ),
    "a stage goes on with the adapter settings of the one before": case(
        "sft[1].adapter={rank: 3, dropout: 0.5}",
        start=(TWO_STAGES, "sft[0].adapter={rank: 3, dropout: 0.5}"),
        differs="",
        same="weights metrics printed",
    ),
    "the adapter of a later stage may be another one": case(
        "sft[1].adapter={rank: 2}",
        "sft[1].adapter={type: full}",
        start=(TWO_STAGES, "sft[0].adapter={rank: 3}"),
        differs="weights printed",
    ),
    "dropout of an adapter that goes on": case("sft[1].adapter.dropout=0.5", start=TWO_STAGES),
    "an adapter on chosen blocks goes on": case(
        "sft[1].adapter.layers=[1]",
        start=(
            TWO_STAGES,
            "sft[0].adapter={layers: [0]}",
            "sft[1].adapter={layers: [0], before: continue}",
            "sft[1].adapter.before=auto",
        ),
    ),
    "usual names are mapped and said": case(
        "sft.adapter.targets=[q_proj, o_proj]",
        start=("model=bloom", "sft.adapter={type: lora, targets: [query_key_value]}"),
        differs="weights printed",
    ),
    "layers of an adapter that could go on": case(
        "sft[1].adapter.targets=all",
        start=(
            TWO_STAGES,
            "sft[0].adapter={targets: [q_proj]}",
            "sft[1].adapter={targets: [q_proj]}",
        ),
    ),
    "tokens beside adapters": case(
        "sft.add_tokens=[is before]",
        start="sft.adapter={type: lora, rank: 2}",
        differs="weights printed",
    ),
    "tokens that the stage before has added": case(
        "sft[1].add_tokens=[is before]",
        start=(TWO_STAGES, "sft[0].add_tokens=[is before]"),
        differs="printed",
        same="weights metrics",
    ),
    "a data set among several is read in its own way": case(
        "sft.data[1].format=text",
        "sft.data[1].columns.messages=dialogue",
        start="sft.data=[{path: rows.jsonl}, {path: other.jsonl, format: messages}]",
    ),
    "a list of one data set": case("sft.data=[rows.jsonl]", differs="", same="weights metrics"),
    "a template has no effect on plain text among conversations": case(
        "sft.data[1].template=chatml",
        start="sft.data=[{path: rows.jsonl}, {path: other.jsonl, format: text}]",
        differs="",
        same="weights metrics printed",
    ),
    "several held-out data sets have the template of the training data": case(
        "sft.evaluation.data=[{path: rows.jsonl, template: brackets.jinja}, other.jsonl]",
        start=(
            "sft.data.template=brackets.jinja",
            "sft.evaluation.data=[rows.jsonl, other.jsonl]",
        ),
        differs="",
        same="weights metrics",
    ),
    "recomputation draws the same dropout": case(
        "sft.gradient_checkpointing=true",
        start="sft.adapter={type: lora, dropout: 0.5}",
        differs="kept",
        same="weights metrics",
    ),
}

# Settings that would have no effect where they stand.
REFUSED = {
    ("sft.data.split=train",): "data.split: files have no splits",
    ("sft.data.columns.prompt=question",): "`columns.prompt` is `question`, but the rows are read",
    ("sft.data.columns.input=context",): "`columns.input` is `context`, but the rows are read",
    ("sft.data.columns.chosen=better",): "`columns.chosen` is `better`, but the rows are read as",
    ("sft.data.format=preference",): "this stage learns from text or conversations: expected",
    ("sft.data.columns.tools=function",): "no column `function`; the columns are",
    ("sft.data.format=text", "sft.data.columns.system=null"): "`columns.system` is `null`, but",
    ("sft.data.template=llama",): "needs tokens that the tokenizer does not have",
    ("sft.evaluation={share: 0.5, data: other.jsonl}",): "exactly one of `share` and `data`",
    ("sft.data=[{path: rows.jsonl, weight: 2}]",): "`weight` has no effect on a single data set",
    ("sft.data={path: rows.jsonl, weight: 2}",): "it belongs to the items of a list",
    ("sft.data=[{path: rows.jsonl, weight: 2}, other.jsonl]",): "found none of data[1]",
    ("sft.data=[{path: rows.jsonl, weight: 1}, {path: other.jsonl, weight: 1e-9}]",): (
        "data[1] `FOLDER/other.jsonl` would give none"
    ),
    (
        "sft.data=[rows.jsonl, {path: other.jsonl, template: brackets.jinja}]",
    ): "are rendered with different chat templates",
    (
        "sft.evaluation={data: [{path: other.jsonl, weight: 1}]}",
    ): 'evaluation.data[0].weight: unknown key "weight"',
    ("sft.batch={samples: 3, tokens: 100}",): "exactly one of `samples` and `tokens`",
    ("sft.epochs=1", "sft.steps=3"): "at most one of `epochs` and `steps`",
    ("sft.checkpoint={every: 2, keep_every: 3}",): "expected a multiple of it",
    ("memory=8",): "memory",
    ("memory={limit: eight}",): "such as 8GB",
    ("sft.warmup=3",): "something is trained at the full rate",
    ("sft.add_tokens=[a, b, a]",): "a token is named twice",
    ("sft.add_tokens=[a]", "sft.adapter={type: full, layers: [0]}"): "expected `layers: all`",
    ("sft.add_tokens=['  ']",): "one of the tokens is blank",
    ("sft.adapter={type: full, rank: 3}",): 'unknown key "rank" with type "full"',
    ("sft.adapter={type: lora, bits: 4}",): 'unknown key "bits" with type "lora"',
    ("sft.adapter={type: full, before: merge}",): 'unknown key "before" with type "full"',
    ("sft.adapter={dora: true, before: stack}",): "expected one of the two",
    ("sft.adapter={before: continue}",): "before: continue needs an adapter",
    ("sft.adapter={before: stack}",): "before: stack needs an adapter",
    ("model=adapted-lora", "sft.adapter={rank: 3, before: continue}"): "rank was 2 and is 3",
    ("sft.adapter={type: full, layers: [2]}",): "there is no block 2, the model has 2",
    ("sft.adapter={layers: [-3]}",): "there is no block -3, the model has 2",
    ("sft.adapter={targets: [c_attn]}",): '"c_attn" is not a linear layer of this model',
    ("sft.optimizer={type: adafactor, epsilon: 1e-8}",): 'unknown key "epsilon"',
    ("sft.optimizer={type: sgd, epsilon: 1e-8}",): 'unknown key "epsilon" with type "sgd"',
}

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


# --- What the runs stand on ----------------------------------------------------------------------


def make_rows(first: int, count: int, place: str = "before") -> list[dict[str, Any]]:
    """Rows that can be read in every format, with other columns for each of them."""

    def chat(question: str, answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    def said(question: str, answer: str) -> list[dict[str, str]]:
        return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]

    rows = []
    for n in range(first, first + count):
        more = " and so on" * (n % 4)
        rows.append(
            {
                "text": f"{n} is {place} {n + 1}{more}.",
                "body": f"After {n} comes {n + 1}{more}.",
                "prompt": f"After {n} comes",
                "question": f"What comes after {n}?",
                "completion": f" {n + 1}{more}",
                "answer": f" It is {n + 1}{more}",
                "messages": chat(f"What is after {n}?", f"It is {n + 1}{more}."),
                "dialogue": chat(f"Count on from {n}.", f"{n + 1}{more}."),
                "conversations": said(f"What is after {n}?", f"{n + 1}{more}"),
                "turns": said(f"Which one follows {n}?", f"{n + 1}{more}"),
                "instruction": f"Say what follows {n}.",
                "task": f"Count on from {n}.",
                "input": f"{n}",
                "context": f"The number is {n}.",
                "output": f"{n + 1}{more}",
                "reply": f"That is {n + 1}{more}",
                "chosen": f" {n + 1}{more}",
                "better": f" the number {n + 1}{more}",
                "rejected": f" {n + 2}",
                "worse": f" nothing{more}",
                "asked": chat(f"What is after {n}?", "")[:1],
                "good": chat("", f"It is {n + 1}{more}.")[1:],
                "bad": chat("", f"It is {n}.")[1:],
                "label": n % 2 == 0,
                "verdict": n % 3 == 0,
                "persona": "You can count.",
                "functions": [{"name": "count", "parameters": {"from": n}}],
            }
        )
    return rows


def write_rows(folder: Path) -> None:
    """rows.jsonl, other.jsonl, broken.jsonl, and two chat templates."""
    rows, other = make_rows(10, 16), make_rows(50, 12, place="ahead of")
    for name, written in (("rows", rows), ("other", other), ("broken", [*rows, {"a": 1}])):
        lines = "".join(json.dumps(row) + "\n" for row in written)
        (folder / f"{name}.jsonl").write_text(lines)
    (folder / "constant.yaml").write_text("schedule: constant\n")
    (folder / "brackets.jinja").write_text(
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    shown = "{% if tools %}{{ tools | tojson }}{% endif %}"
    (folder / "tools.jinja").write_text(shown + (folder / "brackets.jinja").read_text())


def write_models(folder: Path) -> None:
    """A Llama and a Bloom, which cannot use the forest, with a template that is not ChatML."""
    tokenizer = train_tokenizer([row["text"] for row in make_rows(0, 40)], 300)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    rows = {"vocab_size": len(tokenizer), "hidden_size": 16}
    heads = {"num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    for name, config in {
        "llama": LlamaConfig(**rows, **heads),
        "bloom": BloomConfig(**rows, n_layer=1, n_head=2),
    }.items():
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    pickled = shutil.copytree(folder / "llama", folder / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()


def write_adapters(folder: Path) -> None:
    """Adapters on the Llama and on its packed weights, with the model's tokenizer beside them."""
    base = str(folder / "llama")
    plain = read_weights(base, torch.float32)
    packed = read_quantised(base, 4, torch.float32, torch.device("cpu"))
    for name, weights in (("lora", plain), ("qlora", packed)):
        torch.manual_seed(1)
        model = add_lora(weights, Lora(rank=2))
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if "lora_B" in parameter_name:
                    parameter.normal_(std=0.1)
        place = folder / f"adapted-{name}"
        place.mkdir()
        save_model(model, place)
        for path in (folder / "llama").iterdir():
            if path.name.startswith(("token", "chat_template")):
                shutil.copy(path, place)


def write_stores(folder: Path) -> None:
    """Two empty stores of MLflow, which takes seconds to make one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's own use of its database library
        MlflowClient(tracking_uri=f"sqlite:///{folder / 'store.db'}")
    shutil.copy(folder / "store.db", folder / "other.db")


def write_hub_data(folder: Path) -> None:
    """The data set `acme/tiny` with the splits train and test, as if it had been downloaded."""
    import datasets

    place = folder / "hub" / "acme___tiny" / "default" / "0.0.0" / "0123456789abcdef"
    place.mkdir(parents=True)
    splits = {"train": make_rows(10, 16), "test": make_rows(70, 16)}
    info = datasets.DatasetInfo(
        config_name="default", dataset_name="tiny", version="0.0.0", splits=datasets.SplitDict()
    )
    for name, rows in splits.items():
        made = datasets.Dataset.from_list(rows)
        with datasets.arrow_writer.ArrowWriter(path=str(place / f"tiny-{name}.arrow")) as writer:
            writer.write_table(made.data.table)
            writer.finalize()
        info.features = made.features
        info.splits.add(datasets.SplitInfo(name, num_examples=len(rows), dataset_name="tiny"))
    info.write_to_directory(str(place))


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
