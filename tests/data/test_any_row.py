"""Whatever a row holds: samples that can be trained, or a UserError, nothing else."""

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hone.data.chat import Renderer, Tokens
from hone.data.formats import FORMATS, Conversation, TrainOn, recognise, sides_of
from hone.data.overlong import split
from hone.data.trees import fitted, make_tree
from hone.errors import UserError
from hone.recipe.data import Columns, Data
from tests.data.test_tools import DEEPSEEK
from tests.data.tokenizers import MARKED, REASONING, shared, shipped

TEMPLATES = ["auto", "alpaca", "llama", "qwen2_5", "qwen3", "llama3_1", "deepseek", "marked", "own"]
ROLES = ["system", "user", "assistant", "tool", "human", "gpt", "function_call", "observation"]
KEYS = ["role", "content", "from", "value", "tool_calls", "name", "type", "text", "function"]
CALL = {"name": "f", "arguments": {"a": "b"}}
TEXTS = ["", "a", "{", "[]", "null", json.dumps(CALL), "<think>b</think>c", "<|im_end|>", "\ufdd0"]

texts = st.text(st.characters(), max_size=8) | st.sampled_from(TEXTS)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | texts, inner, max_size=4)
    ),
    max_leaves=10,
)
arguments = st.sampled_from([{}, {"a": "b"}, '{"a": "b"}', "{", None]) | values
calls = st.lists(
    st.fixed_dictionaries(
        {"function": st.fixed_dictionaries({"name": texts, "arguments": arguments})}
    )
    | st.just(CALL)
    | values,
    max_size=3,
)
parts = st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": texts}), max_size=2)
contents = texts | parts | values
near_messages = st.fixed_dictionaries(
    {"role": st.sampled_from(ROLES), "content": contents}, optional={"tool_calls": calls}
)
near_turns = st.fixed_dictionaries({"from": st.sampled_from(ROLES), "value": contents})
good = st.builds(
    lambda pairs: [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ],
    st.lists(st.tuples(texts, texts), min_size=1, max_size=3),
)
conversations = good | st.lists(near_messages | near_turns | values, max_size=5)
tools = st.lists(st.just(CALL) | values, max_size=2).flatmap(
    lambda made: st.sampled_from([made, repr(made)])
)
columns = dict.fromkeys(Columns.model_fields, texts | values) | {
    "messages": conversations,
    "conversations": conversations,
    "prompt": texts | conversations,
    "completion": texts | conversations,
    "chosen": texts | conversations,
    "rejected": texts | conversations,
    "label": st.booleans() | st.sampled_from([0, 1, "1", "false"]) | values,
    "tools": tools | values,
}
rows = st.sampled_from(list(FORMATS)).flatmap(
    lambda format: st.fixed_dictionaries(
        {name: columns[name] for name in FORMATS[format].needed},
        optional={name: columns[name] for name in FORMATS[format].optional},
    )
)


@cache
def renderer(template: str) -> Renderer:
    if template in ("qwen2_5", "qwen3", "llama3_1"):
        source, tokenizer = shipped(template)
        return Renderer(tokenizer, source)
    sources = {"deepseek": DEEPSEEK, "marked": MARKED, "own": REASONING}
    return Renderer(shared("byte_level_begin"), sources.get(template, template))


def samples_or_refuse(
    row: dict[str, Any], data: Data, template: str, train_on: TrainOn
) -> list[Tokens]:
    """The samples, whole and split, of pairs those of both sides; none where the row is refused in
    words that can be printed.
    """
    chosen = renderer(template)
    try:
        examples = sides_of(recognise(list(row), data, kind=None).example(row, train_on))
        sides = [chosen.samples(example, train_on) for example in examples]
        split_sides = [
            split(chosen, example, samples, 12, train_on)
            for example, samples in zip(examples, sides, strict=True)
        ]
    except UserError as error:
        assert error.message.strip()
        f"{error.message} {error.hint}".encode()
        return []
    for example, samples, parts in zip(examples, sides, split_sides, strict=True):
        if isinstance(example, Conversation):
            assert samples
        for tokens in (*samples, *(each for part in parts for each in part)):
            assert len(tokens.ids) == len(tokens.trained)
            assert not tokens.trained[:1].any()
    if len(sides) == 2 and all(len(samples) == 1 for samples in sides):
        check_tree([samples[0] for samples in sides], chosen.begin_ids)
    return [tokens for samples in sides for tokens in samples]


