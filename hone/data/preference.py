"""Rows of preference data: which of their messages are the prompt, which an answer, and the label.

Called by `formats.py`. The prompt stands in a column of its own, or is what two conversations have
in common, or all of one conversation but its last answer. Lists in the manner of ShareGPT are read
as well. Left out: comparing tokens (trees.py).
"""

from typing import Any

from hone.data.messages import Message, checked_messages
from hone.data.rows import RowError, kind_of, printable
from hone.data.sharegpt import checked_turns

LABELS = {"true": True, "1": True, "false": False, "0": False}


def is_text(sides: dict[str, Any]) -> bool:
    """Whether the answers, by their columns, are texts; False where they are messages.

    Raises RowError where they are something else, or of different kinds.
    """
    for name, side in sides.items():
        if not isinstance(side, str | list | dict):
            raise RowError(f"`{name}` is {kind_of(side)}; expected text or a list of messages")
    texts = {isinstance(side, str) for side in sides.values()}
    if len(texts) > 1:
        found = " and ".join(f"`{name}` is {kind_of(side)}" for name, side in sides.items())
        raise RowError(f"{found}; expected two texts or two lists of messages")
    return texts.pop()


def turns_of(value: Any, name: str) -> list[Message]:
    """A list of {role, content} or of {from, value}, or a single one of them, as messages."""
    turns = [value] if isinstance(value, dict) else value
    if isinstance(turns, list) and any(isinstance(turn, dict) and "from" in turn for turn in turns):
        return checked_turns(turns, name)
    return checked_messages(turns, name)


def parted(
    prompt: Any, prompt_name: str, sides: dict[str, list[Message]]
) -> tuple[list[Message], list[list[Message]]]:
    """(the prompt, the answers to it). sides: messages by the names of their columns; they may
    repeat the prompt. Raises RowError.
    """
    if isinstance(prompt, str):
        _check_repeated(prompt, prompt_name, sides)
    if isinstance(prompt, str) or not prompt:
        length = _prompt_length(sides)
        given = next(iter(sides.values()))[:length]
    else:
        given = turns_of(prompt, f"`{prompt_name}`")
    answers = [_answer(given, side, name) for name, side in sides.items()]
    return given, answers


def checked_label(value: Any, name: str) -> bool:
    """True or false, 1 or 0, also as text (a CSV file has nothing else); raises RowError."""
    if isinstance(value, str) and value.strip().lower() in LABELS:
        return LABELS[value.strip().lower()]
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    simple = isinstance(value, str | int | float)
    found = f"`{printable(value)}`" if simple else kind_of(value)
    raise RowError(f"{name} is {found}; expected true or false, or 1 or 0")


def _check_repeated(prompt: str, prompt_name: str, sides: dict[str, list[Message]]) -> None:
    """A prompt that is text says again what one of the messages says."""
    for name, side in sides.items():
        if not any(str(turn.get("content", "")).strip() == prompt.strip() for turn in side[:-1]):
            raise RowError(
                f"`{prompt_name}` is text and `{name}` is a list in which no message before the "
                "last one says the same; expected texts, or lists of messages"
            )


def _prompt_length(sides: dict[str, list[Message]]) -> int:
    """How many messages are the prompt: what the sides have in common before an answer; of one
    side, all but the last.
    """
    first, *others = sides.values()
    most = min(map(len, sides.values())) - 1
    numbers = range(max(most, 0))
    same = next((i for i in numbers if any(o[i] != first[i] for o in others)), max(most, 0))
    for length in range(same, 0, -1):
        if not others or all(side[length]["role"] == "assistant" for side in sides.values()):
            return length
    names = " and ".join(f"`{name}`" for name in sides)
    if not others:
        raise RowError(f"{names} has no message before its answer; expected a prompt")
    raise RowError(
        f"{names} have no prompt in common: they differ from message {same + 1} on; expected "
        "conversations that are the same up to an answer, or a column with the prompt"
    )


def _answer(prompt: list[Message], side: list[Message], name: str) -> list[Message]:
    """The messages behind the prompt: an answer is their first one, and the last one."""
    repeated = side[: len(prompt)] == prompt
    answer = side[len(prompt) :] if repeated else side
    if not answer:
        raise RowError(f"`{name}` has no message behind the prompt")
    for place, turn in (("first", answer[0]), ("last", answer[-1])):
        if turn["role"] != "assistant":
            raise RowError(
                f"the {place} message of `{name}` behind the prompt has the role "
                f"`{turn['role']}`; expected `assistant`"
            )
    return answer
