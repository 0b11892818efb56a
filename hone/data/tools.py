"""Tools of a conversation: checked, handed to the template as it expects them, never lost there.

`formats.py` and `messages.py` check with it, `chat.py` prepares the messages for the template.
Tools are handed on as transformers does, as `tools`. Arguments of calls are objects; a template
that can only print text (DeepSeek's) gets text, which `wants_text` finds out by trying. Left out:
Python functions as tools, and checking arguments against a tool's schema.
"""

import json
from collections.abc import Sequence
from typing import Any

from hone.data.rows import RowError, kind_of, missing_key
from hone.data.templates import ChatTemplate

Tools = list[dict[str, Any]]
SHOWN_HINT = (
    "name a template that shows tools (a Jinja file, say): data: {path: ..., template: ...}; "
    "a column of tools that is not wanted: data: {path: ..., columns: {tools: null}}"
)
_PROBED = {"city": "Oslo"}


def checked_tools(value: Any, name: str) -> Tools | None:
    """The tools of a row: a list of objects, or such a list as JSON text; None where there are
    none. Raises RowError.
    """
    if isinstance(value, str):
        value = _parsed(value, name) if value.strip() else None
    if value is None:
        return None
    if not isinstance(value, list):
        raise RowError(f"{name} is {kind_of(value)}; expected a list of objects, or one as JSON")
    for number, tool in enumerate(value, start=1):
        if not isinstance(tool, dict):
            raise RowError(f"tool {number} of {name} is {kind_of(tool)}; expected an object")
    _check_json(value, name)
    return value or None


def checked_calls(value: Any, name: str) -> list[dict[str, Any]]:
    """Calls as {"type": "function", "function": {"name", "arguments"}}, whether they came so or as
    {name, arguments}, as a list or as JSON text. Raises RowError.
    """
    if isinstance(value, str):
        value = _parsed(value, name)
    calls = value if isinstance(value, list) else [value]
    made = [_checked_call(each, f"call {n} of {name}") for n, each in enumerate(calls, start=1)]
    if not made:
        raise RowError(f"{name} holds no call")
    _check_json(made, name)
    return made


def _checked_call(call: Any, name: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else call
    if not isinstance(function, dict):
        raise RowError(f"{name} is {kind_of(function)}; expected an object {{name, arguments}}")
    for key in ("name", "arguments"):
        if key not in function or (key == "name" and function[key] is None):
            raise RowError(f"{name}: {missing_key(key, function, 'key')}")
    if not isinstance(function["name"], str):
        raise RowError(f"`name` in {name} is {kind_of(function['name'])}; expected text")
    inner = {"name": function["name"], "arguments": _arguments(function["arguments"], name)}
    kept = {k: v for k, v in call.items() if v is not None and k not in ("function", *inner)}
    return {"type": "function", **kept, "function": inner}


def _arguments(value: Any, name: str) -> dict[str, Any] | str:
    """An object, or the text of one as it was given."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return {}
    found = _parsed(value, f"`arguments` in {name}") if isinstance(value, str) else value
    if not isinstance(found, dict):
        raise RowError(f"`arguments` in {name} is {kind_of(found)}; expected an object")
    return value  # type: ignore[no-any-return]


def _parsed(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise RowError(f"{name} is text that is not valid JSON: {fault}") from fault


def _check_json(value: Any, name: str) -> None:
    """Raises RowError for what cannot be written as text: templates print it as JSON."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as fault:
        raise RowError(f"{name} cannot be written as JSON: {type(fault).__name__}") from fault


def with_arguments(messages: list[dict[str, Any]], as_text: bool) -> list[dict[str, Any]]:
    """The messages with the arguments of all calls as objects, or all as JSON text."""

    def convert(arguments: dict[str, Any] | str) -> dict[str, Any] | str:
        if as_text:
            given = isinstance(arguments, str)
            return arguments if given else json.dumps(arguments, ensure_ascii=False)
        parsed: dict[str, Any] = json.loads(arguments) if isinstance(arguments, str) else arguments
        return parsed

    def converted(call: dict[str, Any]) -> dict[str, Any]:
        function = call["function"]
        return {**call, "function": {**function, "arguments": convert(function["arguments"])}}

    return [
        {**message, "tool_calls": [converted(call) for call in message["tool_calls"]]}
        if "tool_calls" in message
        else message
        for message in messages
    ]


def wants_text(template: ChatTemplate) -> bool:
    """Whether the template fails on arguments that are an object, or prints them as Python does,
    and takes text.
    """
    shown = _probe(template, _PROBED)
    if "Oslo" in shown and "{'" not in shown:
        return False
    return "Oslo" in _probe(template, json.dumps(_PROBED))


def _probe(template: ChatTemplate, arguments: dict[str, str] | str) -> str:
    function = {"name": "find", "arguments": arguments}
    call = {"type": "function", "id": "a1b2c3d4e", "function": function}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    try:
        return template.render(messages)
    except RowError:
        return ""


def check_shown(
    template: ChatTemplate, messages: Sequence[dict[str, Any]], tools: Tools | None
) -> None:
    """Raises RowError where the template leaves out the tools, a call or what a tool gave: the text
    is the same without the tools, or with another call or another result.
    """
    full: list[dict[str, Any]] = [{"content": "", **message} for message in messages]
    if tools and _unchanged(template, full, None, template.render(full, tools=tools)):
        raise _left_out("the tools")
    for number, message in enumerate(full, start=1):
        if other := _altered(message):
            shown = template.render(full[:number], tools=tools)
            if _unchanged(template, [*full[: number - 1], other], tools, shown):
                what = "the call" if "tool_calls" in message else "the tool's result"
                raise _left_out(f"{what} in message {number}")


def _altered(message: dict[str, Any]) -> dict[str, Any] | None:
    """The message with its last call, or its result, changed; None where it has neither."""
    if "tool_calls" in message:
        *others, last = message["tool_calls"]
        function = {**last["function"], "name": last["function"]["name"] + "x"}
        return {**message, "tool_calls": [*others, {**last, "function": function}]}
    return {**message, "content": f"x{message['content']}"} if message["role"] == "tool" else None


def _unchanged(
    template: ChatTemplate, messages: Sequence[dict[str, Any]], tools: Tools | None, text: str
) -> bool:
    try:
        return template.render(messages, tools=tools) == text
    except RowError:
        return False


def _left_out(what: str) -> RowError:
    return RowError(
        f"the chat template leaves out {what}: the model would learn from a conversation that is "
        "not the row's",
        hint=SHOWN_HINT,
    )
