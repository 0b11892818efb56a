"""The stages `pretrain` and `sft`: prepared samples, the model, `fit`, the saved result."""

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import GenerationConfig
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from hone.checkpoints import CheckpointState, write_folder, write_making_room
from hone.data.joined import Joined
from hone.data.prepared import Prepared, open_prepared
from hone.device import choose_precision
from hone.early_stopping import restore_best
from hone.errors import UserError
from hone.files import append_line, is_disk_full, room_permitting
from hone.fit import find_start, fit, restore
from hone.forecast import check_disk
from hone.losses import LOSSES
from hone.metrics import Row
from hone.models import choose_token_budget, save_model
from hone.optim import describe_cut_warmup, make_optimizer
from hone.quantisation import count_weights
from hone.recipe.schema import Data, Full, LowRank, Recipe, Sft, TrainingStage
from hone.runs import Run
from hone.sampling import Rendering
from hone.signals import StepReached
from hone.stages.data import (
    StageData,
    check_ids,
    describe_repeats,
    describe_sets,
    prepare_data,
    prepare_sources,
    split_data,
)
from hone.stages.progress import StageProgress
from hone.stages.start import Start, build_model, open_tokenizer
from hone.stages.surroundings import lock_base
from hone.training import Training
from hone.vocabulary import NONE, AddedTokens, add_tokens, describe_added

STATUS_EVERY_S = 1.0


def adapter_of(settings: TrainingStage) -> LowRank | Full:
    """What the stage trains."""
    return settings.adapter if isinstance(settings, Sft) else Full()


