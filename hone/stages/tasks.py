"""What a policy stage asks: tasks with rendered prompts, held-out ones, and the order of them.

Called by `policy.py`, `hone check` and `hone data show`. Left out: what environments are
(environments/), and how completions come about (rollouts.py).
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from hone.credit import make_credit
from hone.data.chat import Renderer
from hone.data.rows import RowError
from hone.data.sources import open_source
from hone.environments import Environment, check_gold, make_environment
from hone.environments.tasks import hold_out, read_tasks
from hone.errors import UserError
from hone.losses.policy import PolicySettings, make_policy_loss
from hone.optim import warmup_steps
from hone.own_code import own_file
from hone.recipe.policy import Grpo, Prompts
from hone.recipe.rewards import Custom, FromFile, TaskFile
from hone.recipe.training import BatchSize
from hone.records import Sample, Task
from hone.rewards.functions import load_reward, name_of
from hone.rewards.pool import check_names
from hone.rollouts import Question, other_questions
from hone.sampling import Rendering
from hone.seeds import Order, shuffle

CHECK_S = 10.0  # how long gold answers are scored by `hone check`
ANSWERS = ("user", "tool")  # whose turn comes before an answer


@dataclass(frozen=True)
class Asked:
    """The questions of one split. too_long: tasks whose prompts were left out."""

    questions: list[Question]
    too_long: int


@dataclass(frozen=True)
class Tasks:
    """A stage's training and held-out questions. order: which ones each batch of rollouts has."""

    settings: Grpo
    training: Asked
    held_out: Asked
    rendering: Rendering
    order: Order
    total_steps: int
    environment: Environment | None

    @property
    def questions(self) -> list[Question]:
        """What is trained on."""
        return self.training.questions

    def batch_of(self, step: int) -> int:
        """The number of the batch of rollouts, from 1, that a step learns from."""
        return (step - 1) // self.settings.updates + 1

    def first_step_of(self, step: int) -> int:
        """The first step that learns from the same rollouts."""
        return (self.batch_of(step) - 1) * self.settings.updates + 1

    def questions_of(self, step: int) -> list[Question]:
        """What is asked before a step, the first with its rollouts."""
        return [self.questions[int(i)] for i in self.order.samples_of(self.batch_of(step))]

    def more(self, step: int, asked: set[int], count: int) -> list[Question]:
        """Other questions for the same step."""
        origin = self.order.seed, self.order.stage, "more", step
        return other_questions(self.questions, asked, count, *origin)

    def epoch_of(self, step: int) -> float:
        """Passes over the tasks after a step."""
        return self.order.epoch_of(self.batch_of(step))

    def place_of(self, sample: Sample) -> str:
        """Where a task came from."""
        found = next(q.task for q in self.questions if q.task.index == sample.index)
        return found.place or f"task {found.index}"

    def check(self, rows: int) -> None:
        """Raises UserError for a prompt with a token that a model of so many embeddings lacks."""
        for question in (*self.questions, *self.held_out.questions):
            if max(question.ids) >= rows:
                raise UserError(
                    f"the prompt of {question.task.place or question.task.index} holds the token "
                    f"{max(question.ids)}, and the model has {rows} embeddings, 0 to {rows - 1}",
                    hint="the tokenizer is of another model",
                    exit_code=2,
                )

    def describe(self) -> list[str]:
        """Tasks, prompts and what was left out of them, line by line."""
        lengths = [len(question.ids) for question in self.questions]
        count = self.settings.batch.samples * self.settings.group
        lines = [
            f"{len(lengths):,} tasks, {len(self.held_out.questions):,} held out, prompts of "
            f"{min(lengths):,} to {max(lengths):,} tokens; {count:,} completions for each "
            f"{_updates(self.settings.updates)}"
        ]
        if dropped := self.training.too_long + self.held_out.too_long:
            lines.append(
                f"{dropped:,} tasks left out, their prompts are longer than "
                f"{self.settings.prompt_tokens:,} tokens"
            )
        return lines

    def digest(self) -> str:
        """What the stage's bytes depend on, apart from the recipe: all prompts and columns."""
        everything = [
            [question.ids, question.task.columns]
            for question in (*self.questions, *self.held_out.questions)
        ]
        text = json.dumps(everything, sort_keys=True, default=repr)
        return sha256(text.encode()).hexdigest()


def open_tasks(
    settings: Grpo, tokenizer: PreTrainedTokenizerBase, *, date: str, seed: int, stage: int
) -> Tasks:
    """The tasks of a stage with their prompts rendered. Raises UserError for what is wrong with
    them.
    """
    environment = make_environment(settings.environment) if settings.environment else None
    training, held_out = _splits(settings, environment, seed)
    renderer = Renderer(tokenizer, settings.template, date=date)
    asked = [render(renderer, tasks, settings.prompt_tokens) for tasks in (training, held_out)]
    if not asked[0].questions:
        raise UserError(
            f"no prompt of {asked[0].too_long:,} has at most `prompt_tokens` "
            f"{settings.prompt_tokens:,} tokens",
            hint="raise `prompt_tokens`",
            exit_code=2,
        )
    if settings.evaluation is not None and not asked[1].questions:
        raise UserError("`evaluation`: there is no held-out task", exit_code=2)
    plain = isinstance(training[0].prompt, str)
    rendering = Rendering(plain, renderer.template, renderer.date, renderer.end_token_ids)
    lengths = np.array([len(question.ids) for question in asked[0].questions], dtype=np.int32)
    order = Order(lengths, BatchSize(samples=settings.batch.samples), seed, stage)
    total = settings.steps or order.count_steps(settings.epochs or 1.0) * settings.updates
    warmup_steps(settings, total)
    return Tasks(settings, asked[0], asked[1], rendering, order, total, environment)


