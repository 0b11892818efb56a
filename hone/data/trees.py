"""Several answers to one prompt as a tree of tokens: the shared prompt, and the sides that hang on
it.

Called by `prepare.py` for pairs and for answers with a label. Every side comes as the renderer made
it, prompt and answer tokenised together, so a path through the tree has the tokens that the same
text has in supervised training. What the sides share is then cut off: it ends before the first
trained token, so a token across the border stays with its side.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hone.data.chat import Tokens
from hone.data.overlong import Overlong


class Tree(NamedTuple):
    """tokens: of all segments, one after the other. segments: their lengths, the prompt first; none
    for a sample that is a single segment. label: whether the side is wanted, of unpaired answers.
    """

    tokens: Tokens
    segments: tuple[int, ...] = ()
    label: bool = False


def shared_length(sides: Sequence[Tokens]) -> int:
    """The first tokens that all sides have in common and that none of them trains."""
    length = min(_untrained(side) for side in sides)
    first, *others = sides
    for other in others:
        differing = np.flatnonzero(first.ids[:length] != other.ids[:length])
        length = int(differing[0]) if len(differing) else length
    return length


def fitted(
    sides: Sequence[Tokens], limit: int, overlong: Overlong, begin_ids: list[int]
) -> list[Tokens]:
    """The sides in `limit` tokens each, prompt included. keep_end takes as much as is needed off
    the beginning of the prompt they share, the same for all, but never its last token (nor the
    beginning token); what is too long even then, and everything for keep_start, loses its end.
    """
    over = max(len(side.ids) for side in sides) - limit
    if over <= 0:
        return list(sides)
    if overlong == "keep_end":
        begins = bool(begin_ids) and sides[0].ids[: len(begin_ids)].tolist() == begin_ids
        kept = len(begin_ids) if begins else 0
        left_out = slice(kept, kept + min(over, max(shared_length(sides) - kept - 1, 0)))
        sides = [
            Tokens(
                np.delete(side.ids, left_out), np.delete(side.trained, left_out), side.straddling
            )
            for side in sides
        ]
    return [Tokens(side.ids[:limit], side.trained[:limit], side.straddling) for side in sides]


def are_equal(sides: Sequence[Tokens]) -> bool:
    """Whether there are two sides with the same tokens."""
    first, *others = sides
    return any(np.array_equal(first.ids, other.ids) for other in others)


def make_tree(sides: Sequence[Tokens], label: bool = False) -> Tree:
    """The tree of sides that begin with their prompt."""
    border = shared_length(sides)
    parts = [Tokens(sides[0].ids[:border], sides[0].trained[:border], 0)]
    parts += [Tokens(side.ids[border:], side.trained[border:], side.straddling) for side in sides]
    tokens = Tokens(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.trained for part in parts]),
        sum(part.straddling for part in parts),
    )
    return Tree(tokens, tuple(len(part.ids) for part in parts), label)


def _untrained(side: Tokens) -> int:
    """How many tokens stand before the first trained one."""
    return int(np.argmax(side.trained)) if side.trained.any() else len(side.ids)
