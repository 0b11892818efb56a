"""Groups of completions: what a sampler is asked for, what comes back, and what is in between.

Shared by the samplers, which differ in how they come to the logits. `take_next` is where a token is
chosen and kept.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from hone.choosing import Ending, SamplingSettings, choose
from hone.models import LanguageModel
from hone.seeds import uniforms

SEQUENCES_AT_ONCE = 32


@dataclass(frozen=True)
class Request:
    """A group: one prompt, and a completion for each seed.

    prompt_ids: at least one token. seeds: what all randomness of a completion is a function of,
    together with the token's place in it. listen: is given every token of the group as it is drawn.
    """

    prompt_ids: Sequence[int]
    seeds: Sequence[tuple[int | str, ...]]
    listen: Callable[[int], None] | None = None


@dataclass(frozen=True)
class Completion:
    """What was drawn.

    ids: the end token included where one was drawn. logprobs: (L,) float32, of each token under the
    full softmax at the temperature (at 1 where that is 0), before any filter. finish: "end" (an end
    token), "stop" (a stop string) or "length".
    """

    ids: list[int]
    logprobs: np.ndarray
    finish: str


class Sampler(Protocol):
    """Completes prompts."""

    def sample(
        self, requests: Sequence[Request], settings: SamplingSettings
    ) -> Iterator[tuple[int, list[Completion]]]:
        """(place of the request, its completions in the order of its seeds), as groups finish; in
        an order that does not depend on time. Later ones are computed when the next is asked for.
        """
        ...


class Engine(ABC):
    """What the samplers have in common. sequences_at_once: completions that are drawn together."""

    def __init__(
        self,
        model: LanguageModel,
        end_token_ids: Iterable[int],
        tokenizer: Any = None,
        sequences_at_once: int = SEQUENCES_AT_ONCE,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.end_token_ids = frozenset(end_token_ids)
        self.sequences_at_once = sequences_at_once

    def sample(
        self, requests: Sequence[Request], settings: SamplingSettings
    ) -> Iterator[tuple[int, list[Completion]]]:
        """See `Sampler.sample`."""
        ending = Ending(self.end_token_ids, settings, self.tokenizer)
        groups = make_groups(requests, settings)
        yield from ((group.number, []) for group in groups if not group.sequences)
        for group in self.complete(groups, settings, ending):
            yield group.number, group.completions()

    @abstractmethod
    def complete(
        self, groups: "list[Group]", settings: SamplingSettings, ending: Ending
    ) -> "Iterator[Group]":
        """The groups as they are finished."""


@dataclass(eq=False)
class Growing:
    """A completion that is being drawn."""

    group: "Group"
    uniforms: np.ndarray
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: str | None = None

    def add(self, token: int, logprob: float, ending: Ending) -> None:
        """Take the next token."""
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.finish = ending.reason(self.ids)
        if self.group.listen:
            self.group.listen(token)

    @property
    def seen(self) -> list[int]:
        """All tokens up to here."""
        return [*self.group.prompt_ids, *self.ids]


@dataclass(eq=False)
class Group:
    """A request while it is answered. row: of its prompt's keys and values. hidden_D: the final
    hidden state of the prompt's last token.
    """

    number: int
    prompt_ids: list[int]
    listen: Callable[[int], None] | None = None
    sequences: list[Growing] = field(default_factory=list)
    row: int = -1
    hidden_D: torch.Tensor | None = None

    @property
    def finished(self) -> bool:
        """True when all completions are."""
        return all(sequence.finish for sequence in self.sequences)

    def completions(self) -> list[Completion]:
        """What was drawn, in the order of the seeds."""
        return [
            Completion(s.ids, np.array(s.logprobs, dtype=np.float32), s.finish or "")
            for s in self.sequences
        ]


def make_groups(requests: Sequence[Request], settings: SamplingSettings) -> list[Group]:
    """The requests with all randomness drawn."""
    groups = []
    for number, request in enumerate(requests):
        assert len(request.prompt_ids), "a prompt needs a token that the next one can follow"
        group = Group(number, [int(token) for token in request.prompt_ids], request.listen)
        count = settings.max_new_tokens if settings.temperature else 0
        group.sequences = [Growing(group, uniforms(count, *seed)) for seed in request.seeds]
        groups.append(group)
    return groups


def take_next(
    sequences: Sequence[Growing],
    logits_BV: torch.Tensor,
    settings: SamplingSettings,
    ending: Ending,
) -> None:
    """Choose and add the next token of every sequence."""
    drawn = [s.uniforms[len(s.ids)] if settings.temperature else 0.0 for s in sequences]
    uniforms_B = torch.tensor(drawn, dtype=torch.float64)
    seen = [s.seen for s in sequences] if settings.repetition_penalty != 1.0 else ()
    tokens, logprobs = choose(logits_BV, settings, uniforms_B, seen)
    pairs = zip(tokens.tolist(), logprobs.tolist(), strict=True)
    for sequence, (token, logprob) in zip(sequences, pairs, strict=True):
        sequence.add(token, logprob, ending)


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Dropout is off inside, and afterwards every part is as it was."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