def render(renderer: Renderer, tasks: Sequence[Task], longest: int) -> Asked:
    """The prompts as the model reads them, without those that are too long."""
    kinds = {isinstance(task.prompt, str) for task in tasks}
    if len(kinds) > 1:
        raise UserError(
            "some prompts are text and some are messages; expected one of the two", exit_code=2
        )
    questions = [Question(task, _prompt_ids(renderer, task)) for task in tasks]
    kept = [question for question in questions if len(question.ids) <= longest]
    return Asked(kept, len(questions) - len(kept))


def _prompt_ids(renderer: Renderer, task: Task) -> list[int]:
    where = task.place or f"task {task.index}"
    if isinstance(task.prompt, list) and task.prompt[-1].get("role") not in ANSWERS:
        raise UserError(
            f"{where}: the last message of the prompt is of role "
            f"`{task.prompt[-1].get('role')}`; expected one of the user's, which is answered",
            exit_code=2,
        )
    try:
        ids = renderer.prompt(task.prompt)
    except RowError as error:
        raise UserError(f"{where}: {error.message}", hint=error.hint, exit_code=2) from error
    if not ids:
        raise UserError(f"{where}: the prompt is empty; expected a token at least", exit_code=2)
    return ids


def _splits(
    settings: Grpo, environment: Environment | None, seed: int
) -> tuple[Sequence[Task], Sequence[Task]]:
    """(training, held-out) tasks; held-out ones only where they are evaluated."""
    evaluation = settings.evaluation
    if environment is not None:
        training = environment.tasks("train")
        held_out = environment.tasks("evaluation") if evaluation else []
    else:
        assert settings.data is not None, "a stage has an environment or data"
        training, held_out = _read(settings.data), []
        if evaluation is not None and evaluation.data is not None:
            held_out = _read(evaluation.data)
        elif evaluation is not None:
            training, held_out = hold_out(training, evaluation.share or 0.0, seed)
    if not training:
        raise UserError("the environment has no tasks to train on", exit_code=2)
    if evaluation is not None and evaluation.samples is not None:
        chosen = shuffle(len(held_out), seed, "held out")[: evaluation.samples]
        held_out = [held_out[int(n)] for n in chosen]
    return training, held_out


def _read(source: Prompts) -> Sequence[Task]:
    """The rows of a file as tasks; the rewards get the prompt's own column under its name too."""
    return read_tasks(source.path, source.split, source.columns.prompt)


def _updates(count: int) -> str:
    return "step" if count == 1 else f"{count} steps"


def data_files(settings: Grpo) -> list[Path]:
    """The files that tasks are read from."""
    sources: list[TaskFile | None] = [settings.data]
    if settings.evaluation is not None:
        sources.append(settings.evaluation.data)
    if isinstance(settings.environment, FromFile):
        sources += [settings.environment.data, settings.environment.evaluation]
    return [
        path
        for source in sources
        if source
        for path in open_source(source.path, source.split).files
    ]


def code_files(settings: Grpo) -> list[Path]:
    """The person's own files that the stage's bytes depend on."""
    names = [reward.function for reward in settings.rewards]
    names += [name for name in (settings.credit, settings.loss) if ":" in name]
    if isinstance(settings.environment, Custom):
        names.append(settings.environment.code)
    return sorted({own_file(name) for name in names})


def check_code(tasks: Tasks) -> list[str]:
    """The names of all rewards. Raises UserError for a function of the person's own that cannot be
    imported, for two rewards of one name, and for early stopping by one that there is not.
    """
    settings = tasks.settings
    for reward in settings.rewards:
        load_reward(reward)
    names = list(tasks.environment.full_marks) if tasks.environment else []
    names += [name_of(reward) for reward in settings.rewards]
    check_names(names)
    check_metric(settings, names)
    make_credit(settings.credit)
    make_policy_loss(settings.loss, PolicySettings(settings.clip, None, settings.beta, 1))
    return names


def check_metric(settings: Grpo, names: Sequence[str]) -> None:
    """Raises UserError where early stopping watches what there will not be. names: of rewards."""
    stopping = settings.evaluation.early_stopping if settings.evaluation else None
    known = ["reward", *(f"reward/{name}" for name in names)]
    if stopping and stopping.metric not in known:
        raise UserError(
            f"`evaluation.early_stopping.metric` is `{stopping.metric}`; expected one of "
            f"{', '.join(known)}",
            exit_code=2,
        )


def check_gold_answers(tasks: Tasks) -> list[str]:
    """Have gold answers scored, as many as there is time for; returns what was found in words.

    Raises UserError for one that does not score full marks.
    """
    environment = tasks.environment
    everything = [q.task for q in (*tasks.questions, *tasks.held_out.questions)]
    known = [task for task in everything if task.gold is not None]
    if environment is None or not known:
        return []
    end, checked = time.monotonic() + CHECK_S, 0
    for task in known:
        check_gold(environment, [task])
        checked += 1
        if time.monotonic() > end:
            break
    return [f"{checked:,} of {len(known):,} gold answers were scored, all with full marks"]


def shown(tasks: Tasks, tokenizer: Any, count: int, start: int = 0) -> list[dict[str, Any]]:
    """Some prompts as the model reads them, as plain values."""
    return [
        {
            "task": question.task.index,
            "place": question.task.place,
            "num_tokens": len(question.ids),
            "text": tokenizer.decode(question.ids),
            "ids": question.ids,
            "gold": question.task.gold,
        }
        for question in tasks.questions[start : start + count]
    ]
