"""Completions by transformers' own `generate`, for models that cannot lie in the forest.

It runs the model with whatever cache its family has; which token comes next is chosen as in the
built-in sampler, between its steps. Prompts of one length are computed together, so that nothing is
padded. Made by `sampler.make_sampler`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from hone.choosing import Ending, SamplingSettings
from hone.groups import (
    Engine,
    Group,
    Growing,
    evaluation_mode,
    take_next,
)
from hone.signals import check_stop


class PlainSampler(Engine):
    """The engine over transformers' `generate`."""

    def complete(
        self, groups: list[Group], settings: SamplingSettings, ending: Ending
    ) -> Iterator[Group]:
        for together in self._batches(groups):
            with torch.no_grad(), evaluation_mode(self.model.module), self.model.autocast():
                self._complete(together, settings, ending)
            yield from _finished_in(together)

    def _batches(self, groups: list[Group]) -> Iterator[list[Growing]]:
        """Consecutive sequences whose prompts have one length."""
        batch: list[Growing] = []
        for sequence in (sequence for group in groups for sequence in group.sequences):
            length = len(sequence.group.prompt_ids)
            fits = not batch or length == len(batch[0].group.prompt_ids)
            if batch and (not fits or len(batch) == self.sequences_at_once):
                yield batch
                batch = []
            batch.append(sequence)
        if batch:
            yield batch

    def _complete(
        self, sequences: list[Growing], settings: SamplingSettings, ending: Ending
    ) -> None:
        ids = torch.tensor([s.group.prompt_ids for s in sequences], device=self.model.device)
        config = GenerationConfig(
            max_new_tokens=settings.max_new_tokens, do_sample=False, pad_token_id=0
        )
        with own_settings(self.model.causal):
            self.model.module.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=config,
                logits_processor=LogitsProcessorList([_Choosing(sequences, settings, ending)]),
                stopping_criteria=StoppingCriteriaList([_Stopping(sequences)]),
            )


def _finished_in(sequences: list[Growing]) -> list[Group]:
    """The groups whose last sequence is among these, in order."""
    groups = dict.fromkeys(sequence.group for sequence in sequences)
    return [group for group in groups if group.finished]


@contextmanager
def own_settings(model: PreTrainedModel) -> Iterator[None]:
    """Inside, nothing of the model's own generation config is in force."""
    before, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = before


class _Choosing(LogitsProcessor):
    """Chooses every sequence's next token, and leaves nothing else to take."""

    def __init__(
        self, sequences: list[Growing], settings: SamplingSettings, ending: Ending
    ) -> None:
        self.sequences, self.settings, self.ending = sequences, settings, ending

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        check_stop()
        rows = [row for row, sequence in enumerate(self.sequences) if not sequence.finish]
        left = [self.sequences[row] for row in rows]
        if left:
            scores_BV = scores[rows] / (self.settings.temperature or 1.0)
            take_next(left, scores_BV, self.settings, self.ending)
        only = torch.full_like(scores, float("-inf"))
        last = torch.tensor([sequence.ids[-1] for sequence in self.sequences], device=scores.device)
        return only.scatter_(1, last[:, None], 0.0)


class _Stopping(StoppingCriteria):
    def __init__(self, sequences: list[Growing]) -> None:
        self.sequences = sequences

    def __call__(self, input_ids: torch.Tensor, scores: Any, **keywords: Any) -> torch.Tensor:
        done = [sequence.finish is not None for sequence in self.sequences]
        return torch.tensor(done, device=input_ids.device)
