"""The one optimizer step, for all methods: plan, accumulate, check, update, evaluate, keep.

A method gives `fit` the samples of each step and a loss over log-probabilities. Everything that
happens at step k is a function of (seed, stage, k): order, cuts, dropout, learning rate. So a run
that was stopped or killed goes on from its newest checkpoint and ends in the same bytes. Sums are
divided by counts over the whole step, taken before the first forward. An unfinished step leaves no
trace: parameters move, and the row is written, in one uninterrupted section.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from hone.checkpoints import (
    CheckpointState,
    find_fault,
    find_newest,
    prune,
    read_state,
    save_checkpoint,
    step_folder,
)
from hone.device import peak_memory_bytes, reset_peak_memory, seed_torch
from hone.errors import UserError
from hone.forest import StepCounts, count_step, plan_micro_batches
from hone.losses import LossFunction
from hone.metrics import MetricsWriter, Row
from hone.models import LanguageModel, save_model
from hone.optim import make_schedule, optimizer_tensors, restore_optimizer, set_learning_rate
from hone.recipe.schema import TrainingStage
from hone.records import Sample
from hone.signals import StopRequested, check_stop, uninterrupted

OPTIMIZER = "optimizer.safetensors"


@dataclass
class Training:
    """All that one stage's training needs; made by the stage, used up by `fit`.

    samples_of: the samples of step 1, 2, ...; held_out: the samples of evaluations, empty for none.
    conceal: hides in what is saved what the recipe took from the environment.
    """

    model: LanguageModel
    optimizer: torch.optim.Optimizer
    loss: LossFunction
    settings: TrainingStage
    folder: Path
    seed: int
    stage: int
    total_steps: int
    samples_of: Callable[[int], Sequence[Sample]]
    held_out: Sequence[Sample]
    token_budget: int
    report: Callable[[Row], None]
    epoch_of: Callable[[int], float]
    conceal: Callable[[str], str] = str

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are kept."""
        return self.folder / "checkpoints"

    def evaluates_at(self, step: int) -> bool:
        """True where an evaluation is due after `step` updates."""
        evaluation = self.settings.evaluation
        if evaluation is None:
            return False
        if step == 0:
            return evaluation.before
        return step % evaluation.every == 0 or step == self.total_steps


def fit(training: Training, state: CheckpointState) -> CheckpointState:
    """Train from `state` to the last step; returns the state after it.

    Raises StopRequested after saving the last whole step, and UserError where loss or gradients are
    not finite.
    """
    began = time.perf_counter() - state.time_s
    path = training.folder / "metrics.jsonl"
    with MetricsWriter(path) as metrics:
        if state.step or path.stat().st_size:
            metrics.resumed_from(state.step)
        loop = _Loop(training, state, metrics, began)
        try:
            loop.run()
        except (StopRequested, UserError):
            with uninterrupted():
                loop.save()
            raise
        return loop.state


