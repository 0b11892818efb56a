"""Rules for a text: length, regular expression, JSON with a schema. Each is a reward of 0 or 1.

JSON is the whole completion, or the only fenced block in it. Schemas are judged by the package
jsonschema, which is imported on use; a reference (`$ref`) to another document is refused, since
nothing is fetched.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from hone.environments.tasks import tasks_of
from hone.errors import UserError
from hone.extras import import_extra
from hone.recipe.rewards import JsonRule, LengthRule, PatternRule, Rule, Rules
from hone.records import Task

Holds = Callable[[str, int | None], bool | None]
"""Whether a text keeps a rule, None where it cannot be said; the number is that of its tokens, None
where they are not known.
"""

_FENCED = re.compile(r"```[\w-]*[ \t]*\n(.*?)```", re.DOTALL)


class RulesEnvironment:
    """Prompts of a file, and rules for what answers them."""

    def __init__(self, settings: Rules) -> None:
        self.settings = settings
        self.rules = {rule.name or rule.type: _holds(rule) for rule in settings.rules}
        self.full_marks: Mapping[str, float] = dict.fromkeys(self.rules, 1.0)

    def tasks(self, split: str) -> list[Task]:
        """The rows of a split; raises UserError for a row without its prompt (or `gold`)."""
        gold = self.settings.columns.gold
        needed = [] if gold is None else [gold]
        return tasks_of(self.settings, split, needed, self._gold)

    def score(
        self, task: Task, completion: str, completion_ids: Sequence[int] | None = None
    ) -> dict[str, float | None]:
        """One reward for each rule; None for a rule about tokens where they are not known."""
        num_tokens = None if completion_ids is None else len(completion_ids)
        kept = {name: holds(completion, num_tokens) for name, holds in self.rules.items()}
        return {name: None if each is None else float(each) for name, each in kept.items()}

    def _gold(self, values: Mapping[str, Any]) -> str | None:
        gold = self.settings.columns.gold
        return None if gold is None else str(values[gold])


def _holds(rule: Rule) -> Holds:
    match rule:
        case LengthRule():
            return _length(rule)
        case PatternRule():
            return _pattern(rule)
        case JsonRule():
            return _json(rule)


def _length(rule: LengthRule) -> Holds:
    def holds(text: str, num_tokens: int | None) -> bool | None:
        length = {"words": len(text.split()), "characters": len(text), "tokens": num_tokens}[
            rule.unit
        ]
        if length is None:
            return None
        return rule.min <= length and (rule.max is None or length <= rule.max)

    return holds


def _pattern(rule: PatternRule) -> Holds:
    pattern = re.compile(rule.pattern)
    if rule.where == "whole":
        return lambda text, _: pattern.fullmatch(text) is not None
    return lambda text, _: (pattern.search(text) is None) == (rule.where == "nowhere")


def _json(rule: JsonRule) -> Holds:
    fits = _any_value if rule.json_schema is None else _schema_check(rule.json_schema)

    def holds(text: str, _: int | None) -> bool:
        blocks = _FENCED.findall(text)
        if len(blocks) > 1:
            return False
        try:
            value = json.loads(blocks[0] if blocks else text, parse_constant=_no_number)
        except (ValueError, RecursionError):
            return False
        return fits(value)

    return holds


def _any_value(value: Any) -> bool:
    return True


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _schema_check(schema: dict[str, Any]) -> Callable[[Any], bool]:
    """Raises UserError for a schema that is none."""
    wish = "environment.rules: json_schema"
    jsonschema = import_extra("jsonschema", "jsonschema", wish)
    referencing = import_extra("referencing", "jsonschema", wish)
    for reference in _references(schema):
        if not reference.startswith("#"):
            raise UserError(
                f"{wish}: `$ref: {reference}` is another document, and nothing is fetched; "
                "expected a place in the schema itself, such as #/$defs/name",
                exit_code=2,
            )
    kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        where = error.json_path.removeprefix("$").lstrip(".")
        raise UserError(
            f"{wish}: no JSON Schema{f' at `{where}`' if where else ''}: {error.message}",
            exit_code=2,
        ) from None
    validator = kind(schema, registry=referencing.Registry())
    return lambda value: bool(validator.is_valid(value))


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        reference = schema.get("$ref")
        if isinstance(reference, str):
            yield reference
        schema = list(schema.values())
    if isinstance(schema, list):
        for part in schema:
            yield from _references(part)
