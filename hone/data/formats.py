"""From a row's columns to one of three examples: plain text, prompt and completion, conversation.

`recognise` looks at the keys of the first row (or takes what the recipe names); the `Reading` it
returns turns every row into an `Example` or raises `RowError`. Called by `prepare.py`. Rendering
and tokens are in `chat.py`; tool turns and other formats (instruction, ShareGPT) are left out here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hone.data.rows import RowError, kind_of
from hone.errors import UserError, nearest
from hone.recipe.schema import Columns, Data

Format = Literal["text", "prompt_completion", "messages"]
TrainOn = Literal["completions", "all"]
Message = dict[str, Any]
"""{"role": "user", "content": "Hello"}, and whatever plain keys the chat template knows besides."""

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class PlainText:
    """Text without roles; every token is trained."""

    text: str


@dataclass(frozen=True)
class PromptCompletion:
    """Two texts that stand one after the other."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Conversation:
    """Messages; the first `given` of them are only read, never trained, unless everything is."""

    messages: list[Message]
    given: int = 0


Example = PlainText | PromptCompletion | Conversation


@dataclass(frozen=True)
class Reading:
    """How the rows of a source are read: the format and its column names."""

    format: Format
    columns: Columns

    @property
    def needed(self) -> list[str]:
        """The columns that every row must have."""
        return needed_columns(self.format, self.columns)

    def example(self, values: dict[str, Any], train_on: TrainOn) -> Example:
        """The row as an example; raises RowError when the row is not what the format asks for."""
        for column in self.needed:
            if values.get(column) is None:
                raise RowError(missing_column(column, values))
        first, *more = [values[column] for column in self.needed]
        if self.format == "text":
            return PlainText(checked_text(first, f"`{self.columns.text}`"))
        if self.format == "messages":
            return _conversation(checked_messages(first, f"`{self.columns.messages}`"), 0, train_on)
        return _prompt_completion(first, more[0], self.columns, train_on)


def needed_columns(format: Format, columns: Columns) -> list[str]:
    """The column names that a format reads."""
    return {
        "messages": [columns.messages],
        "prompt_completion": [columns.prompt, columns.completion],
        "text": [columns.text],
    }[format]


def recognise(keys: Sequence[str], data: Data) -> Reading:
    """How to read rows with these keys; conversations come before pairs, and pairs before text.

    Raises UserError that lists the columns there are when none of the formats (or not the named
    one) fits.
    """
    if data.format != "auto":
        for column in needed_columns(data.format, data.columns):
            if column not in keys:
                raise _missing(column, keys, data.columns)
        return _all_used(Reading(data.format, data.columns))
    formats: tuple[Format, ...] = ("messages", "prompt_completion", "text")
    for format in formats:
        if all(column in keys for column in needed_columns(format, data.columns)):
            return _all_used(Reading(format, data.columns))
    raise _unrecognised(keys, data)


def _all_used(reading: Reading) -> Reading:
    """Raises UserError where the recipe names a column that rows of this format do not have."""
    usual = Columns().model_dump()
    for name, column in reading.columns.model_dump().items():
        if column not in (usual[name], *reading.needed):
            kind = "prompt_completion" if name in ("prompt", "completion") else name
            raise UserError(
                f"`columns.{name}` is `{column}`, but the rows are read as `{reading.format}`, "
                "which has no use for it",
                hint=f"name the format, e.g. data: {{path: ..., format: {kind}}}, or leave the "
                "column out",
                exit_code=2,
            )
    return reading


def _unrecognised(keys: Sequence[str], data: Data) -> UserError:
    columns = data.columns
    column = _likely_meant(keys, columns)
    if column:
        return _missing(column, keys, columns)
    return UserError(
        f"the rows have the columns {_listed(keys)}; expected `{columns.messages}`, "
        f"or `{columns.prompt}` and `{columns.completion}`, or `{columns.text}`",
        hint=_columns_hint(keys, columns, columns.text),
        exit_code=2,
    )


