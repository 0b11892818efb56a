"""The one optimizer step, for all methods: plan, accumulate, check, update, evaluate, keep.

A method gives `fit` the samples of each step and a loss over log-probabilities. Everything that
happens at step k is a function of (seed, stage, k): order, cuts, dropout, learning rate. So a run
that was stopped or killed goes on from its newest checkpoint and ends in the same bytes. Sums are
divided by counts over the whole step, taken before the first forward. An unfinished step leaves no
trace: parameters move, and the row is written, in one uninterrupted section.

Faults have one outcome each: where memory runs out the step is cut smaller and done again; a step
whose loss or gradient is not finite makes no update; where the disk is full training goes on.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
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
    write_making_room,
)
from hone.cutting import in_memory, plan_step
from hone.device import peak_memory_bytes, reset_peak_memory, seed_torch
from hone.early_stopping import judge_evaluation
from hone.errors import UserError
from hone.files import is_disk_full, room_permitting
from hone.forest import Batch, StepCounts, count_step
from hone.logprobs import Scores
from hone.memory import is_out_of_memory
from hone.metrics import MetricsWriter, Row
from hone.models import first_line, save_model
from hone.optim import make_schedule, optimizer_tensors, restore_optimizer, set_learning_rate
from hone.quarantine import QUARANTINE, quarantine, take_back
from hone.records import Sample
from hone.signals import StopRequested, check_stop, uninterrupted
from hone.training import EVALUATION, Training

OPTIMIZER = "optimizer.safetensors"


@dataclass
class _Sums:
    """What a step adds up over its micro-batches. suspects: samples of those with a bad loss."""

    loss: float = 0.0
    tokens: int = 0
    norm: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    suspects: list[int] = field(default_factory=list)

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.norm)


def fit(training: Training, state: CheckpointState) -> CheckpointState:
    """Train from `state` to the last step, or to where early stopping ends it; returns the state
    after it.

    Raises StopRequested after saving the last whole step, and UserError where a sample does not fit
    into the memory or too many steps in a row have no finite loss.
    """
    began = time.perf_counter() - state.time_s
    path = training.folder / "metrics.jsonl"
    take_back(training.folder, state.step)
    with MetricsWriter(path) as metrics:
        if state.step or path.stat().st_size:
            metrics.resumed_from(state.step)
        loop = _Loop(training, state, metrics, began)
        try:
            loop.run()
        except (StopRequested, UserError):
            with uninterrupted():
                if loop.weights_are_finite():
                    loop.save()
            raise
        if metrics.waiting:
            training.warn(f"{metrics.waiting} rows of metrics are lost, the disk is full")
        return loop.state


class _Loop:
    """The state that lives while a stage trains: how far it is, and its metrics file.

    saved: the (step, evaluated) of the checkpoint that is on disk. disk_was_full: the last save
    failed. torn: the weights are not those of a whole step, or not finite.
    """

    def __init__(
        self, training: Training, state: CheckpointState, metrics: MetricsWriter, began: float
    ) -> None:
        self.training = training
        self.state = state
        self.metrics = metrics
        self.began = began
        self.schedule = make_schedule(training.settings, training.total_steps)
        self.parameters = [parameter for _, parameter in training.model.trainable()]
        self.saved = (state.step, state.evaluated)
        self.disk_was_full = False
        self.torn = False
        self.not_finite_before = self.count_not_finite()

    def run(self) -> None:
        """All steps that are left."""
        every = self.training.settings.checkpoint.every
        self.evaluate_if_due()
        while self.state.step < self.training.total_steps and not self.state.stopped_early:
            check_stop()
            self.train_step(self.state.step + 1)
            self.evaluate_if_due()
            last = self.state.step == self.training.total_steps or self.state.stopped_early
            if last or self.state.step % every == 0 or self.state.step == self.state.best_step:
                self.save()

    # One step

    def train_step(self, step: int) -> None:
        """Accumulate over the step's micro-batches, check, update, write the row."""
        training, model = self.training, self.training.model
        started = time.perf_counter()
        reset_peak_memory(model.device)
        samples = training.samples_of(step)
        counts = count_step(samples)
        sums = in_memory(training, step, lambda: self.accumulate(step, samples, counts))
        learning_rate = self.schedule(step)
        with uninterrupted():
            if sums.finite and samples:
                self.update(learning_rate)
            elif samples:
                self.quarantine(step, samples, sums)
            taken = time.perf_counter() - started
            row = {
                "step": step,
                "time_s": round(time.perf_counter() - self.began, 3),
                "epoch": round(training.epoch_of(step), 4),
                "loss": sums.loss,
                "learning_rate": learning_rate,
                "grad_norm": sums.norm,
                "tokens": sums.tokens,
                "trained_tokens": counts.trained_tokens,
                "samples": counts.samples,
                **({} if sums.finite and samples else {"skipped": 1}),
                **sums.metrics,
                **training.facts_of(step),
                "step_s": round(taken, 4),
                "tokens_per_s": round(sums.tokens / taken, 1),
                "peak_memory_bytes": peak_memory_bytes(model.device),
            }
            self.write_row(row)
            skipped = 0 if sums.finite else self.state.skipped_in_a_row + 1
            self.state = replace(self.state, step=step, evaluated=False, skipped_in_a_row=skipped)
        training.report(row)
        if skipped > training.settings.max_skipped_steps:
            raise self.too_many_skipped()

    def accumulate(self, step: int, samples: Sequence[Sample], counts: StepCounts) -> _Sums:
        """Gradients of the whole step, clipped; the parameters stay as they are."""
        training, model, sums = self.training, self.training.model, _Sums()
        training.optimizer.zero_grad(set_to_none=True)
        samples = training.prepare(samples, step)
        model.module.train()
        for part, indices in enumerate(plan_step(training, samples, step)):
            training.at_work = [samples[i] for i in indices]
            seed_torch(training.seed, training.stage, step, "dropout", part)
            batch = model.make_batch(training.at_work, counts=counts, indices=indices)
            with model.laid_out(batch):
                scores, batch = score(training, batch)
                output = training.loss(scores.logprobs, batch)
                output.total.backward()
            loss = output.total.item()
            if not math.isfinite(loss):
                sums.suspects += [sample.index for sample in training.at_work]
            sums.loss += loss
            sums.tokens += batch.input_ids.numel()
            for name, value in output.metrics.items():
                sums.metrics[name] = sums.metrics.get(name, 0.0) + float(value)
        sums.norm = self.clip()
        return sums

    def clip(self) -> float:
        """The norm of all gradients, which are scaled down to the recipe's limit."""
        limit = self.training.settings.max_grad_norm
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if limit is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, limit, norm)
        return norm.item()

    def update(self, learning_rate: float) -> None:
        """Move the parameters. Where memory runs out on the way, they are of no whole step."""
        optimizer = self.training.optimizer
        set_learning_rate(optimizer, learning_rate)
        try:
            optimizer.step()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.torn = True
            raise UserError(
                f"the optimizer's update does not fit into the memory: {first_line(error)}",
                hint="give the run more with `memory: {limit: ...}`, or use an optimizer with less "
                "state, or an adapter",
            ) from error

    # Not finite

    def quarantine(self, step: int, samples: Sequence[Sample], sums: _Sums) -> None:
        """Keep which samples a step without an update had."""
        place_of = self.training.place_of
        named = [{"index": sample.index, "place": place_of(sample)} for sample in samples]
        with room_permitting():
            quarantine(
                self.training.folder,
                step,
                sums.loss,
                sums.norm,
                samples=named,
                suspects=sums.suspects,
            )
        self.training.warn(
            f"step {step} made no update: its loss is {sums.loss} and its gradient norm "
            f"{sums.norm}; its samples are in {QUARANTINE}"
        )

    def too_many_skipped(self) -> UserError:
        """Why the stage stops after steps without an update, and how to go on."""
        training, count = self.training, self.state.skipped_in_a_row
        self.torn = not self.weights_are_finite()
        largest = max(float(p.detach().abs().nan_to_num().max()) for p in self.parameters)
        seen = f"the largest trained number is {largest:.2g}"
        cause = (
            f"look at {training.folder / QUARANTINE}: are these samples as they should be? If so"
        )
        if self.torn:
            seen, cause = "trained numbers are infinite since an earlier update", "For these data"
        return UserError(
            f"step {self.state.step}: {count} steps in a row had a loss or a gradient that is not "
            f"finite, more than max_skipped_steps {training.settings.max_skipped_steps}; {seen}",
            hint=f"{cause}, updates were too large: lower `learning_rate` and begin a new run",
        )

    def weights_are_finite(self) -> bool:
        """True where no trained number has become infinite or NaN in this attempt."""
        return self.count_not_finite() <= self.not_finite_before

    def count_not_finite(self) -> int:
        """Trained numbers that are infinite or NaN; some models begin with unused rows of them."""
        return sum(int((~torch.isfinite(p)).sum()) for p in self.parameters)

    # Evaluation

    def evaluate_if_due(self) -> None:
        """Held-out loss after this step, unless the metrics have it already; keeps the best."""
        training, step = self.training, self.state.step
        if self.state.evaluated or not training.evaluates_at(step):
            return
        row = {
            "step": step,
            "split": "evaluation",
            **in_memory(training, step + EVALUATION, self.evaluate),
            "time_s": round(time.perf_counter() - self.began, 3),
        }
        with uninterrupted():
            self.write_row(row)
            state = judge_evaluation(self.state, row, self.training.early_stopping)
            self.state = replace(state, evaluated=True)
        self.training.report(row)

    def evaluate(self) -> Row:
        """What the method measures; never touches the randomness of training."""
        step = self.state.step
        if self.training.evaluate is not None:
            return self.training.evaluate(step)
        return evaluate(self.training, step + EVALUATION)

    # What is kept

    def write_row(self, row: Row) -> None:
        """A row of metrics; the first one that has to wait for room is told."""
        self.metrics.write(row)
        if self.metrics.waiting == 1:
            self.training.warn("the disk is full: rows of metrics wait until there is room")

    def save(self) -> None:
        """A checkpoint of the last whole step, if there is none yet; then prune old ones."""
        training, state = self.training, self.state
        if state.step == 0 or self.torn:
            return
        if not self.weights_are_finite():
            self.torn = True
            raise UserError(
                f"step {state.step}: the update has made weights that are not finite, so they are "
                "not saved",
                hint="lower `learning_rate` and begin a new run",
            )
        keep = training.settings.checkpoint
        if self.saved != (state.step, state.evaluated):
            self.state = state = replace(state, time_s=round(time.perf_counter() - self.began, 3))
            try:
                write_making_room(self.write_checkpoint, training.checkpoints, state.best_step)
            except Exception as error:
                if not is_disk_full(error):
                    raise
                if not self.disk_was_full:
                    training.warn(
                        f"step {state.step}: the disk is full, no checkpoint could be saved; "
                        f"training goes on, and the newest one is {self.newest_checkpoint()}"
                    )
                self.disk_was_full = True
                return
            if self.disk_was_full:
                training.warn(f"step {state.step}: there is room again, a checkpoint was saved")
            self.disk_was_full = False
            self.saved = (state.step, state.evaluated)
        prune(
            training.checkpoints,
            keep=keep.keep,
            best_step=state.best_step,
            keep_every=keep.keep_every,
        )

    def write_checkpoint(self) -> None:
        """The rows so far, then weights, optimizer and state, whole or not at all."""
        self.metrics.sync()
        save_checkpoint(self.training.checkpoints, self.state, self.write)

    def newest_checkpoint(self) -> str:
        """The newest whole checkpoint in words."""
        newest, _ = find_newest(self.training.checkpoints)
        return newest.name if newest else "none"

    def write(self, folder: Path) -> None:
        """Weights and optimizer state into an empty folder."""
        training = self.training
        save_model(training.model.module, folder, training.conceal)
        save_file(
            optimizer_tensors(training.optimizer, training.model.trainable()), folder / OPTIMIZER
        )


