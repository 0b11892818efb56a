"""The forest's attention: a token sees its own segment's past and its ancestors, nothing else.

Registered with transformers under `FOREST`; the spans of the current batch are set around forward
*and* backward by `forest_layout` (recomputation under gradient checkpointing runs in the backward
pass). On a CPU one scaled-dot-product call per segment, in fp32; on CUDA FlexAttention over the
same tree. Keywords outside the closed list are refused when they are set: attention sinks or
soft-caps would otherwise be silently left out.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, PreTrainedModel

from hone.forest import Span

FOREST = "hone_forest"

# Keywords that carry no rule of attention of their own, or whose rule the spans already hold.
_UNDERSTOOD = {"is_causal", "position_ids", "cache_position", "use_cache", "output_attentions"}

# (query, key, value, scaling, sliding_window) -> (1, T, H, D)
Attend = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, float | None, int | None], torch.Tensor
]

_spans: tuple[Span, ...] | None = None
_attend: Attend | None = None


class UnsupportedAttention(Exception):
    """The model asks for a rule of attention that the forest does not have."""


@contextmanager
def forest_layout(spans: tuple[Span, ...]) -> Iterator[None]:
    """Make `spans` the layout of every forward and backward inside; an empty tuple is the padded
    layout.
    """
    global _spans
    before, _spans = _spans, spans
    try:
        yield
    finally:
        _spans = before


@contextmanager
def attend_by(attend: Attend) -> Iterator[None]:
    """Let `attend` answer every attention call of the forwards inside, whose layout it knows."""
    global _attend
    before, _attend = _attend, attend
    try:
        yield
    finally:
        _attend = before


def plain_attention(module: PreTrainedModel) -> str:
    """The name of transformers' own attention for forwards that lie in no forest."""
    return "sdpa" if module._supports_sdpa else "eager"


@contextmanager
def attention_set(module: PreTrainedModel, name: str) -> Iterator[None]:
    """Another attention inside: `FOREST`, or one of transformers' own."""
    before = module.config._attn_implementation
    if before == name:
        yield
        return
    module.set_attn_implementation(name)
    try:
        yield
    finally:
        module.set_attn_implementation(before)


def forest_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **keywords: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one row. query: (1, H, T, D); key, value: (1, K, T, D) with K dividing H.
    Returns (1, T, H, D).

    Raises UnsupportedAttention for a mask, a module that is not causal or a keyword that is not
    understood.
    """
    unknown = [
        name
        for name, setting in keywords.items()
        if name not in _UNDERSTOOD and setting is not None and setting is not False
    ]
    if unknown:
        raise UnsupportedAttention(f"its attention sets {', '.join(sorted(unknown))}")
    if attention_mask is not None or not getattr(module, "is_causal", True):
        raise UnsupportedAttention("its attention is not plain causal attention")
    if _attend is not None:
        return _attend(query, key, value, scaling, sliding_window), None
    assert _spans, "forest attention was called outside of `forest_layout`"
    return attend_spans(query, key, value, _spans, scaling, dropout, sliding_window), None


def attend_spans(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    spans: tuple[Span, ...],
    scaling: float | None = None,
    dropout: float = 0.0,
    window: int | None = None,
) -> torch.Tensor:
    """The forest's rule for a row of these spans; shapes as in `forest_attention`."""
    if query.device.type == "cuda" and not dropout:  # FlexAttention has no dropout
        return _flex(query, key, value, spans, scaling, window)
    dtype = query.dtype
    if dtype in (torch.bfloat16, torch.float16):  # a CPU attends to short segments faster in fp32
        query, key, value = query.float(), key.float(), value.float()
    return _per_segment(query, key, value, spans, scaling, dropout, window).to(dtype)


def _per_segment(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    spans: tuple[Span, ...],
    scaling: float | None,
    dropout: float,
    window: int | None,
) -> torch.Tensor:
    lengths = [span.length for span in spans]
    place = {span.start: n for n, span in enumerate(spans)}
    queries, keys, values = (tensor.split(lengths, dim=2) for tensor in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    parts = []
    for n, span in enumerate(spans):
        seen = [place[start] for start, _ in span.ancestors] + [n]
        mask = _segment_mask(span.offset, span.length, window, query.device)
        part = F.scaled_dot_product_attention(
            queries[n],
            keys[n] if len(seen) == 1 else torch.cat([keys[i] for i in seen], dim=2),
            values[n] if len(seen) == 1 else torch.cat([values[i] for i in seen], dim=2),
            attn_mask=mask,
            is_causal=mask is None,
            dropout_p=dropout,
            scale=scaling,
            enable_gqa=grouped,
        )
        parts.append(part.transpose(1, 2))
    return torch.cat(parts, dim=1)


@lru_cache(maxsize=512)
def _segment_mask(
    offset: int, length: int, window: int | None, device: torch.device
) -> torch.Tensor | None:
    """(length, offset + length) bool, True where seen; None where plain causal attention says the
    same.
    """
    total = offset + length
    if offset == 0 and (window is None or total <= window):
        return None
    mask = torch.ones(length, total, dtype=torch.bool, device=device).tril(offset)
    return mask if window is None else mask.triu(offset - window + 1)


def forget_masks() -> None:
    """Free the masks that are kept for spans that come again."""
    _segment_mask.cache_clear()


def tree_arrays(spans: tuple[Span, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Per token of the row: (enter, leave, position), (T,) int32 each.

    Segments are numbered depth first. A segment is an ancestor of another, or the same, when the
    other's `enter` lies in [enter, leave) of the first.
    """
    place = {span.start: n for n, span in enumerate(spans)}
    children: dict[int, list[int]] = {n: [] for n in range(-1, len(spans))}
    for n, span in enumerate(spans):
        children[place[span.ancestors[-1][0]] if span.ancestors else -1].append(n)
    total = sum(span.length for span in spans)
    enter, leave, position = (torch.zeros(total, dtype=torch.int32) for _ in range(3))
    number = 0

    def visit(n: int) -> None:
        nonlocal number
        piece = slice(spans[n].start, spans[n].start + spans[n].length)
        enter[piece] = number
        number += 1
        for child in children[n]:
            visit(child)
        leave[piece] = number

    for root in children[-1]:
        visit(root)
    for span in spans:
        end = span.offset + span.length
        position[span.start : span.start + span.length] = torch.arange(span.offset, end)
    return enter, leave, position


def _flex(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    spans: tuple[Span, ...],
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """FlexAttention over the tree; (1, T, H, D). Spans must list a tree's segments in depth-first
    order.
    """
    from torch.nn.attention.flex_attention import flex_attention

    attend = _compiled(flex_attention) if query.device.type == "cuda" else flex_attention
    out = attend(
        query,
        key,
        value,
        block_mask=_block_mask(spans, window, query.device),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2)


@lru_cache(maxsize=1)
def _compiled(function: Any) -> Any:
    return torch.compile(function, dynamic=True)


@lru_cache(maxsize=4)
def _block_mask(spans: tuple[Span, ...], window: int | None, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    enter, leave, position = (tensor.to(device) for tensor in tree_arrays(spans))

    def sees(_batch: Any, _head: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        related = (enter[k] <= enter[q]) & (enter[q] < leave[k]) & (k <= q)
        return related if window is None else related & (position[q] - position[k] < window)

    total = len(enter)
    return create_block_mask(sees, None, None, total, total, device=str(device))


AttentionInterface.register(FOREST, forest_attention)
