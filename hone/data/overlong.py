"""Samples that are longer than `max_tokens`: shortened, or split into several.

Used by `prepare.py` only. Plain text is cut into windows of tokens, a conversation between two
exchanges (a question with all that follows it up to the next one). Left out: cuts at sentences, and
windows that share more than the one token that predicts the next.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np

from hone.data.chat import Renderer, Tokens
from hone.data.formats import Conversation, Example, TrainOn

Overlong = Literal["keep_start", "keep_end", "drop", "split"]


def shortened(tokens: Tokens, limit: int, overlong: Overlong, begin_ids: list[int]) -> Tokens:
    """The last `limit` tokens for keep_end, with the beginning token before them; else the first
    ones.
    """
    ids, trained, straddling = tokens
    if overlong != "keep_end":
        return Tokens(ids[:limit], trained[:limit], straddling)
    begins = bool(begin_ids) and ids[: len(begin_ids)].tolist() == begin_ids
    kept = len(begin_ids) if begins and len(begin_ids) < limit else 0
    left_out = slice(kept, len(ids) - (limit - kept))
    ids, trained = np.delete(ids, left_out), np.delete(trained, left_out)
    trained[0] = False  # nothing stands before it now
    return Tokens(ids, trained, straddling)


def all_fit(samples: list[Tokens], limit: int) -> bool:
    """Whether no sample is longer than `limit` tokens."""
    return all(len(tokens.ids) <= limit for tokens in samples)


def split(
    renderer: Renderer, example: Example, samples: list[Tokens], limit: int, train_on: TrainOn
) -> list[list[Tokens]]:
    """The parts of an example whose `samples` are too long, each with its samples: one, or one for
    each turn. They may still be too long. Raises RowError where the template refuses a part of a
    conversation.
    """
    if not isinstance(example, Conversation):
        (only,) = samples
        return [[window] for window in windows(only, limit, renderer.begin_ids)]

    def made(part: Conversation) -> list[Tokens]:
        return renderer.samples(part, train_on)

    parts = pieces(example, lambda part: all_fit(made(part), limit))
    return [made(part) for part in parts] if len(parts) > 1 else [samples]


def windows(tokens: Tokens, limit: int, begin_ids: list[int]) -> list[Tokens]:
    """Consecutive parts of at most `limit` tokens; every trained token is trained in exactly one.

    Before the first token of a later window stands what predicts it: the beginning token where the
    text has one, else the last token of the window before, which is not trained again.
    """
    ids, trained, straddling = tokens
    begins = bool(begin_ids) and ids[: len(begin_ids)].tolist() == begin_ids
    width = limit - (len(begin_ids) if begins else 1)
    made = [Tokens(ids[:limit], trained[:limit], 0)]
    for start in range(limit, len(ids), width) if width > 0 else ():
        lead = ids[: len(begin_ids)] if begins else ids[start - 1 : start]
        part = slice(start, start + width)
        mask = np.concatenate([np.zeros(len(lead), dtype=np.bool_), trained[part]])
        made.append(Tokens(np.concatenate([lead, ids[part]]), mask, 0))
    border = next((i for i, window in enumerate(made) if window.trained.any()), 0)
    made[border] = made[border]._replace(straddling=straddling)
    return made


def pieces(conversation: Conversation, fits: Callable[[Conversation], bool]) -> list[Conversation]:
    """The conversation as few consecutive pieces that fit, the system turns in front of each.

    An exchange that does not fit alone is a piece of its own.
    """
    messages = conversation.messages
    head = next((i for i, m in enumerate(messages) if m["role"] != "system"), len(messages))
    borders = [head, *_borders(conversation, head), len(messages)]
    made, first = [], 0
    while first < len(borders) - 1:
        fitting, over = first + 1, len(borders)  # one exchange is taken in any case
        while over - fitting > 1:
            middle = (fitting + over) // 2
            if fits(_piece(conversation, head, borders[first], borders[middle])):
                fitting = middle
            else:
                over = middle
        made.append(_piece(conversation, head, borders[first], borders[fitting]))
        first = fitting
    return made


def _borders(conversation: Conversation, head: int) -> list[int]:
    """Where an exchange begins behind the first one: a question that follows something else."""
    roles = [message["role"] for message in conversation.messages]
    asking = ("user", "system")
    return [
        i for i in range(head + 1, len(roles)) if roles[i] in asking and roles[i - 1] not in asking
    ]


def _piece(conversation: Conversation, head: int, begin: int, end: int) -> Conversation:
    messages = conversation.messages
    given = head + min(max(conversation.given - begin, 0), end - begin)
    return replace(conversation, messages=messages[:head] + messages[begin:end], given=given)
