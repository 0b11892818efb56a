"""The messages of a row, checked and made plain: role, text, tool calls.

Used by `formats.py` and `sharegpt.py`. Keys that hold nothing are left out, as transformers does; a
content of several parts of text becomes one text. Refused: images and other parts that are not
text, roles that no template knows.
"""

from typing import Any

from hone.data.rows import RowError, kind_of, missing_key, printable
from hone.data.tools import checked_calls
from hone.errors import nearest

Message = dict[str, Any]
"""{"role": "user", "content": "Hello"}, and whatever plain keys the chat template knows besides.

{"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "find", "arguments":
{"city": "Oslo"}}}]} calls a tool; {"role": "tool", "content": "..."} is what it gave.
"""

ROLES = ("system", "user", "assistant", "tool")
SHAREGPT_HINT = "messages of {from, value} are read so: data: {path: ..., format: conversations, "


def checked_text(value: Any, name: str) -> str:
    """`value` if it is text that can be encoded; raises RowError."""
    if not isinstance(value, str):
        raise RowError(f"{name} is {kind_of(value)}; expected text")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise RowError(f"{name} holds half of a surrogate pair, which is no valid text")
    return value


def checked_messages(value: Any, name: str) -> list[Message]:
    """`value` as messages without empty keys; raises RowError that names the message at fault (from
    1).
    """
    if not isinstance(value, list):
        raise RowError(f"{name} is {kind_of(value)}; expected a list of {{role, content}}")
    return [
        _checked_message(message, f"message {number} of {name}")
        for number, message in enumerate(value, start=1)
    ]


def checked_prompt(value: Any, name: str) -> str | list[Message]:
    """What is asked: a text, or messages of which there is at least one. name: in words, for
    RowError.
    """
    if not isinstance(value, list):
        return checked_text(value, name)
    messages = checked_messages(value, name)
    if not messages:
        raise RowError(f"{name} is a list without messages")
    return messages


def _checked_message(message: Any, name: str) -> Message:
    if not isinstance(message, dict):
        raise RowError(
            f"{name} is {kind_of(message)}; expected an object with `role` and `content`"
        )
    plain = {key: value for key, value in message.items() if value is not None}
    calls = plain.pop("tool_calls", None) or None
    for key in ("role",) if calls else ("role", "content"):
        if key not in plain:
            hint = f"{SHAREGPT_HINT}columns: {{conversations: ...}}}}" if "from" in plain else None
            raise RowError(f"{name}: {missing_key(key, message, 'key')}", hint=hint)
    _check_role(plain["role"], name)
    for key, value in plain.items():
        if isinstance(value, str):
            checked_text(value, f"`{key}` in {name}")
        elif key == "content":
            plain[key] = _joined(value, f"`content` in {name}")
        elif isinstance(value, list | dict):
            raise RowError(
                f"`{key}` in {name} is {kind_of(value)}; only messages of plain text and tool "
                "calls can be trained"
            )
    for key in ("thinking", "reasoning"):  # other names, which transformers knows as well
        if key in plain:
            plain.setdefault("reasoning_content", plain[key])
    if calls:
        if plain["role"] != "assistant":
            raise RowError(f"{name} is of role `{plain['role']}`; only an assistant calls tools")
        plain["tool_calls"] = checked_calls(calls, f"`tool_calls` in {name}")
    return plain


def _joined(value: Any, name: str) -> str:
    """A list of {"type": "text", "text": ...} as one text, as templates join it."""
    if not isinstance(value, list):
        return checked_text(value, name)
    return "".join(_part(part, f"part {n} of {name}") for n, part in enumerate(value, start=1))


def _part(part: Any, name: str) -> str:
    if not isinstance(part, dict):
        raise RowError(f"{name} is {kind_of(part)}; expected an object with `type` and `text`")
    if part.get("type") != "text":
        raise RowError(f"{name} is of type `{printable(part.get('type'))}`; expected `text`")
    return checked_text(part.get("text"), f"`text` in {name}")


def _check_role(role: Any, name: str) -> None:
    if role not in ROLES:
        close = nearest(str(role), ROLES)
        meant = f"; did you mean `{close}`?" if close else ""
        raise RowError(
            f"{name} has the role `{printable(role)}`; "
            f"expected `system`, `user`, `assistant` or `tool`{meant}"
        )