def score(training: Training, batch: Batch) -> tuple[Scores, Batch]:
    """What the model says about a batch, and the batch as the loss sees it: with the constant
    `entropy` where the method wants it.
    """
    scores = training.model.scores(batch, entropies=training.wants_entropy)
    if scores.entropies is None:
        return scores, batch
    return scores, replace(batch, constants={**batch.constants, "entropy": scores.entropies})


@torch.no_grad()
def evaluate(training: Training, moment: float) -> Row:
    """The loss on the held-out samples with what it measures besides, and as `accuracy`, where the
    loss has none of its own, the share of trained tokens that are the likeliest one.
    """
    model = training.model
    model.module.eval()
    samples = training.prepare(training.held_out, moment)
    counts = count_step(samples)
    loss = likeliest = 0.0
    metrics: dict[str, float] = {}
    for indices in plan_step(training, samples, moment):
        check_stop()
        training.at_work = [samples[i] for i in indices]
        batch = model.make_batch(training.at_work, counts=counts, indices=indices)
        with model.laid_out(batch):
            scores, batch = score(training, batch)
            output = training.loss(scores.logprobs, batch)
        loss += output.total.item()
        likeliest += scores.likeliest.sum().item()
        for name, value in output.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + float(value)
    return {
        "loss": loss,
        "accuracy": likeliest / counts.trained_tokens,
        **metrics,
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
