"""Rules for a text: what keeps them, and rules that cannot be."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hone.environments import check_gold, make_environment
from hone.errors import UserError
from hone.extras import EXTRAS, Extra
from hone.recipe.rewards import (
    GoldColumns,
    JsonRule,
    LengthRule,
    PatternRule,
    Rule,
    Rules,
    TaskFile,
)
from hone.records import Task

pytestmark = pytest.mark.quick

TASK = Task(0, "")
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"$ref": "#/$defs/age"}},
    "required": ["name"],
    "additionalProperties": False,
    "$defs": {"age": {"type": "integer", "minimum": 0}},
}


def environment(*rules: Rule, path: str = "none.jsonl", **settings: Any) -> Any:
    return make_environment(Rules(data=TaskFile(path=path), rules=list(rules), **settings))


@pytest.mark.parametrize(
    ("rule", "kept", "broken"),
    [
        (LengthRule(min=2, max=3), ["a b", "a b  c\n"], ["a", "a b c d", ""]),
        (LengthRule(unit="characters", max=3), ["", "abc"], ["abcd"]),
        (PatternRule(pattern="b+"), ["abba", "b"], ["", "aa"]),
        (PatternRule(pattern="(?s)<a>.*</a>", where="whole"), ["<a>1\n2</a>"], ["<a></a>!"]),
        (PatternRule(pattern="sorry", where="nowhere"), ["", "fine"], ["so sorry"]),
        (JsonRule(), ["[1, 2]", " null ", '```json\n{"a": 1}\n```'], ["{", "", "NaN", "[" * 9999]),
        (
            JsonRule(json_schema=PERSON),
            ['{"name": "A", "age": 3}', 'Here it is:\n```\n{"name": "A"}\n```\n'],
            ['{"name": 1}', '{"age": 3}', '{"name": "A", "x": 1}', '{"name": "A", "age": -1}'],
        ),
        (JsonRule(), [], ["```\n1\n```\n```\n2\n```"]),
    ],
)
def test_rules(rule: Rule, kept: list[str], broken: list[str]) -> None:
    made = environment(rule)
    assert [made.score(TASK, text) for text in kept] == [{rule.type: 1.0}] * len(kept)
    assert [made.score(TASK, text) for text in broken] == [{rule.type: 0.0}] * len(broken)


def test_tokens_are_counted_where_they_are_known() -> None:
    made = environment(LengthRule(unit="tokens", max=2, name="short"))
    assert made.score(TASK, "a b c", [1, 2]) == {"short": 1.0}
    assert made.score(TASK, "a", [1, 2, 3]) == {"short": 0.0}
    assert made.score(TASK, "a") == {"short": None}


def test_every_rule_is_a_reward_and_gold_keeps_all(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    golds = ["yes", "no", "maybe not"]
    path.write_text("".join(json.dumps({"prompt": g, "text": g}) + "\n" for g in golds))
    rules = (LengthRule(max=1), PatternRule(pattern="[a-z ]+", where="whole"))
    columns = GoldColumns(gold="text")
    made = environment(*rules, path=str(path), columns=columns, evaluation_share=0.0)
    assert made.full_marks == {"length": 1.0, "pattern": 1.0}
    tasks = made.tasks("train")
    check_gold(made, tasks[:2])
    with pytest.raises(UserError, match=r"task 2 \(.*rows.jsonl:3\): its gold answer 'maybe not'"):
        check_gold(made, tasks)
    plain = environment(*rules, path=str(path), evaluation_share=0.0).tasks("train")
    assert [task.gold for task in plain] == [None] * 3


def test_a_schema_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXTRAS, "jsonschema", Extra(("no_such_module",), ""))
    with pytest.raises(UserError, match="json_schema needs no_such_module") as caught:
        environment(JsonRule(json_schema={}))
    assert caught.value.hint == "pip install 'hone-llm[jsonschema]'"
    environment(JsonRule())


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "objekt"}, "no JSON Schema at `type`"),
        ({"$ref": "https://example.com/a.json"}, "is another document, and nothing is fetched"),
        ({"anyOf": [{"$ref": "other.json"}]}, "`$ref: other.json` is another document"),
    ],
)
def test_a_schema_that_cannot_be_used(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        environment(JsonRule(json_schema=schema))