def _missing(column: str, keys: Sequence[str], columns: Columns) -> UserError:
    hint = _columns_hint(keys, columns, column)
    return UserError(missing_column(column, keys), hint=hint, exit_code=2)


def _likely_meant(keys: Sequence[str], columns: Columns) -> str | None:
    """The column that is most likely missing: one the recipe names, half of a pair, or one with a
    similar name.
    """
    named = [getattr(columns, name) for name in sorted(columns.model_fields_set)]
    pair = [columns.prompt, columns.completion]
    half = pair if any(column in keys for column in pair) else []
    for column in named + half:
        if column not in keys:
            return str(column)
    return next(
        (column for column in [columns.messages, *pair, columns.text] if nearest(column, keys)),
        None,
    )


def _columns_hint(keys: Sequence[str], columns: Columns, column: str) -> str:
    role = next((name for name, value in columns.model_dump().items() if value == column), "text")
    value = nearest(column, keys) or next(iter(keys), "name")
    return f"name the columns in the recipe, e.g. data: {{path: ..., columns: {{{role}: {value}}}}}"


def missing_column(column: str, keys: Sequence[str] | dict[str, Any], kind: str = "column") -> str:
    """The message for a column (or key) that is not there, or holds nothing."""
    if column in keys:
        return f"the {kind} `{column}` is empty (null)"
    close = nearest(column, keys)
    meant = f"; did you mean `{close}`?" if close else ""
    return f"there is no {kind} `{column}`; the {kind}s are {_listed(keys)}{meant}"


def _listed(keys: Sequence[str] | dict[str, Any]) -> str:
    return ", ".join(f"`{key}`" for key in keys) or "none"


def _prompt_completion(
    prompt: Any, completion: Any, columns: Columns, train_on: TrainOn
) -> Example:
    names = f"`{columns.prompt}`", f"`{columns.completion}`"
    if isinstance(prompt, list) and isinstance(completion, list):
        given = checked_messages(prompt, names[0])
        return _conversation(given + checked_messages(completion, names[1]), len(given), train_on)
    if isinstance(prompt, list) or isinstance(completion, list):
        kinds = kind_of(prompt), kind_of(completion)
        raise RowError(
            f"{names[0]} is {kinds[0]} and {names[1]} is {kinds[1]}; "
            "expected two texts or two lists of messages"
        )
    return PromptCompletion(checked_text(prompt, names[0]), checked_text(completion, names[1]))


def _conversation(messages: list[Message], given: int, train_on: TrainOn) -> Conversation:
    if not messages:
        raise RowError("the list of messages is empty")
    if train_on == "completions" and not any(m["role"] == "assistant" for m in messages[given:]):
        where = "the completion" if given else "the conversation"
        raise RowError(
            f"{where} has no turn of role `assistant`, so nothing in it would be trained"
        )
    return Conversation(messages, given)


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


def _checked_message(message: Any, name: str) -> Message:
    if not isinstance(message, dict):
        raise RowError(
            f"{name} is {kind_of(message)}; expected an object with `role` and `content`"
        )
    plain = {key: value for key, value in message.items() if value is not None}
    for key in ("role", "content"):
        if key not in plain:
            raise RowError(f"{name}: {missing_column(key, message, 'key')}")
    _check_role(plain["role"], name)
    for key, value in plain.items():
        if key == "content" or isinstance(value, str):
            checked_text(value, f"`{key}` in {name}")
        elif isinstance(value, list | dict):
            raise RowError(
                f"`{key}` in {name} is {kind_of(value)}; only messages of plain text can be trained"
            )
    return plain


def _check_role(role: Any, name: str) -> None:
    if role not in ROLES:
        close = nearest(str(role), ROLES)
        meant = f"; did you mean `{close}`?" if close else ""
        raise RowError(
            f"{name} has the role `{role}`; expected `system`, `user` or `assistant`{meant}"
        )
