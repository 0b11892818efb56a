"""What may stand below `environment` and `rewards` in a recipe.

What is done with it: hone/environments/ and hone/rewards/. `hone.environments.ENVIRONMENTS` has the
name of every `type`.
"""

import os
import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PositiveFloat,
    ValidationInfo,
    field_validator,
    model_validator,
)

from hone.recipe.node import Node, PositiveInt, Share, at_most, place, size_bytes, type_alone

OWN_CODE = re.compile(r".+\.py:[A-Za-z_]\w*", re.DOTALL)


def check_own_code(text: str) -> str:
    """Raises ValueError for what is not `file.py:name`."""
    if not OWN_CODE.fullmatch(text):
        raise ValueError("expected a name in a Python file, such as reward.py:distinct")
    return text


class Reward(Node):
    """A reward function, as TRL's GRPOTrainer takes them."""

    shorthand: ClassVar[str | None] = "function"

    function: Annotated[str, place("code")]
    """`file.py:function`; called with prompts, completions, the data's columns, ..."""
    name: str | None = None
    """What it is called in the metrics; left out, the function's name."""
    weight: float = 1.0
    """What it is multiplied by in the sum of all rewards."""
    limit_s: PositiveFloat = 10.0
    """Seconds one call may take, which is one for each group; then it has failed."""

    @field_validator("function")
    @classmethod
    def in_a_file(cls, function: str) -> str:
        return check_own_code(function)

    @model_validator(mode="before")
    @classmethod
    def from_function(cls, value: object) -> object:
        """A bare `file.py:function` stands for `{function: ...}`."""
        return {cls.shorthand: value} if isinstance(value, str) else value


class TaskFile(Node):
    """Where tasks come from."""

    shorthand: ClassVar[str | None] = "path"

    path: Annotated[str, place("data")]
    """A file (JSON, JSONL, CSV, TSV, Parquet), a folder of such files, or the id of a Hub data set;
    one task a row."""
    split: str | None = None
    """The split of a Hub data set, `train` when left out; files have none."""

    @model_validator(mode="before")
    @classmethod
    def from_path(cls, value: object) -> object:
        """A bare path stands for `{path: ...}`."""
        return {cls.shorthand: value} if isinstance(value, str) else value

    @field_validator("split")
    @classmethod
    def only_of_the_hub(cls, split: str | None, info: ValidationInfo) -> str | None:
        """A path is absolute here as soon as it exists, which no Hub id is."""
        if split is not None and os.path.isabs(info.data.get("path", "")):
            raise ValueError("files have no splits; expected it beside the id of a Hub data set")
        return split


class PromptColumns(Node):
    """The names of the columns in a file of tasks, where they differ from the usual ones."""

    prompt: str = "prompt"
    """What is asked: text, or a list of messages."""

    @model_validator(mode="after")
    def names_differ(self) -> "PromptColumns":
        """The prompt is not handed on with the other columns."""
        for role, name in self:
            if role != "prompt" and name == self.prompt:
                raise ValueError(f'"{name}" is named for both `prompt` and `{role}`; expected two')
        return self


class Scored(Node):
    """What every environment has in common."""

    shorthand: ClassVar[str | None] = "type"

    weights: dict[str, float] = {}
    """What each of its rewards is multiplied by in the sum of all; 1 where it is left out."""
    limit_s: PositiveFloat = 10.0
    """Seconds that scoring one completion may take; then it has failed."""


class FromFile(Scored):
    """What environments have in common whose tasks are rows of a file."""

    data: TaskFile
    """The tasks: a path, or `path` with a `split`."""
    evaluation: TaskFile | None = None
    """Held-out tasks of their own, instead of a share of `data`."""
    evaluation_share: Share = 0.1
    """Share of the different prompts of `data` that is held out; rows that ask the same go
    together."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Which tasks are held out is drawn from it."""
    columns: PromptColumns = PromptColumns()
    """Column names that differ from the usual ones."""


