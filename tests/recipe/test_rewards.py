"""What may stand below `environment` and `rewards`: shorthands, choices, and what is refused."""

import inspect
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from hone.recipe import rewards
from hone.recipe.node import Node
from hone.recipe.rewards import (
    Answers,
    Arithmetic,
    Custom,
    Environment,
    JsonRule,
    LengthRule,
    PythonCode,
    Reward,
    Rules,
)

pytestmark = pytest.mark.quick

ENVIRONMENT: TypeAdapter[Any] = TypeAdapter(Environment)
RULE = {"type": "length", "max": 3}


def fault(value: object, adapter: TypeAdapter[Any] = ENVIRONMENT) -> str:
    """The one thing that is wrong: where, and what."""
    with pytest.raises(ValidationError) as caught:
        adapter.validate_python(value)
    (error,) = caught.value.errors()
    return f"{'.'.join(map(str, error['loc']))}: {error['msg']}"


def test_every_environment_by_its_type() -> None:
    made = ENVIRONMENT.validate_python
    assert made("arithmetic") == made({"type": "arithmetic"}) == Arithmetic()
    answers = made({"type": "answers", "data": "rows.jsonl", "match": "numeric"})
    assert isinstance(answers, Answers)
    assert answers.data.path == "rows.jsonl"
    rules = made({"type": "rules", "data": "rows.jsonl", "rules": [RULE, {"type": "json"}]})
    assert isinstance(rules, Rules)
    assert rules.rules == [LengthRule(max=3), JsonRule()]
    code = made({"type": "python", "data": {"path": "acme/tasks", "split": "train"}})
    assert isinstance(code, PythonCode)
    assert code.data.split == "train"
    assert isinstance(made({"type": "custom", "code": "own.py:Mine"}), Custom)


def test_a_column_is_not_prompt_and_tests_at_once() -> None:
    columns = {"prompt": "text", "tests": "text"}
    said = fault({"type": "python", "data": "rows.jsonl", "columns": columns})
    assert '"text" is named for both `prompt` and `tests`' in said


def test_a_reward_is_a_function_or_more() -> None:
    made = TypeAdapter(list[Reward]).validate_python(
        ["reward.py:distinct", {"function": "../a b.py:f", "weight": -0.5, "limit_s": 3.0}]
    )
    assert made == [
        Reward(function="reward.py:distinct", weight=1.0, limit_s=10.0),
        Reward(function="../a b.py:f", weight=-0.5, limit_s=3.0),
    ]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("geometry", ": Input tag 'geometry' found"),
        ({"type": "arithmetic", "digit": 3}, "arithmetic.digit: Extra inputs are not permitted"),
        ({"type": "arithmetic", "operations": []}, "arithmetic.operations: List should have at le"),
        ({"type": "arithmetic", "operations": ["power"]}, "arithmetic.operations.0: Input should"),
        ({"type": "arithmetic", "digits": 10}, "arithmetic.digits: Value error, expected at most"),
        ({"type": "arithmetic", "question": "?"}, "question: Value error, expected a text with `{"),
        ({"type": "arithmetic", "marker": " "}, "marker: Value error, the marker is blank"),
        ({"type": "arithmetic", "weights": {"correct": float("nan")}}, "correct: Input should be"),
        ({"type": "arithmetic", "limit_s": 0.0}, "limit_s: Input should be greater than 0"),
        ({"type": "answers"}, "answers.data: Field required"),
        (
            {"type": "answers", "data": "rows.jsonl", "tolerance": 0.1},
            "answers: Value error, `tolerance` has an effect with `match: numeric` only",
        ),
        (
            {"type": "answers", "data": {"path": "/rows.jsonl", "split": "test"}},
            "answers.data.split: Value error, files have no splits",
        ),
        ({"type": "answers", "data": "rows.jsonl", "evaluation_share": 1.0}, "should be less than"),
        ({"type": "rules", "data": "rows.jsonl", "rules": []}, "rules.rules: List should have at"),
        (
            {"type": "rules", "data": "rows.jsonl", "rules": [RULE, RULE]},
            "rules.rules: Value error, two rules have the same name",
        ),
        (
            {"type": "rules", "data": "rows.jsonl", "rules": [{"type": "length"}]},
            "rules.rules.0.length: Value error, expected `min`, `max` or both, found none",
        ),
        (
            {"type": "rules", "data": "r.jsonl", "rules": [{"type": "length", "min": 5, "max": 3}]},
            "`min` is 5 and `max` is 3: no length is both",
        ),
        (
            {"type": "rules", "data": "r.jsonl", "rules": [{"type": "pattern", "pattern": "("}]},
            "expected a regular expression, found a fault: missing ), unterminated subpattern",
        ),
        ({"type": "python", "data": "r.jsonl", "memory": "1MB"}, "expected at least 64MB"),
        ({"type": "python", "data": "r.jsonl", "memory": "1"}, "expected a number with a unit"),
        (
            {"type": "python", "data": "r.jsonl", "run_s": 9.5},
            "`limit_s` is 10 and `run_s` is 9.5: expected at least one second more",
        ),
        ({"type": "custom", "code": "Mine"}, "custom.code: Value error, expected a name in a Pyth"),
    ],
)
def test_what_is_refused(value: object, message: str) -> None:
    assert message in fault(value)


@pytest.mark.parametrize("function", ["distinct", "reward.py", "reward.py:", "reward.py:a.b", ""])
def test_functions_that_are_none(function: str) -> None:
    assert "expected a name in a Python file" in fault(function, TypeAdapter(Reward))


def nodes() -> Iterator[type[Node]]:
    for _, each in inspect.getmembers(rewards, inspect.isclass):
        if issubclass(each, Node) and each.__module__ == rewards.__name__:
            yield each


@pytest.mark.parametrize("node", list(nodes()), ids=lambda node: node.__name__)
def test_every_field_has_its_help(node: type[Node]) -> None:
    assert node.__doc__
    assert [name for name, field in node.model_fields.items() if not field.description] == []


def test_every_member_of_a_union_is_known_by_its_type() -> None:
    """`places.py` and the messages find the member that is meant by the constant of its `type`."""
    schema = ENVIRONMENT.json_schema()
    union = get_args(get_args(Environment)[0])
    assert len(union) == len(schema["discriminator"]["mapping"]) == 5
    for member in union:
        properties = member.model_json_schema()["properties"]
        assert properties["type"]["const"] in schema["discriminator"]["mapping"]
