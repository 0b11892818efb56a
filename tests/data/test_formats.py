"""Which format rows have, and what makes a row bad."""

from typing import Any

import pytest

from hone.data.formats import Conversation, PlainText, PromptCompletion, Reading, recognise
from hone.data.rows import RowError
from hone.errors import UserError
from hone.recipe.data import Columns, Data

pytestmark = pytest.mark.quick

USER = {"role": "user", "content": "a"}
ANSWER = {"role": "assistant", "content": "b"}
SYSTEM = {"role": "system", "content": "s"}


def data(**settings: Any) -> Data:
    return Data(path="x.jsonl", **settings)


def example(values: dict[str, Any], **settings: Any) -> Any:
    return recognise(list(values), data(**settings)).example(values, "completions")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"text": "a"}, PlainText("a")),
        ({"prompt": "a", "completion": "b", "id": 3}, PromptCompletion("a", "b")),
        ({"prompt": "a", "messages": [USER, ANSWER]}, Conversation([USER, ANSWER])),
        ({"prompt": [USER], "completion": [ANSWER]}, Conversation([USER, ANSWER], given=1)),
        ({"text": "x", "prompt": "a", "completion": ""}, PromptCompletion("a", "")),
        ({"text": "x", "instruction": "a", "output": "b"}, Conversation([USER, ANSWER])),
        ({"instruction": "a", "input": "", "output": "b"}, Conversation([USER, ANSWER])),
        ({"instruction": "a", "input": None, "output": "b"}, Conversation([USER, ANSWER])),
        (
            {"instruction": "a", "input": "i", "output": "b", "system": "s", "tools": "t"},
            Conversation(
                [
                    SYSTEM,
                    {"role": "user", "content": "a\n\ni", "instruction": "a", "input": "i"},
                    ANSWER,
                ]
            ),
        ),
        (
            {"messages": [USER, ANSWER], "system": "s", "tools": [{"name": "f"}]},
            Conversation([SYSTEM, USER, ANSWER], tools=[{"name": "f"}]),
        ),
        ({"messages": [SYSTEM, USER, ANSWER], "system": "s"}, Conversation([SYSTEM, USER, ANSWER])),
        ({"messages": [USER, ANSWER], "system": "", "tools": ""}, Conversation([USER, ANSWER])),
        (
            {"prompt": [USER], "completion": [ANSWER], "system": "s", "tools": '[{"name": "f"}]'},
            Conversation([SYSTEM, USER, ANSWER], given=2, tools=[{"name": "f"}]),
        ),
        ({"prompt": "a", "completion": "b", "system": "s"}, PromptCompletion("a", "b")),
    ],
)
def test_formats_are_recognised_from_the_keys(values: dict[str, Any], expected: Any) -> None:
    assert example(values) == expected


def test_formats_and_columns_can_be_named() -> None:
    values = {"messages": [USER, ANSWER], "text": "t", "body": "c", "q": "a", "a": "b"}
    assert example(values, format="text") == PlainText("t")
    assert example(values, format="text", columns={"text": "body"}) == PlainText("c")
    columns = {"prompt": "q", "completion": "a"}
    named = example(values, format="prompt_completion", columns=columns)
    assert named == PromptCompletion("a", "b")
    assert example({"q": "a", "a": "b"}, columns=columns) == PromptCompletion("a", "b")
    values = {"messages": [USER, ANSWER], "system": "s", "tools": "unrelated", "who": "w"}
    columns = {"system": "who", "tools": None}
    assert example(values, columns=columns).messages[0]["content"] == "w"
    assert example(values, columns={"system": None, "tools": None}) == Conversation([USER, ANSWER])


