"""ShareGPT rows: a list of turns {from, value} becomes messages {role, content}.

Called by `formats.py` for `format: conversations`. Turns that are {role, content} already, or mix
the names, are taken as well. A turn of role `function_call` holds its call as JSON text. Lists and
objects beside a turn's text are notes of the source and are left out.
"""

from typing import Any

from hone.data.messages import Message, checked_messages
from hone.data.rows import RowError, kind_of, listed, missing_key, printable
from hone.errors import nearest

CALL = "call"
SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "function_call": CALL,
    "tool_call": CALL,
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}


def checked_turns(value: Any, name: str) -> list[Message]:
    """`value` as messages; raises RowError that names the turn at fault (from 1)."""
    if not isinstance(value, list):
        raise RowError(f"{name} is {kind_of(value)}; expected a list of {{from, value}}")
    turns = [_message(turn, f"message {n} of {name}") for n, turn in enumerate(value, start=1)]
    return checked_messages(turns, name)


def _message(turn: Any, name: str) -> Message:
    if not isinstance(turn, dict):
        raise RowError(f"{name} is {kind_of(turn)}; expected an object with `from` and `value`")
    speaker = _first_of(turn, ("from", "role"), name)
    calls = turn.get("tool_calls")
    role = SPEAKERS.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        close = nearest(str(speaker), SPEAKERS)
        meant = f"; did you mean `{close}`?" if close else ""
        raise RowError(
            f"{name} is from `{printable(speaker)}`; expected one of {listed(SPEAKERS)}{meant}"
        )
    own = {"from", "value", "role", "content", "tool_calls"}
    plain = {k: v for k, v in turn.items() if k not in own and not isinstance(v, list | dict)}
    if role == CALL:
        call = _first_of(turn, ("value", "content"), name)
        return {**plain, "role": "assistant", "tool_calls": call}
    if calls and turn.get("value") is None and turn.get("content") is None:
        return {**plain, "role": role, "tool_calls": calls}
    content = _first_of(turn, ("value", "content"), name)
    return {**plain, "role": role, "content": content, "tool_calls": calls}


def _first_of(turn: dict[str, Any], keys: tuple[str, str], name: str) -> Any:
    for key in keys:
        if turn.get(key) is not None:
            return turn[key]
    raise RowError(f"{name}: {missing_key(keys[0], turn, 'key')}")
