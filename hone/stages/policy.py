"""The stage `grpo`: sample, score, learn from the scores.

A story around `rollouts.py`: which rollouts a step learns from, what the rows say of them, and the
bound on how far sampling and training may be apart. Left out: losses (losses/policy.py).
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from rich.console import Console
from torch import nn
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from hone.credit import make_credit
from hone.errors import UserError
from hone.forest import Batch
from hone.frozen_start import open_start
from hone.losses import LossFunction, LossOutput
from hone.losses.policy import PolicySettings, make_policy_loss
from hone.provenance import record_files
from hone.recipe.policy import Grpo
from hone.recipe.schema import Recipe
from hone.recorded import Rollout
from hone.records import Sample
from hone.rewards.pool import Scorer
from hone.rollouts import Player, to_samples
from hone.runs import Run
from hone.stages.progress import StageProgress
from hone.stages.start import Start
from hone.stages.tasks import Tasks, check_metric, code_files, data_files, open_tasks
from hone.stages.work import StageWork
from hone.training import Training

# Mean distance of a token's log-probability between sampling and training, where they are the same
# weights. In fp32 only the order of sums differs (1e-6 is usual), so that 1e-3 is a fault. In bf16
# each of the two is off by its rounding, a few hundredths; from 0.1 on ratios are noise.
MAX_GAP = {torch.float32: 1e-3, torch.float64: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}


class PolicyStage(StageWork[Tasks]):
    """A stage that learns from what its model has answered."""

    def __init__(
        self, run: Run, recipe: Recipe, index: int, console: Console, last_step: int | None = None
    ) -> None:
        super().__init__(run, recipe, index, console, last_step)
        self.rollouts: tuple[int, list[Rollout]] = (0, [])
        self.held = ExitStack()
        self.tokenizer: PreTrainedTokenizerBase | None = None

    @property
    def policy(self) -> Grpo:
        """The stage's settings."""
        return cast(Grpo, self.settings)

    def execute(self, start: Start, device: torch.device) -> Start:
        """As every stage; the processes that score end with it, however it ends."""
        with self.held:
            return super().execute(start, device)

    def open_material(self, tokenizer: PreTrainedTokenizerBase) -> Tasks:
        """The tasks, which have to be those that a resumed run began with."""
        self.tokenizer = tokenizer
        tasks = open_tasks(
            self.policy,
            tokenizer,
            date=self.run.read_lock_json()["date"],
            seed=self.recipe.seed,
            stage=self.index,
        )
        self.lock_source("tasks", tasks.digest(), data_files(self.policy))
        self.lock_source("code", "", code_files(self.policy))
        return tasks

    def lock_source(self, name: str, key: str, files: Sequence[Path]) -> None:
        """Keep what the stage's bytes depend on; raises UserError where it has changed."""
        locked = self.locked().get(name)
        if locked is not None and locked["key"] != key:
            raise UserError(
                f"the {name} of stage {self.index + 1} are not those that the run "
                f"`{self.run.name}` began with, so resuming could not be exact",
                hint="put files, template, tokenizer and versions back as they were, or start a "
                "new run",
            )
        if locked is None:
            self.lock({name: {"key": key, "sources": record_files(files)}})

    def equip(self, training: Training, material: Tasks, progress: StageProgress) -> None:
        settings, model = self.policy, training.model
        sources = [settings.environment] if settings.environment else []
        scorer = Scorer(
            [*sources, *settings.rewards],
            seed=self.recipe.seed,
            log=self.folder / "rewards.txt",
        )
        check_metric(settings, self.held.enter_context(scorer).names)
        if turn_off_dropout(model.causal):
            progress.say(
                f"{self.title}: dropout is off, because what is sampled and what is trained must "
                "be the same model"
            )
        model.head = replace(model.head, temperature=settings.temperature)
        environment = material.environment
        player = Player(
            training=training,
            settings=settings,
            scorer=scorer,
            credit=make_credit(settings.credit),
            tokenizer=self.tokenizer,
            end_token_ids=material.rendering.end_token_ids,
            questions_of=material.questions_of,
            more=material.more,
            held_out=material.held_out.questions,
            full_marks=environment.full_marks if environment else {},
            reference=open_start(training) if settings.beta else None,
            smaller=[(moment, n) for moment, n in self.locked().get("smaller_sequences", [])],
            keep_smaller=lambda smaller: self.lock({"smaller_sequences": [*map(list, smaller)]}),
            tell=lambda text: progress.bar.update(progress.task, text=text),
        )
        bound = GapBound(settings, material, MAX_GAP[model.precision.compute])
        own = PolicySettings(
            settings.clip, settings.clip_high, settings.beta, settings.completion_tokens
        )
        training.loss = bound.around(make_policy_loss(settings.loss, own))
        training.wants_entropy = True
        training.prepare = bound.begin
        training.samples_of = partial(self.samples_of, player, material)
        training.facts_of = lambda step: player.summarise(self.rollouts[1])
        training.evaluate = player.evaluate

    def samples_of(self, player: Player, material: Tasks, step: int) -> list[Sample]:
        """What a step learns from; several steps learn from the same rollouts where `updates` says
        so.
        """
        first = material.first_step_of(step)
        if self.rollouts[0] != first:
            self.rollouts = first, player.rollouts_of(first)
        else:
            player.sampling_s = player.scoring_s = 0.0
        return to_samples(self.rollouts[1])


def turn_off_dropout(module: nn.Module) -> bool:
    """Leave all dropout out, that of adapters included; returns whether there was any.

    transformers keeps it in modules of its own, or as a number of the layer.
    """
    found = False
    for part in module.modules():
        names = ["p"] if isinstance(part, nn.Dropout) else [n for n in vars(part) if "dropout" in n]
        for name in names:
            if isinstance(share := getattr(part, name), float):
                found |= share > 0
                setattr(part, name, 0.0)
    return found


class GapBound:
    """Holds the distance between sampling and training to a bound, before the update it would
    spoil: at the first one of every batch of rollouts, where the weights are still the same.
    """

    def __init__(self, settings: Grpo, material: Tasks, usual: float) -> None:
        self.limit = settings.max_gap or usual
        self.first_step_of = material.first_step_of
        self.step: float = 0
        self.gap = 0.0

    def begin(self, samples: Sequence[Sample], moment: float) -> Sequence[Sample]:
        """A step begins, perhaps again."""
        self.step, self.gap = moment, 0.0
        return samples

    def around(self, loss: LossFunction) -> LossFunction:
        """The loss with the bound on its `gap`, whose parts add up over the micro-batches."""

        def bounded(logprobs_P: torch.Tensor, batch: Batch) -> LossOutput:
            output = loss(logprobs_P, batch)
            self.gap += float(output.metrics["gap"])
            if self.gap > self.limit and self.step == self.first_step_of(int(self.step)):
                raise UserError(
                    f"step {self.step:.0f}: tokens had another probability when they were sampled "
                    f"than in training: {self.gap:.2g} in the mean of their logarithms, more than "
                    f"`max_gap` {self.limit:g}",
                    hint="use `precision: fp32`, or allow more with `max_gap`",
                )
            return output

        return bounded