def check_tree(sides: list[Tokens], begin_ids: list[int]) -> None:
    """The tree's paths are the sides, and those of a shortened one fit."""
    for limit in (1, 12, 10_000):
        shortened = fitted(sides, limit, "keep_end", begin_ids)
        tree = make_tree(shortened)
        ends = np.cumsum(tree.segments)
        prompt, *parts = np.split(tree.tokens.ids, ends[:-1])
        for part, side, whole in zip(parts, shortened, sides, strict=True):
            assert [*prompt, *part] == side.ids.tolist()
            assert len(side.ids) == min(len(whole.ids), limit) or len(side.ids) < limit
            assert not side.trained[:1].any()
        assert not tree.tokens.trained[: ends[0]].any()


train_ons = st.sampled_from(["completions", "all"])


@given(rows, st.sampled_from(TEMPLATES), train_ons)
def test_any_row_of_a_format(row: dict[str, Any], template: str, train_on: TrainOn) -> None:
    samples_or_refuse(row, Data(path="x"), template, train_on)


@given(st.dictionaries(st.sampled_from(list(Columns.model_fields)) | texts, values, max_size=5))
def test_any_json_object(row: dict[str, Any]) -> None:
    samples_or_refuse(row, Data(path="x"), "auto", "completions")


@given(
    st.dictionaries(texts, values, max_size=3),
    st.sampled_from(["auto", *FORMATS]),
    st.dictionaries(st.sampled_from(list(Columns.model_fields)), texts, max_size=2),
)
def test_any_columns(row: dict[str, Any], format: Any, named: dict[str, str]) -> None:
    data = Data(path="x", format=format, columns=Columns(**named))
    samples_or_refuse(row, data, "auto", "completions")


@given(conversations, st.sampled_from(TEMPLATES), tools)
def test_any_messages(messages: list[Any], template: str, given_tools: Any) -> None:
    row = {"messages": messages, "tools": given_tools}
    samples_or_refuse(row, Data(path="x"), template, "completions")


@given(good, st.sampled_from(TEMPLATES))
def test_good_messages_are_accepted(messages: list[Any], template: str) -> None:
    def clean(value: str) -> bool:
        return value.isprintable()

    if all(clean(message["content"]) for message in messages):
        assert samples_or_refuse({"messages": messages}, Data(path="x"), template, "all")


@given(good, texts, texts, st.sampled_from(TEMPLATES))
def test_good_pairs_are_accepted(
    messages: list[Any], chosen: str, rejected: str, template: str
) -> None:
    whole = [[*messages[:-1], {**messages[-1], "content": text}] for text in (chosen, rejected)]
    row = dict(zip(("chosen", "rejected"), whole, strict=True))
    samples = samples_or_refuse(row, Data(path="x"), template, "completions")
    contents = [message["content"] for side in whole for message in side]
    if all(content.isprintable() for content in contents) and "<think>" not in "".join(contents):
        assert len(samples) == 2


@pytest.mark.parametrize("depth", [100_000])
def test_what_is_nested_beyond_measure_is_refused(depth: int) -> None:
    deep: Callable[[str, str], str] = lambda a, b: a * depth + b * depth  # noqa: E731
    row = {"messages": [{"role": "user", "content": "a"}], "tools": deep("[", "]")}
    assert samples_or_refuse(row, Data(path="x"), "auto", "completions") == []
    row = {"conversations": [{"from": "function_call", "value": deep('{"a":', "}")}]}
    assert samples_or_refuse(row, Data(path="x"), "auto", "completions") == []
