"""Completions of prompts: the protocol, and the engine that computes each prompt once.

Training and answering ask a `Sampler`; `make_sampler` chooses which. The built-in one decodes
through the model's own forward under the forest's attention (decoding.py): the prompts of the
groups that begin together lie flat in one row, their keys and values are shared by the completions,
finished sequences leave and waiting ones take their place. Which sequences are computed together
depends on the requests, the settings and `sequences_at_once` alone.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from hone.adapters import cast_once
from hone.attention import FOREST, attend_by, attention_set
from hone.choosing import Ending, SamplingSettings
from hone.decoding import KeyValues, NextTokens, Places, ReadPrompts
from hone.forest import count_step, plan_micro_batches
from hone.groups import (
    SEQUENCES_AT_ONCE,
    Completion,
    Engine,
    Group,
    Growing,
    Request,
    Sampler,
    evaluation_mode,
    take_next,
)
from hone.logprobs import Head, compute_logits
from hone.models import LARGEST_BUDGET, LanguageModel
from hone.plain_sampler import PlainSampler
from hone.records import Sample, Segment
from hone.signals import check_stop

__all__ = [
    "BuiltInSampler",
    "Completion",
    "Request",
    "Sampler",
    "SamplingSettings",
    "make_sampler",
]

# Rows of new tokens are filled up to a multiple: oneDNN compiles a bf16 kernel for every new shape.
ROWS_MULTIPLE = 8


def make_sampler(
    model: LanguageModel,
    end_token_ids: Iterable[int],
    tokenizer: Any = None,
    sequences_at_once: int = SEQUENCES_AT_ONCE,
) -> Sampler:
    """The built-in sampler where the model can lie in the forest, else the one over transformers'
    `generate`. tokenizer: needed for stop strings.
    """
    if model.layout == "forest":
        return BuiltInSampler(model, end_token_ids, tokenizer, sequences_at_once)
    return PlainSampler(model, end_token_ids, tokenizer, sequences_at_once)


class BuiltInSampler(Engine):
    """The engine over the forest's attention."""

    def complete(
        self, groups: list[Group], settings: SamplingSettings, ending: Ending
    ) -> Iterator[Group]:
        running = _Running(self.model, groups, settings, ending, self.sequences_at_once)
        while running.unfinished:
            yield from running.advance()


