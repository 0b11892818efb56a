"""Which tokens of a sample have to be trained, computed without Hone's renderer.

Called by `masks.py`. A conversation is written by transformers' own `apply_chat_template`, twice:
as it is, and with a mark in the place of each message's content, which shows where in the text the
contents stand. Trained is what lies between the prompt that asks for an answer and the end token
behind its content, and nothing else. Left out, and told: templates that change what messages say,
tools, dates, and samples that are only a part of their row.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jinja2
import numpy as np

from hone.data.chat import Ids, Mask, Tokenizer
from hone.data.formats import Conversation, Example, PlainText, PromptCompletion, TrainOn
from hone.data.messages import Message
from hone.sampling import Rendering

MARK = "\ue000{}\ue001"  # of a private-use area: nobody's text
MOST_LEADING = 2  # tokens that a tokenizer puts before plain text


class IncomparableError(Exception):
    """A mask that cannot be computed this way; the message says why."""


class Path(NamedTuple):
    """The tokens of a sample; of a tree, those from the prompt to the end of one answer."""

    ids: Ids
    trained: Mask


class Answer(NamedTuple):
    """Characters of a text. begin: where the model takes over. end: behind the answer's content."""

    begin: int
    end: int


class Written(NamedTuple):
    """The text of a sample, the answers in it that are trained, and its tokens with the characters
    that they stand for, (L,) each.
    """

    text: str
    answers: list[Answer]
    ids: Ids
    begins: np.ndarray
    ends: np.ndarray


def find_fault(
    path: Path,
    example: Example,
    train_on: TrainOn,
    limit: int,
    tokenizer: Tokenizer,
    rendering: Rendering,
) -> str | None:
    """What is wrong with the tokens or the mask of a path, in words; None where nothing is.

    limit: tokens to which longer samples were cut. Raises IncomparableError.
    """
    if train_on == "all" or isinstance(example, PlainText):
        untrained = np.flatnonzero(~path.trained[MOST_LEADING:])
        return f"token {untrained[0] + MOST_LEADING} is not trained" if len(untrained) else None
    if isinstance(example, Conversation):
        written, most = _write_chat(example, tokenizer, rendering), 0
    else:
        written, most = _write_texts(example, tokenizer), MOST_LEADING
    lead = _find_lead(path, written, limit, most)
    if lead is None:
        return "transformers gives other tokens"
    expected, unsure = np.zeros((2, lead + len(written.ids) + 1), dtype=np.bool_)
    numbers = np.arange(len(written.ids)) + lead
    for answer in written.answers:
        last = _last_token(path, written, lead, answer, rendering.end_token_ids)
        if last is None:
            return "no end token stands behind an answer"
        expected[numbers[(written.ends > answer.begin) & (numbers <= last)]] = True
        expected[min(last, len(expected) - 1)] = True
        unsure[numbers[(written.begins < answer.begin) & (written.ends > answer.begin)]] = True
    unsure[numbers[written.begins == written.ends]] = True  # of white space that is cut off offsets
    unsure[0] = True
    return _tell(path, expected[: len(path.ids)], unsure[: len(path.ids)], tokenizer)


def _write_chat(example: Conversation, tokenizer: Tokenizer, rendering: Rendering) -> Written:
    """A conversation as transformers writes it."""
    messages = example.messages
    if example.tools or any(m["role"] == "tool" or "tool_calls" in m for m in messages):
        raise IncomparableError("tools are called")
    if rendering.date is not None:
        raise IncomparableError("the template prints the date")
    text = _apply(tokenizer, messages)
    marked = [m | {"content": MARK.format(n)} for n, m in enumerate(messages)]
    ends, found, rest = [], "", _apply(tokenizer, marked)
    stripped = _join(rest, [m["content"].strip() for m in messages]) == text
    for n, message in enumerate(messages):
        frame, mark, rest = rest.partition(MARK.format(n))
        if not mark:
            raise IncomparableError("the template leaves contents out or moves them")
        found += frame + (message["content"].strip() if stripped else message["content"])
        ends.append(len(found))
    if found + rest != text:
        raise IncomparableError("the template changes what messages say")
    answers = []
    for n, message in enumerate(messages):
        if message["role"] == "assistant" and n >= example.given:
            prompt = _apply(tokenizer, messages[:n], add_generation_prompt=True)
            if not text.startswith(prompt):
                raise IncomparableError("the template shows earlier turns differently later")
            answers.append(Answer(len(prompt), ends[n]))
    return _tokenised(text, answers, tokenizer)


def _write_texts(example: PromptCompletion, tokenizer: Tokenizer) -> Written:
    text = example.prompt + example.completion
    return _tokenised(text, [Answer(len(example.prompt), len(text))], tokenizer)


def _join(marked: str, contents: Sequence[str]) -> str:
    for n, content in enumerate(contents):
        marked = marked.replace(MARK.format(n), content)
    return marked


def _apply(tokenizer: Tokenizer, messages: Sequence[Message], **more: Any) -> str:
    try:
        text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, **more)
    except (jinja2.TemplateError, TypeError, ValueError, AttributeError) as fault:
        raise IncomparableError(f"transformers cannot apply the template: {fault}") from fault
    return text


def _tokenised(text: str, answers: list[Answer], tokenizer: Tokenizer) -> Written:
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    begins, ends = np.array(encoding["offset_mapping"], dtype=np.int64).reshape(-1, 2).T
    return Written(text, answers, np.array(encoding["input_ids"]), begins, ends)


def _find_lead(path: Path, written: Written, limit: int, most: int) -> int | None:
    """How many tokens of the path stand before those of the text; None where they are others.

    Raises IncomparableError where the path is a part of a longer text.
    """
    for lead in range(most + 1):
        there = path.ids[lead : lead + len(written.ids)]
        whole = len(there) == len(written.ids) or len(path.ids) == limit
        if whole and np.array_equal(there, written.ids[: len(there)]):
            return lead
    if len(written.ids) + (most + 1 if most else 0) > limit:  # plain text gets an end token too
        raise IncomparableError("the row is longer than max_tokens")
    return None


def _last_token(
    path: Path, written: Written, lead: int, answer: Answer, end_token_ids: Sequence[int]
) -> int | None:
    """The place in the path of the token that ends an answer; its length where it was cut off
    before, None where there is no such token.
    """
    behind = (written.ends > answer.end) & np.isin(written.ids, list(end_token_ids))
    if behind.any():
        return int(np.argmax(behind)) + lead
    if len(path.ids) == lead + len(written.ids) + 1:  # plain text gets one
        return len(path.ids) - 1 if path.ids[-1] in end_token_ids else None
    if len(path.ids) < lead + len(written.ids):
        return len(path.ids)
    ended = answer.end == len(written.text) and path.ids[-1] in end_token_ids
    return len(path.ids) - 1 if ended else None


def _tell(path: Path, expected: Mask, unsure: Mask, tokenizer: Tokenizer) -> str | None:
    """The first token whose mask is not what it has to be."""
    wrong = np.flatnonzero((expected != path.trained) & ~unsure)
    if not len(wrong):
        return None
    first = int(wrong[0])
    word = tokenizer.decode([int(path.ids[first])])
    if expected[first]:
        return f"token {first}, {word!r}, belongs to an answer and is not trained"
    return f"token {first}, {word!r}, stands outside the answers and is trained"
