"""The cases of the stage `sft`, of what all stages share, and of the recipe around them."""

import torch

from tests.recipe import cases_policy as policy
from tests.recipe.cases import Case, case

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
