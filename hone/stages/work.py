"""What all stages that train have in common: the model, `fit`, what is said, the saved result.

A method is a class with `open_material` (what it learns from) and `equip` (its loss, and what else
it gives to `fit`); `methods.py` names them.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from rich.console import Console
from transformers import GenerationConfig
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from hone.checkpoints import CheckpointState, write_folder, write_making_room
from hone.device import choose_precision
from hone.early_stopping import restore_best
from hone.errors import UserError
from hone.files import append_line, is_disk_full, room_permitting
from hone.fit import find_start, fit, restore
from hone.forecast import check_disk
from hone.metrics import Row
from hone.models import choose_token_budget, save_model
from hone.optim import describe_cut_warmup, make_optimizer
from hone.quantisation import count_weights
from hone.recipe.schema import Recipe
from hone.recipe.training import Full
from hone.records import Sample
from hone.runs import Run
from hone.sampling import Rendering
from hone.signals import StepReached
from hone.stages.progress import StageProgress
from hone.stages.start import Start, build_model, open_tokenizer
from hone.stages.surroundings import lock_base
from hone.training import Training
from hone.vocabulary import NONE, AddedTokens, add_tokens, describe_added

STATUS_EVERY_S = 1.0

Reached = Callable[[int], None]
"""Is called after the last step that is wanted, when its row is written; see `stop_there`."""


def stop_there(step: int) -> None:
    """End as if the run were stopped after this step."""
    raise StepReached(step)


class Material(Protocol):
    """What a stage learns from. rendering: how prompts are rendered, saved with the result."""

    @property
    def total_steps(self) -> int: ...
    @property
    def rendering(self) -> Rendering: ...
    def epoch_of(self, step: int) -> float:
        """Passes over the material after this step."""

    def place_of(self, sample: Sample) -> str:
        """Where a sample came from, in words."""

    def check(self, rows: int) -> None:
        """Raises UserError for what a model with so many embeddings cannot read."""

    def describe(self) -> list[str]:
        """What it is, line by line."""


MaterialOf = TypeVar("MaterialOf", bound=Material)


class StageWork(ABC, Generic[MaterialOf]):
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
        self.reached: Reached = stop_there
        self.status_at = 0.0
        self.added: AddedTokens = NONE

    def execute(self, start: Start, device: torch.device) -> Start:
        """Train from `start`; returns where the next stage starts."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tokenizer = open_tokenizer(start)
        self.added = add_tokens(tokenizer, self.settings.add_tokens)
        for line in describe_added(tokenizer, self.added):
            self.console.print(f"{self.title}: {line}", highlight=False, markup=False)
        material = self.open_material(tokenizer)
        training, state = self.make_training(start, material, device)
        material.check(len(training.model.head.weight_VD))
        if self.index == 0:
            lock_base(self.run, self.recipe, start)
        log = self.folder / "log.txt"
        with StageProgress(self.console, log, self.title, material.total_steps) as progress:
            self.describe(progress, training, material, state)

            def report(row: Row) -> None:
                progress.step(row)
                self.write_status(row, material.total_steps)
                if "split" not in row and row["step"] == self.last_step:
                    self.reached(row["step"])

            training.report = report
            self.equip(training, material, progress)
            progress.advance_to(state.step)
            state = fit(training, state)
            self.describe_end(progress, training, state)
            self.save_result(training, state, material.rendering, tokenizer)
        return Start.at(str(self.folder / "model"), start.trust)

    @abstractmethod
    def open_material(self, tokenizer: PreTrainedTokenizerBase) -> MaterialOf:
        """What the stage learns from, as a resumed run began with it; locks what it depends on."""

    @abstractmethod
    def equip(self, training: Training, material: MaterialOf, progress: StageProgress) -> None:
        """Give `training` its loss, its samples and what else the method has.

        Called with the model at the stage's start or at a checkpoint.
        """

    def make_training(
        self, start: Start, material: MaterialOf, device: torch.device
    ) -> tuple[Training, CheckpointState]:
        """Model, optimizer and state, new or from the newest whole checkpoint."""
        settings, adapter = self.settings, self.settings.trains
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
            announce=self.run.announce,
        )
        if settings.gradient_checkpointing:
            model.causal.activation_checkpointing_enable({"use_reentrant": False})
        budget = locked.get("token_budget") or choose_token_budget(model, settings, device)
        name = "bf16" if precision.compute == torch.bfloat16 else "fp32"
        self.lock({"token_budget": budget, "precision": name, "layout": model.layout})
        training = Training(
            model=model,
            optimizer=make_optimizer(model.module, settings.optimizer),
            settings=settings,
            folder=self.folder,
            seed=self.recipe.seed,
            stage=self.index,
            total_steps=material.total_steps,
            token_budget=budget,
            epoch_of=material.epoch_of,
            warn=self.warn,
            conceal=self.run.conceal,
            place_of=material.place_of,
            smaller_budgets=[(step, tokens) for step, tokens in locked.get("smaller_budgets", [])],
            keep_budgets=lambda budgets: self.lock({"smaller_budgets": [list(b) for b in budgets]}),
        )
        if checkpoint is None:
            return training, CheckpointState(step=0, evaluated=False)
        return training, restore(training, checkpoint)

    def describe(
        self,
        progress: StageProgress,
        training: Training,
        material: MaterialOf,
        state: CheckpointState,
    ) -> None:
        """Say what was derived before the first step."""
        model = training.model
        trained = sum(p.numel() for _, p in model.trainable())
        total = count_weights(model.module)
        compute = str(model.precision.compute).removeprefix("torch.")
        reason = f" ({model.layout_reason})" if model.layout_reason else ""
        for line in (
            *material.describe(),
            f"{trained:,} of {total:,} parameters trained on {model.device.type}",
            f"precision {compute}: {model.precision.reason}",
            f"layout {model.layout}{reason}, {training.token_budget:,} tokens at once",
            *model.remarks,
            str(check_disk(training)),
            describe_cut_warmup(self.settings, material.total_steps),
            f"step {state.step} of {material.total_steps}",
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
        rendering: Rendering,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        """The stage's `model/`: weights or adapter, tokenizer, template, rendering."""

        def write(folder: Path) -> None:
            model = training.model
            save_model(model.module, folder, self.run.conceal)
            tokenizer.chat_template = rendering.template
            tokenizer.save_pretrained(folder)
            ends = rendering.end_token_ids
            config = GenerationConfig.from_model_config(model.causal.config)
            config.eos_token_id, config.pad_token_id = list(ends), tokenizer.pad_token_id
            config.save_pretrained(folder)
            rendering.write(folder)

        try:
            write_making_room(
                lambda: write_folder(self.folder / "model", write, self.run.announce),
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
