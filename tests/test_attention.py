"""The forest's attention against a plain masked softmax over the whole row."""

from dataclasses import replace

import pytest
import torch

from hone.attention import (
    UnsupportedAttention,
    _block_mask,
    _flex,
    forest_attention,
    forest_layout,
    tree_arrays,
)
from hone.forest import Span, count_step, make_batch
from hone.records import Sample
from tests.tiny import random_trees


def spans() -> tuple[Span, ...]:
    samples = random_trees(3)
    late = samples[1].segments  # a child that is laid after its parent's sibling
    samples.append(Sample(3, (late[0], late[3], late[1], replace(late[2], parent=2))))
    return make_batch(samples, count_step(samples)).spans


def visible(spans: tuple[Span, ...], window: int | None) -> torch.Tensor:
    """(T, T) bool by the rule itself: own past and ancestors, within the window along the path."""
    total = sum(span.length for span in spans)
    seen = torch.zeros(total, total, dtype=torch.bool)
    for span in spans:
        for row in range(span.length):
            query, position = span.start + row, span.offset + row
            place = 0
            for start, length in (*span.ancestors, (span.start, row + 1)):
                for column in range(length):
                    near = window is None or position - place < window
                    seen[query, start + column] = near
                    place += 1
    return seen


def operands(total: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    shapes = [(1, 4, total, 8), (1, 2, total, 8), (1, 2, total, 8)]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def plain(query, key, value, seen):
    key, value = (tensor.repeat_interleave(2, dim=1) for tensor in (key, value))
    scores = (query @ key.transpose(-1, -2)) * 0.3
    return (scores.masked_fill(~seen, float("-inf")).softmax(-1) @ value).transpose(1, 2)


# On a GPU FlexAttention is compiled; here its plain version computes the same rule.
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("way", ["segments", "flex"])
def test_equals_a_masked_softmax(way, window):
    layout = spans()
    total = sum(span.length for span in layout)
    query, key, value = operands(total)
    expected = plain(query, key, value, visible(layout, window))
    weight = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weight).sum(), (query, key, value))
    if way == "segments":
        with forest_layout(layout):
            found, _ = forest_attention(
                torch.nn.Module(), query, key, value, None, scaling=0.3, sliding_window=window
            )
        grads = torch.autograd.grad((found * weight).sum(), (query, key, value))
        for one, two in zip(grads, wanted, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)
    else:  # FlexAttention on a CPU computes forwards only
        found = _flex(query.detach(), key.detach(), value.detach(), layout, 0.3, window)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("window", [None, 5])
def test_the_tree_in_arrays_gives_the_same_rule(window):
    layout = spans()
    enter, leave, position = tree_arrays(layout)
    index = torch.arange(len(enter))
    related = (enter[None] <= enter[:, None]) & (enter[:, None] < leave[None])
    seen = related & (index[None] <= index[:, None])
    if window is not None:
        seen &= position[:, None] - position[None] < window
    assert torch.equal(seen, visible(layout, window))
    mask = _block_mask(layout, window, torch.device("cpu"))
    assert mask.shape[-2:] == seen.shape


@pytest.mark.parametrize("keyword", ["softcap", "s_aux", "some_new_rule"])
def test_an_unknown_keyword_that_is_set_is_refused(keyword):
    query, key, value = operands(4)
    with forest_layout((Span(0, 4),)):
        forest_attention(torch.nn.Module(), query, key, value, None, **{keyword: None})
        with pytest.raises(UnsupportedAttention, match=keyword):
            forest_attention(torch.nn.Module(), query, key, value, None, **{keyword: 1.0})


def test_a_mask_or_a_module_that_is_not_causal_is_refused():
    query, key, value = operands(4)
    module = torch.nn.Module()
    with forest_layout((Span(0, 4),)):
        with pytest.raises(UnsupportedAttention):
            forest_attention(module, query, key, value, torch.ones(1, 1, 4, 4))
        module.is_causal = False
        with pytest.raises(UnsupportedAttention):
            forest_attention(module, query, key, value, None)