class Arithmetic(Scored):
    """Sums of two whole numbers, made from a seed; the rewards are `correct` and `format`."""

    type: Literal["arithmetic"] = "arithmetic"
    """Sums of two whole numbers, made from a seed."""
    operations: Annotated[
        list[Literal["add", "subtract", "multiply", "divide"]], Field(min_length=1)
    ] = ["add"]
    """What is asked for, each as often; differences are not negative, quotients are whole."""
    digits: Annotated[int, Field(gt=0), at_most(9)] = 2
    """Digits of each number; those of a dividend are up to twice as many."""
    train_tasks: PositiveInt = 1000
    """Different tasks to train on."""
    evaluation_tasks: PositiveInt = 100
    """Held-out tasks; their pairs of numbers occur in none to train on, in either order."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """The tasks are a function of it."""
    question: str = "What is {expression}?"
    """How a task is asked; `{expression}` stands for 12 + 34."""
    messages: bool = True
    """Prompts are messages, which the chat template renders; false: plain text."""
    marker: str | None = None
    """What the answer stands behind, such as `####`; left out, the last number is the answer."""

    @field_validator("question")
    @classmethod
    def asks_for_something(cls, question: str) -> str:
        if "{expression}" not in question:
            raise ValueError("expected a text with `{expression}`, such as: What is {expression}?")
        return question

    @field_validator("marker")
    @classmethod
    def can_be_seen(cls, marker: str | None) -> str | None:
        return checked_marker(marker)


def checked_marker(marker: str | None) -> str | None:
    """Raises ValueError for a marker that could not be found."""
    if marker is not None and not marker.strip():
        raise ValueError("the marker is blank; expected text that can be seen, such as ####")
    return marker


class AnswerColumns(PromptColumns):
    """The names of the columns in a file of questions, where they differ from the usual ones."""

    answer: str = "answer"
    """The right answer, or a list of several."""


class Answers(FromFile):
    """Questions with known answers from a file; the reward is `correct`, with a marker `format`."""

    type: Literal["answers"] = "answers"
    """Questions with known answers from a file."""
    columns: AnswerColumns = AnswerColumns()
    """Column names that differ from the usual ones."""
    match: Literal["exact", "numeric", "contains"] = "exact"
    """`exact`: the same text, `contains`: the answer is in it, case and space aside; `numeric`: the
    same number."""
    tolerance: Annotated[float, Field(ge=0)] = 0.0
    """With `numeric`: how far from the right number an answer may be."""
    marker: str | None = None
    """What the answer stands behind, such as `####`; left out, the whole text is looked at, or its
    last number."""

    @field_validator("marker")
    @classmethod
    def can_be_seen(cls, marker: str | None) -> str | None:
        return checked_marker(marker)

    @model_validator(mode="after")
    def tolerance_of_numbers(self) -> "Answers":
        if self.tolerance and self.match != "numeric":
            raise ValueError("`tolerance` has an effect with `match: numeric` only")
        return self


class NamedRule(Node):
    """What every rule has in common."""

    name: str | None = None
    """What its reward is called; left out, the rule's type."""


class LengthRule(NamedRule):
    """1 where a completion is neither too short nor too long."""

    type: Literal["length"] = "length"
    """Limits of the length."""
    unit: Literal["words", "characters", "tokens"] = "words"
    """What is counted; words are what stands between spaces."""
    min: Annotated[int, Field(ge=0)] = 0
    """The shortest length."""
    max: PositiveInt | None = None
    """The longest length; any when left out."""

    @model_validator(mode="after")
    def some_length(self) -> "LengthRule":
        if not self.min and self.max is None:
            raise ValueError("expected `min`, `max` or both, found none")
        if self.max is not None and self.min > self.max:
            raise ValueError(f"`min` is {self.min} and `max` is {self.max}: no length is both")
        return self


