"""Groups are played: sampled, scored, credited, and kept before anything is learned from them.

Made by `stages/policy.py` for `fit`. Sampling and scoring overlap: each group is handed to the pool
when it is finished, while the next ones are sampled. Everything is a function of the recipe's seed,
the stage and the step, so that a step that was cut off is sampled again in the same way, and the
scores it has already are used. What failed is recorded on its rollout and never learned from. Left
out: the files (recorded.py), rewards (rewards/), credit (credit.py).
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hone.annotate import annotate
from hone.architecture import first_line
from hone.checkpoints import find_newest, read_state, write_making_room
from hone.choosing import SamplingSettings
from hone.credit import Credit
from hone.cutting import in_memory, in_words
from hone.errors import UserError
from hone.files import is_disk_full, room_permitting
from hone.frozen_start import FrozenStart
from hone.memory import is_out_of_memory, release_memory
from hone.metrics import Row
from hone.recipe.policy import Grpo, Mask, Penalty, Resample
from hone.recorded import (
    CUT_OFF,
    EVALUATION,
    FEW_SURVIVORS,
    NO_SPREAD,
    TRAINING,
    Rollout,
    append_scored,
    groups_of,
    has_spread,
    mark_stopped,
    read_rollouts,
    read_scored,
    rollouts_path,
    summarise,
    write_rollouts,
)
from hone.records import Sample, Segment, Task
from hone.rewards.pool import Scorer
from hone.rewards.scores import Group, Scores, total
from hone.sampler import Completion, Request, make_sampler
from hone.seeds import shuffle
from hone.signals import check_stop
from hone.training import EVALUATION as HALF
from hone.training import Training

STOP_POLL_S = 0.5  # how often it is looked for a stop while scores are waited for
EXAMPLES = 3  # failures that an error shows


@dataclass(frozen=True)
class Question:
    """A task with its prompt as the model reads it."""

    task: Task
    ids: list[int]


@dataclass(frozen=True)
class Round:
    """Questions that are asked together.

    first: the number of the first one's group in the file. seeds: for each question those of its
    completions.
    """

    path: Path
    step: int
    moment: float
    questions: Sequence[Question]
    seeds: Sequence[Sequence[tuple[int | str, ...]]]
    sampling: SamplingSettings
    first: int = 0


@dataclass
class Player:
    """Plays the groups of one stage.

    questions_of: what step k asks; more: (step, tasks already asked, count), other questions.
    smaller: (moment, sequences), from then on at most so many are sampled at once; keep_smaller is
    given all of them before a new one is used. sampling_s, scoring_s: seconds of the last batch
    that was played here, those of scoring after the last completion was there.
    """

    training: Training
    settings: Grpo
    scorer: Scorer
    credit: Credit
    tokenizer: Any
    end_token_ids: Sequence[int]
    questions_of: Callable[[int], Sequence[Question]]
    more: Callable[[int, set[int], int], Sequence[Question]]
    held_out: Sequence[Question] = ()
    full_marks: Mapping[str, float] = field(default_factory=dict)
    reference: FrozenStart | None = None
    smaller: list[tuple[float, int]] = field(default_factory=list)
    keep_smaller: Callable[[list[tuple[float, int]]], None] = lambda smaller: None
    tell: Callable[[str], None] = lambda text: None
    sampling_s: float = 0.0
    scoring_s: float = 0.0

    # A batch of rollouts

    def rollouts_of(self, step: int) -> list[Rollout]:
        """The rollouts that learning begins with at `step`: those that are kept, or new ones, which
        are kept before they are returned.
        """
        path = rollouts_path(self.training.folder, TRAINING, step)
        kept = read_rollouts(path)
        self.sampling_s = self.scoring_s = 0.0
        if kept is None:
            kept = self.with_reference(self.play_step(path, step), step)
            self.keep(path, kept)
        return kept

    def play_step(self, path: Path, step: int) -> list[Rollout]:
        """Play the step's groups, and others for those without spread where the recipe says so."""
        rollouts = self.play_groups(path, step, self.questions_of(step), [])
        if not isinstance(self.settings.no_spread, Resample):
            return rollouts
        latest = rollouts
        for _ in range(self.settings.no_spread.rounds):
            count = sum(_is_flat(group) for group in groups_of(latest))
            others = self.more(step, {rollout.task for rollout in rollouts}, count)
            if not others:
                break
            latest = self.play_groups(path, step, others, rollouts)
            rollouts = rollouts + latest
        return [
            replace(each, left_out=each.left_out or NO_SPREAD) if _is_flat(group) else each
            for group in groups_of(rollouts)
            for each in group
        ]

    def play_groups(
        self, path: Path, step: int, questions: Sequence[Question], before: Sequence[Rollout]
    ) -> list[Rollout]:
        """Sample, score and credit a group for each question. before: what the step has already."""
        training, settings = self.training, self.settings
        first = len(groups_of(before))
        origin = training.seed, training.stage, step
        seeds = [
            [(*origin, "sample", first + n, sample) for sample in range(settings.group)]
            for n in range(len(questions))
        ]
        sampling = self.sampling_settings(settings.temperature)
        asked = Round(path, step, step, questions, seeds, sampling, first)
        played = self.play(asked)
        self.check_failures([*before, *played], path, step, "")
        credited = [self.credited(group) for group in groups_of(played)]
        return [rollout for group in credited for rollout in group]

    def credited(self, group: Sequence[Rollout]) -> list[Rollout]:
        """A group with the advantages of those that survive."""
        overlong = self.settings.overlong
        survivors = [rollout for rollout in group if rollout.survives]
        if len(survivors) < 2:
            return [replace(r, left_out=FEW_SURVIVORS) if r.survives else r for r in group]
        totals_G = np.array([rollout.total for rollout in survivors], dtype=np.float64)
        advantages = dict(
            zip((r.sample for r in survivors), self.credit(totals_G).tolist(), strict=True)
        )
        masked = isinstance(overlong, Mask)
        return [
            replace(
                rollout,
                advantage=advantages.get(rollout.sample),
                left_out=CUT_OFF if masked and rollout.finish == "length" else None,
            )
            for rollout in group
        ]

    def with_reference(self, rollouts: list[Rollout], step: int) -> list[Rollout]:
        """With the log-probabilities at the start of the stage, where there is a KL term."""
        used = [rollout for rollout in rollouts if rollout.used]
        if self.reference is None or not used:
            return rollouts
        with self.reference.in_place():
            samples = in_memory(
                self.training,
                step,
                lambda: annotate(self.training, to_samples(used), step, "reference"),
            )
        found = [
            segment.constants["reference"].astype(np.float32)
            for sample in samples
            for segment in sample.segments[1:]
        ]
        places = {(r.group, r.sample): column for r, column in zip(used, found, strict=True)}
        return [replace(r, reference=places.get((r.group, r.sample))) for r in rollouts]

    def keep(self, path: Path, rollouts: Sequence[Rollout]) -> None:
        """Have the rollouts on the disk; raises UserError where it is full."""
        checkpoints = self.training.checkpoints
        newest, _ = find_newest(checkpoints)
        best = read_state(newest).best_step if newest else None
        try:
            write_making_room(lambda: write_rollouts(path, rollouts), checkpoints, best)
        except OSError as error:
            if not is_disk_full(error):
                raise
            raise UserError(
                f"the rollouts could not be kept, the disk of {path.parent} is full; nothing is "
                "learned from what is not kept",
                hint="make room, then go on: hone resume RUN",
            ) from error

    def summarise(self, rollouts: Sequence[Rollout]) -> Row:
        """What the row of a step says of its rollouts, with the seconds that they took."""
        row = summarise(rollouts, self.full_marks)
        if not self.sampling_s:
            return row
        tokens = sum(len(rollout.ids) for rollout in rollouts)
        return row | {
            "sampling_s": round(self.sampling_s, 4),
            "scoring_s": round(self.scoring_s, 4),
            "sampled_tokens_per_s": round(tokens / self.sampling_s, 1),
        }

    # Held-out tasks

    def evaluate(self, step: int) -> Row:
        """The rewards of one completion of each held-out task, kept like those of a step."""
        training = self.training
        path = rollouts_path(training.folder, EVALUATION, step)
        rollouts = read_rollouts(path)
        if rollouts is None:
            evaluation = self.settings.evaluation
            assert evaluation is not None, "an evaluation is due only where there is one"
            seeds = [
                [(training.seed, training.stage, "evaluation", q.task.index)] for q in self.held_out
            ]
            sampling = self.sampling_settings(evaluation.temperature)
            rollouts = self.play(Round(path, step, step + HALF, self.held_out, seeds, sampling))
            self.check_failures(rollouts, path, step + HALF, "--evaluation ")
            self.keep(path, rollouts)
        row = summarise(rollouts, self.full_marks)
        return {**row, "samples": len(rollouts)}

    # One round: sampling beside scoring

    def sampling_settings(self, temperature: float) -> SamplingSettings:
        """What is drawn at this temperature."""
        return SamplingSettings(
            self.settings.completion_tokens, temperature, stop=tuple(self.settings.stop)
        )

    def play(self, asked: Round) -> list[Rollout]:
        """Sample and score; the rollouts in order, with their sums of rewards."""
        scoring = _Scoring(self, asked)
        began = time.perf_counter()
        self.sample(asked, scoring)
        sampled = time.perf_counter()
        while scoring.waiting:
            scoring.collect(STOP_POLL_S)
        self.sampling_s += sampled - began
        self.scoring_s += time.perf_counter() - sampled
        groups = [scoring.scored[asked.first + n] for n in range(len(asked.questions))]
        return [rollout for group in groups for rollout in group]

    def sample(self, asked: Round, scoring: "_Scoring") -> None:
        """Sample all groups and hand each on; where memory runs out, fewer at once from here on."""
        requests = [
            Request(question.ids, seeds)
            for question, seeds in zip(asked.questions, asked.seeds, strict=True)
        ]
        while True:
            at_once = self.sequences_at(asked.moment)
            sampler = make_sampler(self.training.model, self.end_token_ids, self.tokenizer, at_once)
            try:
                for done, (number, completions) in enumerate(
                    sampler.sample(requests, asked.sampling), 1
                ):
                    scoring.take(number, completions)
                    scoring.collect(0)
                    self.tell(f"sampled {done}/{len(requests)} prompts")
                return
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = first_line(error)
            del sampler
            release_memory(self.training.model.device)
            self.sample_fewer(asked.moment, at_once, reason)

    def sequences_at(self, moment: float) -> int:
        """Completions that are sampled at once at this moment."""
        smaller = [sequences for begin, sequences in self.smaller if begin <= moment]
        return min([self.settings.sequences_at_once, *smaller])

    def sample_fewer(self, moment: float, at_once: int, reason: str) -> None:
        """Halve what is sampled at once, and keep that before it is done again."""
        if at_once == 1:
            raise UserError(
                f"{in_words(moment)}: not even one completion can be sampled in the memory: "
                f"{reason}",
                hint="lower `completion_tokens` or `prompt_tokens`, or give the run more with "
                "`memory: {limit: ...}`",
            )
        self.smaller.append((moment, at_once // 2))
        self.keep_smaller(self.smaller)
        self.training.warn(
            f"{in_words(moment)}: {at_once} completions at once do not fit into the memory; from "
            f"here on at most {at_once // 2} are sampled at once, and the work is done again"
        )

    def check_failures(
        self, rollouts: Sequence[Rollout], path: Path, moment: float, where: str
    ) -> None:
        """Raises UserError where more rollouts have failed than the recipe allows, or all. where:
        the option of `hone rollouts` that shows them.
        """
        failures = [rollout.failure for rollout in rollouts if rollout.failure is not None]
        allowed = self.settings.max_failures
        if len(failures) <= allowed * len(rollouts) and len(failures) < len(rollouts):
            return
        with room_permitting():
            mark_stopped(path)
        shown = Counter(failures).most_common(EXAMPLES)
        lines = "".join(f"\n  {count:,} times: {failure}" for failure, count in shown)
        raise UserError(
            f"{in_words(moment)}: {len(failures):,} of {len(rollouts):,} rollouts could not be "
            f"scored ({len(failures) / len(rollouts):.0%}; `max_failures` is {allowed:g}){lines}",
            hint=f"see them with `hone rollouts RUN {where}--failed`; once the reward is mended, "
            "`hone resume RUN` scores them again",
        )


class _Scoring:
    """The groups of a round on their way to scores.

    scored: by the number of the group. waiting: rollouts and the score they wait for.
    """

    def __init__(self, player: Player, asked: Round) -> None:
        self.player, self.asked = player, asked
        self.known = read_scored(asked.path)
        self.scored: dict[int, list[Rollout]] = {}
        self.waiting: dict[int, tuple[list[Rollout], Future[Scores]]] = {}

    def take(self, number: int, completions: Sequence[Completion]) -> None:
        """A group that has been sampled: what is known of it is used, else it is handed on."""
        rollouts = self.rollouts(number, completions)
        group = rollouts[0].group
        earlier = self.waiting.get(group, (self.scored.get(group) or self.known.get(group), None))
        if earlier[0] is not None and _same_ids(earlier[0], rollouts):
            if earlier[1] is None:
                self.scored[group] = earlier[0]
            return
        question, training = self.asked.questions[number], self.player.training
        texts = [rollout.text for rollout in rollouts]
        ids = [list(rollout.ids) for rollout in rollouts]
        step = self.asked.step
        epoch = training.epoch_of(step) if step else 0.0
        wanted = Group(question.task, texts, ids, max(step, 1), training.total_steps, epoch)
        self.waiting[group] = rollouts, self.player.scorer.submit(wanted)

    def rollouts(self, number: int, completions: Sequence[Completion]) -> list[Rollout]:
        """The rollouts of a group, without scores."""
        question, decode = self.asked.questions[number], self.player.tokenizer.decode
        prompt = decode(question.ids, skip_special_tokens=False)
        return [
            Rollout(
                step=self.asked.step,
                group=self.asked.first + number,
                sample=sample,
                task=question.task.index,
                place=question.task.place,
                prompt=prompt,
                text=decode(completion.ids, skip_special_tokens=True),
                finish=completion.finish,
                prompt_ids=list(question.ids),
                ids=list(completion.ids),
                logprobs=completion.logprobs,
            )
            for sample, completion in enumerate(completions)
        ]

    def collect(self, wait_s: float) -> None:
        """Take the scores that are there, after so many seconds at most; keep them."""
        futures = [future for _, future in self.waiting.values()]
        if wait_s:
            wait(futures, wait_s, FIRST_COMPLETED)
            check_stop()
        for group, (rollouts, future) in list(self.waiting.items()):
            if not future.done():
                continue
            scores = future.result()
            self.scored[group] = [self.with_score(rollout, scores) for rollout in rollouts]
            with room_permitting():
                append_scored(self.asked.path, self.scored[group])
            del self.waiting[group]

    def with_score(self, rollout: Rollout, scores: Scores) -> Rollout:
        """A rollout with what it got; the sum of rewards is lowered where the recipe says so."""
        score, overlong = scores[rollout.sample], self.player.settings.overlong
        summed = None if score.failure else total(score, self.player.scorer.weights)
        training = self.asked.moment % 1 == 0
        if summed is not None and training and rollout.finish == "length":
            summed -= overlong.penalty if isinstance(overlong, Penalty) else 0.0
        return replace(
            rollout,
            rewards=score.rewards,
            failure=score.failure,
            total=summed,
            extra=score.extra,
            metrics=scores.metrics if rollout.sample == 0 else {},
        )


def _same_ids(found: Sequence[Rollout], wanted: Sequence[Rollout]) -> bool:
    """True where these are the same completions, all of them."""
    return [list(rollout.ids) for rollout in found] == [list(rollout.ids) for rollout in wanted]


def _is_flat(group: Sequence[Rollout]) -> bool:
    """True where a group can be compared and has no spread."""
    return sum(rollout.survives for rollout in group) > 1 and not has_spread(group)


def to_samples(rollouts: Sequence[Rollout]) -> list[Sample]:
    """What is learned from: a tree for each group, with the completions that are used.

    Their tokens carry the constants old, advantage and, where it is known, reference.
    """
    samples = []
    for group in groups_of(rollout for rollout in rollouts if rollout.used):
        prompt = np.array(group[0].prompt_ids, dtype=np.int32)
        segments = [Segment(prompt, np.zeros(len(prompt), dtype=bool))]
        for rollout in group:
            tokens = np.array(rollout.ids, dtype=np.int32)
            constants = {
                "old": rollout.logprobs.astype(np.float64),
                "advantage": np.full(len(tokens), rollout.advantage, dtype=np.float64),
            }
            if rollout.reference is not None:
                constants["reference"] = rollout.reference.astype(np.float64)
            trained = np.ones(len(tokens), dtype=bool)
            segments.append(Segment(tokens, trained, 0, constants))
        samples.append(Sample(group[0].task, tuple(segments)))
    return samples


def other_questions(
    questions: Sequence[Question], asked: set[int], count: int, *origin: int | str
) -> list[Question]:
    """Up to `count` questions whose tasks have not been asked, in an order drawn from `origin`."""
    order = (questions[n] for n in shuffle(len(questions), *origin))
    return [question for question in order if question.task.index not in asked][:count]