class SupervisedStage:
    """One stage of a run while it works: its place, its settings and what it tells the person."""

    def __init__(
        self, run: Run, recipe: Recipe, index: int, console: Console, last_step: int | None = None
    ) -> None:
        self.run = run
        self.recipe = recipe
        self.index = index
        self.settings = recipe.stages[index].settings
        self.method = recipe.stages[index].method
        self.title = f"{index + 1} {self.method}"
        self.folder = run.stage_folder(index, self.method)
        self.console = console
        self.last_step = last_step
        self.status_at = 0.0
        self.added: AddedTokens = NONE

    def execute(self, start: Start, device: torch.device) -> Start:
        """Train from `start`; returns where the next stage starts."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tokenizer = open_tokenizer(start)
        self.added = add_tokens(tokenizer, self.settings.add_tokens)
        for line in describe_added(tokenizer, self.added):
            self.console.print(f"{self.title}: {line}", highlight=False, markup=False)
        data = self.open_data(tokenizer)
        training, state = self.make_training(start, data, device)
        check_ids(data, len(training.model.head.weight_VD))
        if self.index == 0:
            lock_base(self.run, self.recipe, start)
        log = self.folder / "log.txt"
        with StageProgress(self.console, log, self.title, data.total_steps) as progress:
            self.describe(progress, training, data, state)

            def report(row: Row) -> None:
                progress.step(row)
                self.write_status(row, data.total_steps)
                if "split" not in row and row["step"] == self.last_step:
                    raise StepReached(row["step"])

            training.report = report
            progress.advance_to(state.step)
            state = fit(training, state)
            self.describe_end(progress, training, state)
            self.save_result(training, state, data.prepared, tokenizer)
        return Start.at(str(self.folder / "model"), start.trust)

    def open_data(self, tokenizer: PreTrainedTokenizerBase) -> StageData:
        """The stage's data: of the cache a resumed run began with, or prepared now."""
        prepared, held_out = prepare_sources(
            self.settings, lambda name, data: self.open_source(name, data, tokenizer)
        )
        return split_data(self.settings, prepared, held_out, self.recipe.seed, self.index)

    def open_source(self, name: str, data: Data, tokenizer: PreTrainedTokenizerBase) -> Prepared:
        """One data source; its key and its files' hashes are kept in the run's lock."""
        locked = self.locked().get(name, {})
        found = open_prepared(locked["key"]) if locked else None
        if found is not None and sources_unchanged(locked["sources"]):
            return found
        title = f"{self.title} {name}"
        with StageProgress(self.console, None, title, None) as progress:
            prepared = prepare_data(
                self.settings,
                data,
                tokenizer,
                date=self.run.read_lock_json()["date"],
                progress=progress.advance_to,
            )
        if locked and locked["key"] != prepared.key:
            raise UserError(
                f"{name} of stage {self.index + 1}: `{data.path}` gives other samples than when "
                f"the run `{self.run.name}` began, so resuming could not be exact",
                hint="put file, template, tokenizer and versions back as they were, or start a new "
                "run",
            )
        self.lock({name: {"key": prepared.key, "sources": prepared.sources}})
        return prepared

    def make_training(
        self, start: Start, data: StageData, device: torch.device
    ) -> tuple[Training, CheckpointState]:
        """Model, optimizer and state, new or from the newest whole checkpoint."""
        settings, adapter = self.settings, adapter_of(self.settings)
        locked = self.locked()
        precision = choose_precision(
            locked.get("precision", settings.precision),
            device,
            trains_weights=isinstance(adapter, Full),
        )
        if "precision" in locked:
            precision = replace(precision, reason="as the run began")
        checkpoint = find_start(self.folder, self.warn)
        model = build_model(
            start,
            checkpoint,
            adapter,
            added=self.added,
            folder=self.folder,
            precision=precision,
            device=device,
            layout=settings.layout,
            seed=(self.recipe.seed, self.index),
        )
        if settings.gradient_checkpointing:
            model.causal.activation_checkpointing_enable({"use_reentrant": False})
        budget = locked.get("token_budget") or choose_token_budget(model, settings, device)
        name = "bf16" if precision.compute == torch.bfloat16 else "fp32"
        self.lock({"token_budget": budget, "precision": name, "layout": model.layout})
        training = Training(
            model=model,
            optimizer=make_optimizer(model.module, settings.optimizer),
            loss=LOSSES[self.method],
            settings=settings,
            folder=self.folder,
            seed=self.recipe.seed,
            stage=self.index,
            total_steps=data.total_steps,
            samples_of=lambda step: [data.training[int(i)] for i in data.order.samples_of(step)],
            held_out=data.held_out,
            token_budget=budget,
            epoch_of=data.order.epoch_of,
            warn=self.warn,
            conceal=self.run.conceal,
            place_of=data.place_of,
            smaller_budgets=[(step, tokens) for step, tokens in locked.get("smaller_budgets", [])],
            keep_budgets=lambda budgets: self.lock({"smaller_budgets": [list(b) for b in budgets]}),
        )
        if checkpoint is None:
            return training, CheckpointState(step=0, evaluated=False)
        return training, restore(training, checkpoint)

    def describe(
        self, progress: StageProgress, training: Training, data: StageData, state: CheckpointState
    ) -> None:
        """Say what was derived before the first step."""
        model, report = training.model, data.prepared.report
        trained = sum(p.numel() for _, p in model.trainable())
        total = count_weights(model.module)
        dropped = {
            name: report[name]
            for name in (
                *("truncated", "split_turns", "split_overlong"),
                *("dropped_overlong", "dropped_untrained", "skipped_rows"),
            )
            if report[name]
        }
        counted = "".join(
            f", {name.replace('_', ' ')} {count:,}" for name, count in dropped.items()
        )
        compute = str(model.precision.compute).removeprefix("torch.")
        reason = f" ({model.layout_reason})" if model.layout_reason else ""
        for line in (
            f"{len(data.training):,} samples, {len(data.held_out):,} held out, "
            f"{report['trained_tokens']:,} of {report['tokens']:,} tokens trained{counted}",
            *describe_sets(training.settings, data),
            *describe_repeats(data),
            f"{trained:,} of {total:,} parameters trained on {model.device.type}",
            f"precision {compute}: {model.precision.reason}",
            f"layout {model.layout}{reason}, {training.token_budget:,} tokens at once",
            *model.remarks,
            str(check_disk(training)),
            describe_cut_warmup(self.settings, data.total_steps),
            f"step {state.step} of {data.total_steps}",
        ):
            if line:
                progress.say(f"{self.title}: {line}")

    def describe_end(
        self, progress: StageProgress, training: Training, state: CheckpointState
    ) -> None:
        """Say where training ended, if before the last step, and which weights are the result."""
        if state.stopped_early:
            progress.say(
                f"{self.title}: ended at step {state.step} of {training.total_steps}, "
                f"{state.without_gain} evaluations without a gain"
            )
        if restored := restore_best(training, state):
            progress.say(f"{self.title}: the result has the weights of step {restored}, the best")

    def save_result(
        self,
        training: Training,
        state: CheckpointState,
        prepared: Joined,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        """The stage's `model/`: weights or adapter, tokenizer, template, rendering."""

        def write(folder: Path) -> None:
            model = training.model
            save_model(model.module, folder, self.run.conceal)
            tokenizer.chat_template = prepared.template
            tokenizer.save_pretrained(folder)
            ends = prepared.end_token_ids
            config = GenerationConfig.from_model_config(model.causal.config)
            config.eos_token_id, config.pad_token_id = list(ends), tokenizer.pad_token_id
            config.save_pretrained(folder)
            Rendering(prepared.plain, prepared.template, prepared.date, ends).write(folder)

        try:
            write_making_room(
                lambda: write_folder(self.folder / "model", write),
                training.checkpoints,
                state.best_step,
            )
        except Exception as error:
            if not is_disk_full(error):
                raise
            raise UserError(
                f"the result could not be saved, the disk of {self.folder} is full",
                hint="make room; what was trained is in the newest checkpoint",
            ) from error

    def write_status(self, row: Row, total: int) -> None:
        """The run's status, at most once a second."""
        now = time.monotonic()
        if "split" in row or (now - self.status_at < STATUS_EVERY_S and row["step"] < total):
            return
        self.status_at = now
        with room_permitting():
            self.run.write_status(
                "running",
                stage=self.index + 1,
                method=self.method,
                step=row["step"],
                steps=total,
                loss=row["loss"] if math.isfinite(row["loss"]) else None,
            )

    def warn(self, text: str) -> None:
        """Say something that the person should know, and keep it with the run."""
        self.console.print(f"warning: {text}", highlight=False, soft_wrap=True, markup=False)
        with room_permitting():
            self.run.event("warning", message=text)
            append_line(self.folder / "log.txt", f"warning: {text}")

    def locked(self) -> dict[str, Any]:
        """What this stage has written into lock.json."""
        stages: dict[str, Any] = self.run.read_lock_json().get("stages", {})
        return stages.get(str(self.index + 1), {})  # type: ignore[no-any-return]

    def lock(self, values: dict[str, Any]) -> None:
        """Add to what this stage has in lock.json."""
        if any(self.locked().get(key) != value for key, value in values.items()):
            self.run.update_lock_json({"stages": {str(self.index + 1): values}})


def sources_unchanged(sources: list[dict[str, Any]]) -> bool:
    """True where all files have the size and time stamp they had when they were read."""
    for source in sources:
        path = Path(source["path"])
        if not path.exists():
            continue  # the cache holds what it said
        found = path.stat()
        if (found.st_size, found.st_mtime_ns) != (source["size"], source["mtime_ns"]):
            return False
    return True
