"""ShareGPT turns as messages, whatever the source calls the speakers."""

import json
from typing import Any

import pytest

from hone.data.formats import Conversation, recognise
from hone.data.rows import RowError
from hone.data.sharegpt import SPEAKERS, checked_turns
from hone.recipe.data import Data

pytestmark = pytest.mark.quick

CALL = {"name": "add", "arguments": {"a": 1}}
CALLS = [{"type": "function", "function": CALL}]


def turn(speaker: str, value: Any, **more: Any) -> dict[str, Any]:
    return {"from": speaker, "value": value, **more}


def message(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (turn("human", "a"), message("user", "a")),
        (turn("gpt", ""), message("assistant", "")),
        (turn("system", "a", weight=0), message("system", "a", weight=0)),
        (turn("observation", "4"), message("tool", "4")),
        (turn("function_response", "4", name="add"), message("tool", "4", name="add")),
        (turn("function_call", json.dumps(CALL)), {"role": "assistant", "tool_calls": CALLS}),
        (turn("tool_call", json.dumps([CALL])), {"role": "assistant", "tool_calls": CALLS}),
        (turn("function_call", CALL), {"role": "assistant", "tool_calls": CALLS}),
        (turn("gpt", None, tool_calls=[CALL]), {"role": "assistant", "tool_calls": CALLS}),
        (turn("gpt", "a", tool_calls=CALLS), message("assistant", "a", tool_calls=CALLS)),
        (message("user", "a"), message("user", "a")),
        ({"role": "human", "value": "a"}, message("user", "a")),
        (
            turn("gpt", "a", html="<p>", tags=["x"], none=None),
            message("assistant", "a", html="<p>"),
        ),
        (turn("human", [{"type": "text", "text": "a"}]), message("user", "a")),
    ],
)
def test_turns_are_messages(given: dict[str, Any], expected: dict[str, Any]) -> None:
    (made,) = checked_turns([given], "x")
    assert {key: value for key, value in made.items() if value is not None} == expected


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ("a", "`x` is text; expected a list of {from, value}"),
        (["a"], "message 1 of `x` is text; expected an object with `from` and `value`"),
        ([{"frm": "gpt"}], "message 1 of `x`: there is no key `from`; the keys are `frm`; did you"),
        (
            [turn("humen", "a")],
            "message 1 of `x` is from `humen`; expected one of `system`, `human`",
        ),
        ([turn("human", None)], "message 1 of `x`: the key `value` is empty (null)"),
        ([{"from": "human"}], "there is no key `value`; the keys are `from`"),
        ([turn("human", 3)], "`content` in message 1 of `x` is a number; expected text"),
        ([turn("function_call", "add(1)")], "is text that is not valid JSON"),
        ([turn("human", "a", tool_calls=[CALL])], "only an assistant calls tools"),
        ([turn("\ud800", "a")], "is from `\\ud800`"),
        ([turn([1], "a")], "is from `[1]`"),  # type: ignore[arg-type]
    ],
)
def test_bad_turns_say_what_was_expected(turns: Any, words: str) -> None:
    with pytest.raises(RowError) as caught:
        checked_turns(turns, "`x`")
    assert words in caught.value.message
    caught.value.message.encode()


def test_every_speaker_has_a_role() -> None:
    for speaker in SPEAKERS:
        value = json.dumps(CALL)
        assert checked_turns([turn(speaker, value)], "x")[0]["role"] in (
            *("system", "user", "assistant", "tool"),
        )


def test_rows_are_recognised_with_their_system_text_and_tools() -> None:
    turns = [turn("human", "a"), turn("gpt", "b")]
    row = {"id": 1, "conversations": turns, "system": "s", "tools": json.dumps([CALL]), "text": "t"}
    made = recognise(list(row), Data(path="x")).example(row, "completions")
    messages = [message("system", "s"), message("user", "a"), message("assistant", "b")]
    assert made == Conversation(messages, tools=[CALL])
    again = recognise(list(row), Data(path="x")).example({"conversations": turns}, "completions")
    assert again == Conversation(messages[1:])