class _Running:
    """The state of one call of `sample`. Sequences that are drawn have rows 0, 1, ... of `own`;
    prompts that are needed rows 0, 1, ... of `prompts`.
    """

    def __init__(
        self,
        model: LanguageModel,
        groups: list[Group],
        settings: SamplingSettings,
        ending: Ending,
        sequences_at_once: int,
    ) -> None:
        self.model, self.settings, self.ending = model, settings, ending
        self.waiting = deque(sequence for group in groups for sequence in group.sequences)
        self.slots = min(sequences_at_once, len(self.waiting))
        self.sequences: list[Growing] = []
        self.groups: list[Group] = []
        self.prompts, self.own = KeyValues(), KeyValues()
        self.places: Places | None = None
        self.head: Head | None = None

    @property
    def unfinished(self) -> bool:
        return bool(self.waiting or self.sequences)

    def advance(self) -> list[Group]:
        """Draw until groups are finished, and return these in the order of the requests."""
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(attention_set(self.model.causal, FOREST))
            stack.enter_context(evaluation_mode(self.model.module))
            stack.enter_context(self.model.autocast())
            if not self.model.precision.casts:
                stack.enter_context(cast_once(self.model.module, self.model.precision.compute))
            self.head = self._own_head()
            finished: list[Group] = []
            while self.unfinished and not finished:
                check_stop()
                finished += self._begin()
                if self.sequences:
                    finished += self._step()
            self.head = None
        return sorted(finished, key=lambda group: group.number)

    def _own_head(self) -> Head:
        """The head at the temperature, its weights in the arithmetic's format."""
        head, dtype = self.model.head, self.model.precision.compute
        return replace(
            head,
            weight_VD=head.weight_VD.detach().to(dtype),
            temperature=self.settings.temperature or 1.0,
        )

    def _logits(self, hidden_BD: torch.Tensor) -> torch.Tensor:
        assert self.head is not None
        return compute_logits(hidden_BD, self.head, self.model.precision.compute)

    def _begin(self) -> list[Group]:
        """Fill free places with waiting sequences; returns the groups that end at once."""
        free = self.slots - len(self.sequences)
        fresh = [self.waiting.popleft() for _ in range(min(free, len(self.waiting)))]
        if not fresh:
            return []
        groups = list(dict.fromkeys(sequence.group for sequence in fresh))
        self._read_prompts([group for group in groups if group.row < 0])
        place = {group: n for n, group in enumerate(groups)}
        hidden = torch.stack([group.hidden_D for group in groups if group.hidden_D is not None])
        logits = self._logits(filled_up(hidden))
        index = torch.tensor([place[s.group] for s in fresh], device=logits.device)
        take_next(fresh, logits[index], self.settings, self.ending)
        self.sequences += [sequence for sequence in fresh if not sequence.finish]
        self.places = None
        return self._forget(groups)

    def _read_prompts(self, groups: list[Group]) -> None:
        """Compute keys and values of new groups' prompts, and what follows on the last token."""
        if not groups:
            return
        for group in groups:
            group.row = len(self.groups)
            self.groups.append(group)
        longest = max(len(group.prompt_ids) for group in groups)
        self.prompts.reserve(len(self.groups), longest)
        samples = [Sample(group.number, (_prompt_segment(group),)) for group in groups]
        for part in plan_micro_batches(samples, LARGEST_BUDGET[self.model.device.type]):
            chosen = [samples[n] for n in part]
            batch = self.model.make_batch(chosen, counts=count_step(chosen))
            rows = [groups[n].row for n in part]
            with attend_by(ReadPrompts(self.prompts, rows, batch.spans)):
                hidden = self.model.hidden_of(batch.input_ids, batch.position_ids)[0]
            for n, span in zip(part, batch.spans, strict=False):  # the last span may be filling
                groups[n].hidden_D = hidden[span.start + span.length - 1].clone()

    def _step(self) -> list[Group]:
        """The next token of every sequence; returns the groups that are finished by it."""
        count = len(self.sequences)
        device = self.model.device
        if self.places is None:
            self.places = Places([s.group.row for s in self.sequences], device)
        state = [[s.ids[-1], len(s.group.prompt_ids), len(s.ids) - 1] for s in self.sequences]
        _, longest_prompt, longest = (max(column) for column in zip(*state, strict=True))
        tokens, before, lengths = torch.tensor(state).T.to(device)
        self.own.reserve(count, longest + 1)
        attend = NextTokens(
            self.prompts, self.own, self.places, before, lengths, (longest_prompt, longest + 1)
        )
        ids, positions = (filled_up(row)[None] for row in (tokens, before + lengths))
        with attend_by(attend):
            hidden = self.model.hidden_of(ids, positions)[0]
        take_next(self.sequences, self._logits(hidden)[:count], self.settings, self.ending)
        return self._leave()

    def _leave(self) -> list[Group]:
        """Take finished sequences out; the last row moves to each place that becomes free."""
        gone = [row for row, sequence in enumerate(self.sequences) if sequence.finish]
        if not gone:
            return []
        groups = [self.sequences[row].group for row in gone]
        for row in reversed(gone):
            last = self.sequences.pop()
            if row < len(self.sequences):
                self.sequences[row] = last
                self.own.move(len(self.sequences), row)
        self.places = None
        return self._forget(groups)

    def _forget(self, groups: list[Group]) -> list[Group]:
        """Free the prompts of those groups that are finished, and return these."""
        finished = list(dict.fromkeys(group for group in groups if group.finished))
        for group in sorted(finished, key=lambda group: -group.row):
            last = self.groups.pop()
            if last is not group:
                self.prompts.move(last.row, group.row)
                self.groups[group.row], last.row = last, group.row
        return finished


def _prompt_segment(group: Group) -> Segment:
    tokens = np.array(group.prompt_ids, dtype=np.int32)
    return Segment(tokens, np.zeros(len(tokens), dtype=bool))


def filled_up(rows: torch.Tensor) -> torch.Tensor:
    """(B, ...) with zeros behind, up to a multiple of `ROWS_MULTIPLE` rows."""
    rest = -len(rows) % ROWS_MULTIPLE
    return torch.cat([rows, rows.new_zeros(rest, *rows.shape[1:])]) if rest else rows
