"""How the next token is chosen from logits, and when a completion ends.

Called by the samplers, which know how logits come about. The order of the filters is transformers':
repetition penalty, top-k, top-p, min-p, each on what the one before has left.

Shapes: B sequences, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from hone.errors import UserError
from hone.logprobs import log_chosen

BLOCK = 256  # tokens of the vocabulary whose weights are added up together


@dataclass(frozen=True)
class SamplingSettings:
    """What is drawn, and how far.

    temperature: 0 always takes the likeliest token. top_p, top_k, min_p: what else is cut off, None
    for nothing. repetition_penalty: above 1 tokens that stand there already become less likely
    (arXiv:1909.05858, equation 4). stop: texts that end a completion; they need a tokenizer.

    Raises UserError for values that mean nothing.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        limits = [
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k is None or self.top_k >= 1, "at least 1"),
            ("min_p", self.min_p is None or 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0; 1 changes nothing"),
            ("stop", all(self.stop), "texts that are not empty"),
        ]
        for name, holds, expected in limits:
            if not holds:
                message = f"{name} is {getattr(self, name)!r}; expected {expected}"
                raise UserError(message, exit_code=2)

    @property
    def filtered(self) -> bool:
        """True where completions come from another distribution than the softmax at the
        temperature.
        """
        cuts = (self.top_p or 1) < 1 or self.top_k is not None or bool(self.min_p)
        return cuts or self.repetition_penalty != 1.0


def choose(
    logits_BV: torch.Tensor,
    settings: SamplingSettings,
    uniforms_B: torch.Tensor,
    seen: Sequence[Sequence[int]] = (),
) -> tuple[torch.Tensor, torch.Tensor]:
    """The next token of each sequence and its log-probability, (B,) each.

    logits_BV: at the temperature (at 1 where that is 0). uniforms_B: fp64 in [0, 1) on the CPU, one
    for each draw. seen: the tokens before each sequence's next one, for a repetition penalty only.

    The log-probability is that of the full softmax of the logits, before any filter.
    """
    wide = torch.float64 if logits_BV.dtype == torch.float64 else torch.float32
    probabilities_BV = torch.softmax(logits_BV, dim=-1, dtype=wide)
    if not torch.isfinite(probabilities_BV[:, 0]).all():  # one that is not makes none of a row so
        raise UserError(
            "the model's probabilities are not finite numbers, so nothing can be drawn from them",
            hint="its weights are broken: updates were too large, lower `learning_rate` and begin "
            "a new run; or look at the model's files",
        )
    scores_BV = logits_BV
    if settings.repetition_penalty != 1.0:
        scores_BV = penalise(logits_BV.to(wide), seen, settings.repetition_penalty)
    if settings.temperature == 0:
        chosen_B = scores_BV.max(-1).indices  # argmax is slow in bf16
    elif settings.filtered:
        left_BV = keep_likely(scores_BV.to(wide), settings).softmax(-1)
        chosen_B = draw(left_BV, uniforms_B)
    else:
        chosen_B = draw(probabilities_BV, uniforms_B)
    return chosen_B, log_chosen(probabilities_BV, logits_BV, chosen_B)


def draw(weights_BV: torch.Tensor, uniforms_B: torch.Tensor) -> torch.Tensor:
    """One token of each row, (B,), with probabilities proportional to the weights: the first whose
    sum of weights exceeds `uniforms_B` of the whole.

    Sums are taken over blocks first, and over single tokens only in the block that is met; on the
    CPU, since CUDA's running sums differ from time to time.
    """
    blocks_BNS = _in_blocks(weights_BV)
    sums_BN = blocks_BNS.sum(-1).double().cpu().cumsum(-1)
    wanted_B1 = (sums_BN[:, -1] * uniforms_B)[:, None]
    block_B1 = torch.searchsorted(sums_BN, wanted_B1, right=True)
    before_B1 = F.pad(sums_BN, (1, 0)).gather(1, block_B1)
    chosen_B = block_B1[:, 0].to(weights_BV.device)
    inner_BS = blocks_BNS[torch.arange(len(chosen_B), device=chosen_B.device), chosen_B]
    inner_BS = inner_BS.double().cpu().cumsum(-1)
    place_B = (inner_BS <= wanted_B1 - before_B1).sum(-1)
    last_B = (inner_BS < inner_BS[:, -1:]).sum(-1)  # the block's sum may be rounded up
    tokens_B = block_B1[:, 0] * BLOCK + torch.minimum(place_B, last_B)
    return tokens_B.to(weights_BV.device)