class PatternRule(NamedRule):
    """1 where a regular expression is found in a completion."""

    type: Literal["pattern"] = "pattern"
    """A regular expression of Python."""
    pattern: str
    """The regular expression; `.` is any character but the end of a line."""
    where: Literal["anywhere", "whole", "nowhere"] = "anywhere"
    """`whole`: it fits the completion from end to end; `nowhere`: the reward is for its absence."""

    @field_validator("pattern")
    @classmethod
    def is_a_pattern(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"expected a regular expression, found a fault: {error.msg}") from None
        return pattern


class JsonRule(NamedRule):
    """1 where a completion is JSON that a schema allows, alone or as its only fenced block."""

    type: Literal["json"] = "json"
    """JSON, with a schema or without one."""
    json_schema: dict[str, Any] | None = None
    """The JSON Schema, written as YAML; left out, any JSON is right."""


Rule = Annotated[LengthRule | PatternRule | JsonRule, Field(discriminator="type")]


class GoldColumns(PromptColumns):
    """The names of the columns in a file of prompts, where they differ from the usual ones."""

    gold: str | None = None
    """A text that keeps all rules, for a check of the rules; none when left out."""


class Rules(FromFile):
    """Rules that a text is to keep; each is a reward of its own name."""

    type: Literal["rules"] = "rules"
    """Rules that a text is to keep: length, regular expression, JSON."""
    rules: Annotated[list[Rule], Field(min_length=1)]
    """The rules."""
    columns: GoldColumns = GoldColumns()
    """Column names that differ from the usual ones."""

    @field_validator("rules")
    @classmethod
    def names_differ(cls, rules: list[Rule]) -> list[Rule]:
        names = [rule.name or rule.type for rule in rules]
        if len(set(names)) < len(names):
            raise ValueError("two rules have the same name; expected a `name` of its own for each")
        return rules


class CodeColumns(PromptColumns):
    """The names of the columns in a file of exercises, where they differ from the usual ones."""

    tests: str = "tests"
    """The tests: code that raises where the answer is wrong, or a list of such."""
    gold: str | None = None
    """Code that passes all tests, for a check of them; none when left out."""


class PythonCode(FromFile):
    """Python code that is run against tests; the rewards are `passed` and `format`."""

    type: Literal["python"] = "python"
    """Python code that is run against tests."""
    columns: CodeColumns = CodeColumns()
    """Column names that differ from the usual ones."""
    grade: Literal["all", "share"] = "all"
    """`passed` is 1 for all tests and else 0, or the share of the tests that pass."""
    run_s: PositiveFloat = 5.0
    """Seconds that code and tests may run; what takes longer does not pass."""
    memory: str = "512MB"
    """The most memory of the process that runs them; what needs more does not pass."""
    allow_network: bool = False
    """Run code also where it cannot be kept from the network, and leave the network to it."""

    @field_validator("memory")
    @classmethod
    def is_a_size(cls, memory: str) -> str:
        if size_bytes(memory) < 64_000_000:
            raise ValueError("expected at least 64MB, which Python itself needs")
        return memory

    @model_validator(mode="after")
    def time_to_run(self) -> "PythonCode":
        if self.limit_s < self.run_s + 1:
            raise ValueError(
                f"`limit_s` is {self.limit_s:g} and `run_s` is {self.run_s:g}: expected at least "
                "one second more, in which the process is started and ended"
            )
        return self


class Custom(Scored):
    """An environment of your own: a class with `tasks`, `score` and `full_marks`."""

    type: Literal["custom"] = "custom"
    """An environment of your own."""
    code: Annotated[str, place("code")]
    """`file.py:Class`."""
    settings: dict[str, Any] = {}
    """What the class is called with, by name."""

    @field_validator("code")
    @classmethod
    def in_a_file(cls, code: str) -> str:
        return check_own_code(code)


Environment = Annotated[
    Arithmetic | Answers | Rules | PythonCode | Custom,
    Field(discriminator="type"),
    BeforeValidator(type_alone),
]
