"""Tools, calls and results: the tokens of transformers' own rendering, and never a silent loss."""

import json
from typing import Any

import numpy as np
import pytest

from hone.data.chat import Renderer
from hone.data.formats import Conversation, recognise
from hone.data.messages import checked_messages
from hone.data.rows import RowError
from hone.data.tools import checked_calls, checked_tools
from hone.recipe.data import Data
from tests.data.test_chat import trained_runs
from tests.data.tokenizers import CHATML, GEMMA, LLAMA3, shared, shipped

pytestmark = pytest.mark.quick

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "How is the weather in a city?",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
ARGUMENTS = {"city": "Tromsø", "days": [1, 2]}


def called(arguments: Any, **more: Any) -> dict[str, Any]:
    function = {"name": "weather", "arguments": arguments}
    call = {"type": "function", "id": "a1b2c3d4e", "function": function}
    return {"role": "assistant", "tool_calls": [call], **more}


def conversation(arguments: Any) -> list[dict[str, Any]]:
    return [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Will it rain?"},
        called(arguments, content=None),
        {"role": "tool", "name": "weather", "tool_call_id": "a1b2c3d4e", "content": "It snows."},
        {"role": "assistant", "content": "It snows 😀."},
        {"role": "user", "content": "And then?"},
        called(arguments),
        {"role": "tool", "name": "weather", "tool_call_id": "a1b2c3d4e", "content": "Sun."},
        {"role": "assistant", "content": "Sun."},
    ]