class _Loop:
    """The state that lives while a stage trains: how far it is, and its metrics file."""

    def __init__(
        self, training: Training, state: CheckpointState, metrics: MetricsWriter, began: float
    ) -> None:
        self.training = training
        self.state = state
        self.metrics = metrics
        self.began = began
        self.schedule = make_schedule(training.settings, training.total_steps)
        self.parameters = [parameter for _, parameter in training.model.trainable()]

    def run(self) -> None:
        """All steps that are left."""
        every = self.training.settings.checkpoint.every
        self.evaluate_if_due()
        while self.state.step < self.training.total_steps:
            check_stop()
            self.train_step(self.state.step + 1)
            self.evaluate_if_due()
            if self.state.step % every == 0 or self.state.step in (
                self.state.best_step,
                self.training.total_steps,
            ):
                self.save()

    def train_step(self, step: int) -> None:
        """Accumulate over the step's micro-batches, check, update, write the row."""
        training, model = self.training, self.training.model
        started = time.perf_counter()
        reset_peak_memory(model.device)
        samples = training.samples_of(step)
        counts = count_step(samples)
        training.optimizer.zero_grad(set_to_none=True)
        model.module.train()
        loss, tokens, sums = 0.0, 0, dict[str, float]()
        for part, indices in enumerate(plan_step(training, samples)):
            seed_torch(training.seed, training.stage, step, "dropout", part)
            batch = model.make_batch([samples[i] for i in indices], counts=counts, indices=indices)
            with model.laid_out(batch):
                output = training.loss(model.logprobs(batch), batch)
                output.total.backward()
            loss += output.total.item()
            tokens += batch.input_ids.numel()
            for name, value in output.metrics.items():
                sums[name] = sums.get(name, 0.0) + float(value)
        norm = self.clip()
        check_finite(loss, norm, step, samples)
        learning_rate = self.schedule(step)
        set_learning_rate(training.optimizer, learning_rate)
        with uninterrupted():
            training.optimizer.step()
            taken = time.perf_counter() - started
            row = {
                "step": step,
                "time_s": round(time.perf_counter() - self.began, 3),
                "epoch": round(training.epoch_of(step), 4),
                "loss": loss,
                "learning_rate": learning_rate,
                "grad_norm": norm,
                "tokens": tokens,
                "trained_tokens": counts.trained_tokens,
                "samples": counts.samples,
                **sums,
                "step_s": round(taken, 4),
                "tokens_per_s": round(tokens / taken, 1),
                "peak_memory_bytes": peak_memory_bytes(model.device),
            }
            self.metrics.write(row)
            self.state = replace(self.state, step=step, evaluated=False)
        training.report(row)

    def clip(self) -> float:
        """The norm of all gradients, which are scaled down to the recipe's limit."""
        limit = self.training.settings.max_grad_norm
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if limit is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, limit, norm)
        return norm.item()

    def evaluate_if_due(self) -> None:
        """Held-out loss after this step, unless the metrics have it already; keeps the best."""
        step = self.state.step
        if self.state.evaluated or not self.training.evaluates_at(step):
            return
        row = {
            "step": step,
            "split": "evaluation",
            **evaluate(self.training),
            "time_s": round(time.perf_counter() - self.began, 3),
        }
        with uninterrupted():
            self.metrics.write(row)
            best = self.state.best_loss
            if step and (best is None or row["loss"] < best):
                self.state = replace(self.state, best_step=step, best_loss=row["loss"])
            self.state = replace(self.state, evaluated=True)
        self.training.report(row)

    def save(self) -> None:
        """A checkpoint of the last whole step, if there is none yet; then prune old ones."""
        training, state = self.training, self.state
        if state.step == 0:
            return
        folder = step_folder(training.checkpoints, state.step)
        if not folder.exists() or read_state(folder).evaluated != state.evaluated:
            self.state = state = replace(state, time_s=round(time.perf_counter() - self.began, 3))
            self.metrics.sync()
            save_checkpoint(training.checkpoints, state, self.write)
        prune(
            training.checkpoints, keep=training.settings.checkpoint.keep, best_step=state.best_step
        )

    def write(self, folder: Path) -> None:
        """Weights and optimizer state into an empty folder."""
        training = self.training
        save_model(training.model.module, folder, training.conceal)
        save_file(
            optimizer_tensors(training.optimizer, training.model.trainable()), folder / OPTIMIZER
        )


def plan_step(training: Training, samples: Sequence[Sample]) -> list[list[int]]:
    """How a step is cut into micro-batches: by its samples, the layout and the budget."""
    layout = training.model.layout
    return plan_micro_batches(
        samples, training.token_budget, padded=layout != "forest", alone=layout == "alone"
    )


def check_finite(loss: float, norm: float, step: int, samples: Sequence[Sample]) -> None:
    """Raises UserError, before the update, where loss or gradient norm is not a finite number."""
    if math.isfinite(loss) and math.isfinite(norm):
        return
    rows = ", ".join(str(sample.index) for sample in samples[:20])
    raise UserError(
        f"step {step}: loss is {loss} and the gradient norm {norm}, expected finite numbers; "
        "the update was not made. "
        f"Samples of the step: {rows}",
        hint="look at these samples with `hone data show`, or lower `learning_rate`",
    )


@torch.no_grad()
def evaluate(training: Training) -> Row:
    """Mean held-out loss per trained token; never touches the randomness of training."""
    model, samples = training.model, training.held_out
    model.module.eval()
    total = 0.0
    for indices in plan_step(training, samples):
        check_stop()
        chosen = [samples[i] for i in indices]
        batch = model.make_batch(chosen, counts=StepCounts(1, 1))
        with model.laid_out(batch):
            total += training.loss(model.logprobs(batch), batch).total.item()
    counts = count_step(samples)
    return {
        "loss": total / counts.trained_tokens,
        "trained_tokens": counts.trained_tokens,
        "samples": counts.samples,
    }


def find_start(training_folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest whole checkpoint of a stage, or None; broken ones are named and left out."""
    newest, broken = find_newest(training_folder / "checkpoints")
    for path, reason in broken:
        warn(f"checkpoint {path.name} is broken ({reason}); going back to the one before")
    return newest


def restore(training: Training, checkpoint: Path) -> CheckpointState:
    """Put the optimizer's state back; the weights came from the checkpoint with the model."""
    assert find_fault(checkpoint) is None, f"{checkpoint} is not whole"
    restore_optimizer(
        training.optimizer, training.model.trainable(), load_file(checkpoint / OPTIMIZER)
    )
    return read_state(checkpoint)