@pytest.mark.parametrize(
    ("keys", "columns", "format"),
    [
        (["messages", "question", "completion"], {"prompt": "question"}, "prompt_completion"),
        (["messages", "body"], {"text": "body"}, "text"),
        (["prompt", "completion"], {"messages": "chat"}, "messages"),
        (["messages", "context"], {"input": "context"}, "instruction"),
        (["text"], {"tools": None}, "messages"),
    ],
)
def test_a_named_column_that_would_not_be_read_is_refused(
    keys: list[str], columns: dict[str, str | None], format: str
) -> None:
    with pytest.raises(UserError) as caught:
        recognise(keys, data(columns=columns))
    named = next(iter(columns.values())) or "null"
    assert f"is `{named}`, but the rows are read as" in caught.value.message
    assert f"format: {format}" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("keys", "settings", "message", "hint"),
    [
        (["txt", "id"], {}, "no column `text`; the columns are `txt`, `id`; did you", "text: txt"),
        (["message"], {}, "did you mean `message`", "messages: message"),
        (["prompt", "reply"], {}, "no column `completion`; the columns are `prompt`, `reply`", ""),
        (["instruction", "outputs"], {}, "no column `output`; the columns are", "output: outputs"),
        (["conversation"], {}, "did you mean `conversation`", "conversations: conversation"),
        (["messages", "tols"], {"columns": {"tools": "tls"}}, "did you mean `tols`", "tools: tols"),
        (["id", "messages"], {"columns": {"messages": "x"}}, "no column `x`", "messages: messages"),
        (["foo"], {}, "have the columns `foo`; expected `messages`, or `conv", "text: foo"),
        (["a"], {"columns": {"text": "body"}}, "no column `body`; the columns are `a`", "text: a"),
        (["text"], {"format": "messages"}, "no column `messages`; the columns are `text`", ""),
        (
            ["prompt", "completions"],
            {"format": "prompt_completion"},
            "did you mean `completions`",
            "completion: completions",
        ),
        ([], {}, "have the columns none", ""),
    ],
)
def test_a_missing_column_lists_those_there_are(
    keys: list[str], settings: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(UserError) as caught:
        recognise(keys, data(**settings))
    assert message in caught.value.message
    assert hint in str(caught.value.hint)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text": None}, "the column `text` is empty (null)"),
        ({"tekst": "a"}, "no column `text`; the columns are `tekst`; did you mean `tekst`?"),
        ({"text": 3}, "`text` is a number; expected text"),
        ({"text": ["a"]}, "`text` is a list; expected text"),
        ({"text": "a\ud800"}, "half of a surrogate pair"),
        ({"messages": "a"}, "`messages` is text; expected a list of {role, content}"),
        ({"messages": []}, "the list of messages is empty"),
        ({"messages": ["a"]}, "message 1 of `messages` is text; expected an object"),
        ({"messages": [USER]}, "no turn of role `assistant`"),
        (
            {"messages": [USER, {"role": "asistant", "content": "b"}]},
            "message 2 of `messages` has the role `asistant`; "
            "expected `system`, `user`, `assistant` or `tool`; did you mean `assistant`?",
        ),
        ({"messages": [USER, {"role": "boss", "content": "b"}]}, "has the role `boss`"),
        (
            {"messages": [USER, {"rol": "assistant", "content": "b"}]},
            "no key `role`; the keys are `rol`, `content`; did you mean `rol`?",
        ),
        ({"messages": [{**ANSWER, "content": None}]}, "the key `content` is empty"),
        (
            {"messages": [USER, {**ANSWER, "content": [{"type": "text"}]}]},
            "`text` in part 1 of `content` in message 2 of `messages` is nothing (null); expected",
        ),
        (
            {"messages": [{**USER, "content": [{"type": "image"}]}, ANSWER]},
            "part 1 of `content` in message 1 of `messages` is of type `image`; expected `text`",
        ),
        (
            {"messages": [USER, {**ANSWER, "notes": [1]}]},
            "`notes` in message 2 of `messages` is a list; only messages of plain text",
        ),
        ({"messages": [USER, {**ANSWER, "name": "\ud800"}]}, "half of a surrogate pair"),
        (
            {"prompt": "a", "completion": [ANSWER]},
            "`prompt` is text and `completion` is a list; expected two texts or two lists",
        ),
        ({"prompt": [ANSWER], "completion": [USER]}, "the completion has no turn of role"),
        (
            {"messages": [SYSTEM, USER, ANSWER], "system": "t"},
            "`system` differs from the conversation's own system turn",
        ),
        ({"messages": [USER, ANSWER], "system": 3}, "`system` is a number; expected text"),
        ({"messages": [USER, ANSWER], "tools": "x"}, "`tools` is text that is not valid JSON"),
        ({"messages": [{"from": "gpt", "value": "b"}]}, "there is no key `role`; the keys are"),
        ({"prompt": "a", "completion": True}, "`completion` is true or false; expected text"),
    ],
)
def test_bad_rows_say_what_was_expected(values: dict[str, Any], message: str) -> None:
    format = "messages" if "messages" in values else "text"
    reading = Reading("prompt_completion" if "prompt" in values else format, Columns())
    with pytest.raises(RowError) as caught:
        reading.example(values, "completions")
    assert message in caught.value.message


def test_a_conversation_without_answer_is_fine_when_all_is_trained() -> None:
    reading = Reading("messages", Columns())
    assert reading.example({"messages": [USER]}, "all") == Conversation([USER])


def test_empty_keys_of_messages_are_left_out_and_plain_ones_kept() -> None:
    row = {"messages": [USER, {**ANSWER, "name": None, "weight": 1, "reasoning_content": "hm"}]}
    assert example(row).messages[1] == {**ANSWER, "weight": 1, "reasoning_content": "hm"}


def test_turns_of_sharegpt_among_messages_are_pointed_to_their_format() -> None:
    with pytest.raises(RowError) as caught:
        example({"messages": [{"from": "gpt", "value": "b"}]})
    assert "format: conversations" in str(caught.value.hint)


@pytest.mark.parametrize("column", ["output", "instruction"])
def test_an_instruction_has_both_of_its_halves(column: str) -> None:
    row = {"instruction": "a", "output": "b", column: None}
    with pytest.raises(RowError, match=f"the column `{column}` is empty"):
        example(row)
    with pytest.raises(RowError, match="`input` is a list; expected text"):
        example({"instruction": "a", "output": "b", "input": [1]})


def test_named_columns_that_two_texts_have_no_place_for_are_refused() -> None:
    row = {"prompt": "a", "completion": "b", "who": "s"}
    with pytest.raises(RowError, match="`who` has no place in a row of two texts"):
        example(row, columns={"system": "who"})
    assert example({**row, "who": ""}, columns={"system": "who"}) == PromptCompletion("a", "b")