DEEPSEEK = (  # in the manner of DeepSeek V3: the arguments are joined as text
    "{{ bos_token }}{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}"
    "{% if m.tool_calls %}<|im_start|>assistant\n{% for c in m.tool_calls %}"
    "{{ c['function']['name'] + '\n```json\n' + c['function']['arguments'] + '\n```' }}"
    "{% endfor %}{{ eos_token }}"
    "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant\n' + m.content + eos_token }}"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
KNOWN = ["qwen2_5", "qwen2_5_training", "qwen3_instruct_2507", "llama3_1", "llama3_2", "lfm2_v2"]


def example(rows: list[dict[str, Any]], tools: Any = None) -> Conversation:
    row = {"messages": rows, "tools": TOOLS if tools is None else tools}
    made = recognise(list(row), Data(path="x")).example(row, "completions")
    assert isinstance(made, Conversation)
    return made


def own_ids(tokenizer: Any, template: str, messages: list[Any], **settings: Any) -> list[int]:
    """What transformers makes of it: the second computation."""
    ids: list[int] = tokenizer.apply_chat_template(
        messages, tools=TOOLS, chat_template=template, return_dict=False, **settings
    )
    return ids


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("name", KNOWN)
def test_tokens_are_those_of_transformers_whatever_form_arguments_have(
    name: str, as_text: bool
) -> None:
    template, tokenizer = shipped(name)
    renderer = Renderer(tokenizer, template)
    given = json.dumps(ARGUMENTS) if as_text else ARGUMENTS
    made = example(conversation(given), json.dumps(TOOLS) if as_text else TOOLS)
    expected = conversation(ARGUMENTS)
    (tokens,) = renderer.samples(made)
    assert tokens.ids.tolist() == own_ids(tokenizer, template, expected)
    answers = [i for i, message in enumerate(expected) if message["role"] == "assistant"]
    runs = trained_runs(renderer, tokens.ids, tokens.trained)
    assert len(runs) == len(answers) == 4
    begins = np.flatnonzero(np.diff(tokens.trained.astype(int)) == 1) + 1
    for begin, i in zip(begins, answers, strict=True):
        prompt = own_ids(tokenizer, template, expected[:i], add_generation_prompt=True)
        assert tokens.ids[:begin].tolist() == prompt == renderer.prompt(made.messages[:i], TOOLS)
    assert "weather" in runs[0] and "Tromsø" in runs[0] and "snows" not in runs[0]
    assert all(run.endswith(("<|im_end|>", "<|eot_id|>")) for run in runs)


@pytest.mark.parametrize("as_text", [False, True])
def test_a_template_that_prints_arguments_gets_text(as_text: bool) -> None:
    tokenizer = shared("byte_level_begin")
    text = json.dumps(ARGUMENTS, ensure_ascii=False)
    (tokens,) = Renderer(tokenizer, DEEPSEEK).samples(
        example(conversation(text if as_text else ARGUMENTS))
    )
    assert tokens.ids.tolist() == own_ids(tokenizer, DEEPSEEK, conversation(text))
    runs = trained_runs(Renderer(tokenizer, DEEPSEEK), tokens.ids, tokens.trained)
    assert runs[0] == f"weather\n```json\n{text}\n```<|endoftext|>"


WITHOUT_RESULTS = DEEPSEEK.replace("{% else %}<|im", "{% elif m.role != 'tool' %}<|im")
ONE_CALL = DEEPSEEK.replace("in m.tool_calls %}{{ c", "in m.tool_calls[:1] %}{{ c")


@pytest.mark.parametrize(
    ("template", "messages", "tools", "lost"),
    [
        (CHATML, [0, 1, 4], TOOLS, "the tools"),
        ("chatml", [0, 1, 4], TOOLS, "the tools"),
        (LLAMA3, [0, 1, 2, 3, 4], [], "the call in message 3"),
        ("chatml", [0, 1, 2, 3, 4], [], "the call in message 3"),
        (WITHOUT_RESULTS, [0, 1, 2, 3, 4], TOOLS, "the tool's result in message 4"),
    ],
)
def test_a_template_that_leaves_something_out_is_refused(
    template: str, messages: list[int], tools: Any, lost: str
) -> None:
    renderer = Renderer(shared("byte_level_begin"), template)
    rows = conversation(json.dumps(ARGUMENTS))
    chosen = example([rows[i] for i in messages], tools)
    for train_on in ("completions", "all"):
        with pytest.raises(RowError, match=f"the chat template leaves out {lost}") as caught:
            renderer.render(chosen, train_on)  # type: ignore[arg-type]
        assert "columns: {tools: null}" in str(caught.value.hint)


def test_what_is_shown_or_not_there_is_not_refused() -> None:
    rows = conversation(json.dumps(ARGUMENTS))
    for template in (CHATML, "chatml", LLAMA3):
        renderer = Renderer(shared("byte_level_begin"), template)
        assert len(renderer.samples(example([rows[i] for i in (0, 1, 4)], []))) == 1
    assert len(Renderer(shared("byte_level_begin"), DEEPSEEK).samples(example(rows))) == 1


def test_a_second_call_that_is_left_out_is_seen() -> None:
    assert ONE_CALL != DEEPSEEK
    twice = conversation(json.dumps(ARGUMENTS))
    twice[2]["tool_calls"] *= 2
    Renderer(shared("byte_level_begin"), DEEPSEEK).samples(example(twice))
    with pytest.raises(RowError, match="leaves out the call in message 3"):
        Renderer(shared("byte_level_begin"), ONE_CALL).samples(example(twice))


def test_a_template_that_leaves_system_turns_out_is_refused() -> None:
    silent = CHATML.replace("in messages", "in messages if m.role != 'system'")
    rows = conversation({})
    with pytest.raises(RowError, match="leaves out system turns"):
        Renderer(shared("byte_level"), silent).samples(Conversation([rows[i] for i in (0, 1, 4)]))
    Renderer(shared("byte_level"), silent).samples(Conversation([rows[i] for i in (1, 4)]))
    Renderer(shared("byte_level_begin"), GEMMA).samples(Conversation([rows[i] for i in (0, 1, 4)]))


def test_calls_come_in_several_forms() -> None:
    wanted = [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]
    bare = {"name": "f", "arguments": {"a": 1}}
    for form in (wanted, [bare], bare, json.dumps(bare), json.dumps(wanted)):
        assert checked_calls(form, "x") == wanted
    assert checked_calls([{"function": bare, "index": None}], "x") == wanted
    assert checked_calls({"name": "f", "arguments": None}, "x")[0]["function"]["arguments"] == {}
    text = checked_calls({"name": "f", "arguments": '{"a":1}'}, "x")[0]
    assert text["function"]["arguments"] == '{"a":1}', "as it was given"


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        ([3], "call 1 of `x` is a number; expected an object {name, arguments}"),
        ([{"function": "f"}], "call 1 of `x` is text; expected an object"),
        ([{"name": "f"}], "call 1 of `x`: there is no key `arguments`; the keys are `name`"),
        ([{"name": None, "arguments": {}}], "the key `name` is empty"),
        ([{"name": 3, "arguments": {}}], "`name` in call 1 of `x` is a number; expected text"),
        ([{"name": "f", "arguments": "{"}], "`arguments` in call 1 of `x` is text that is not val"),
        ([{"name": "f", "arguments": "[1]"}], "`arguments` in call 1 of `x` is a list; expected"),
        ([{"name": "f", "arguments": [1]}], "`arguments` in call 1 of `x` is a list; expected"),
        ([{"name": "f", "arguments": {"a": float("nan")}}], "cannot be written as JSON"),
        ([{"name": "\ud800", "arguments": {}}], "cannot be written as JSON"),
        ("f(x)", "`x` is text that is not valid JSON"),
        ("[]", "`x` holds no call"),
    ],
)
def test_bad_calls_say_what_was_expected(calls: Any, message: str) -> None:
    with pytest.raises(RowError) as caught:
        checked_calls(calls, "`x`")
    assert message in caught.value.message


def test_tools_are_a_list_or_its_text() -> None:
    assert checked_tools(TOOLS, "x") == checked_tools(json.dumps(TOOLS), "x") == TOOLS
    for nothing in (None, [], "", " ", "[]", "null"):
        assert checked_tools(nothing, "x") is None
    for wrong, message in {
        "{": "text that is not valid JSON",
        "{}": "is an object; expected a list",
        "[3]": "tool 1 of x is a number; expected an object",
    }.items():
        with pytest.raises(RowError, match=message):
            checked_tools(wrong, "x")
    with pytest.raises(RowError, match="cannot be written as JSON"):
        checked_tools([{"a": "\ud800"}], "x")


def test_only_an_assistant_calls() -> None:
    with pytest.raises(RowError, match="of role `user`; only an assistant calls tools"):
        checked_messages([{**called({}), "role": "user"}], "x")
    with pytest.raises(RowError, match="the key `content` is empty"):
        checked_messages([{"role": "assistant", "content": None, "tool_calls": []}], "x")