def _in_blocks(weights_BV: torch.Tensor) -> torch.Tensor:
    rest = -weights_BV.shape[-1] % BLOCK
    padded = F.pad(weights_BV, (0, rest)) if rest else weights_BV
    return padded.view(len(weights_BV), -1, BLOCK)


def penalise(
    logits_BV: torch.Tensor, seen: Sequence[Sequence[int]], penalty: float
) -> torch.Tensor:
    """Logits of tokens that were seen, divided by the penalty where positive and multiplied where
    negative (arXiv:1909.05858, section 4.1). A temperature before or after it changes nothing.
    """
    scores_BV = logits_BV.clone()
    for row, ids in enumerate(seen):
        found = torch.tensor(sorted(set(ids)), device=logits_BV.device)
        values = scores_BV[row, found]
        scores_BV[row, found] = torch.where(values > 0, values / penalty, values * penalty)
    return scores_BV


def keep_likely(scores_BV: torch.Tensor, settings: SamplingSettings) -> torch.Tensor:
    """The scores with -inf for every token that top-k, top-p or min-p cuts off; the likeliest one
    always stays.
    """
    nothing = float("-inf")
    if settings.top_k is not None:
        smallest = scores_BV.topk(min(settings.top_k, scores_BV.shape[-1])).values[:, -1:]
        scores_BV = scores_BV.masked_fill(scores_BV < smallest, nothing)
    if settings.top_p is not None and settings.top_p < 1:
        ordered, order = scores_BV.sort(dim=-1, stable=True)
        sums = ordered.softmax(-1).cpu().cumsum(-1).to(ordered.device)
        cut = sums <= 1 - settings.top_p
        cut[:, -1] = False
        scores_BV = scores_BV.masked_fill(cut.scatter(1, order, cut), nothing)
    if settings.min_p:
        probabilities = scores_BV.softmax(-1)
        least = settings.min_p * probabilities.amax(-1, keepdim=True)
        scores_BV = scores_BV.masked_fill(probabilities < least, nothing)
    return scores_BV


@dataclass(frozen=True)
class Ending:
    """What ends a completion: an end token, a text, or its length."""

    end_token_ids: frozenset[int]
    settings: SamplingSettings
    tokenizer: Any = None

    def __post_init__(self) -> None:
        assert not self.settings.stop or self.tokenizer, "stop strings need a tokenizer"

    def reason(self, ids: list[int]) -> str | None:
        """ "end", "stop" or "length" where a completion of these tokens is at its end; None before.
        To be asked after every token.
        """
        if ids[-1] in self.end_token_ids:
            return "end"
        if self.settings.stop and self._stops(ids):
            return "stop"
        return "length" if len(ids) >= self.settings.max_new_tokens else None

    def _stops(self, ids: list[int]) -> bool:
        # A token stands for one byte at least; the first of a cut may be decoded in another way.
        longest = max(len(text.encode()) for text in self.settings.stop)
        tail = self.tokenizer.decode(ids[-(longest + 4) :], skip_special_tokens=False)
        return any(text in tail for text in self.settings.stop)


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stop strings in it."""
    return text[: min((text.index(one) for one in stop if one in text), default=len(text))]


def settled(text: str, stop: Sequence[str]) -> str:
    """The part of an unfinished text that stays whatever follows: without white space at its end,
    characters that are not whole, and what may become a stop string.
    """
    text = text.rstrip("\ufffd")
    begins = (one[:n] for one in stop for n in range(len(one) - 1, 0, -1))
    held = max((len(begin) for begin in begins if text.endswith(begin)), default=0)
    return text[: len(text) - held].rstrip()
