"""From a row's columns to an example: plain text, prompt and completion, conversation; two of these
as a pair, or one with a label.

`recognise` looks at the keys of the first row (or takes what the recipe names); the `Reading` it
returns turns every row into a `RowExample` or raises `RowError`. Called by `prepare.py`. Messages
are checked in `messages.py`, ShareGPT turns in `sharegpt.py`, tools in `tools.py`, what is prompt
and what is answer in `preference.py`; rendering and tokens are in `chat.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

from hone.data.messages import Message, checked_messages, checked_text
from hone.data.preference import checked_label, is_text, parted, turns_of
from hone.data.rows import RowError, kind_of, listed, missing_key, printable
from hone.data.sharegpt import checked_turns
from hone.data.tools import Tools, checked_tools
from hone.errors import UserError, nearest
from hone.recipe.data import Columns, Data, SampleKind

Format = Literal[
    "preference",
    "unpaired",
    "messages",
    "conversations",
    "prompt_completion",
    "instruction",
    "text",
]
TrainOn = Literal["completions", "all"]

KINDS: dict[SampleKind, str] = {
    "supervised": "text or conversations",
    "pairs": "pairs of answers",
    "unpaired": "answers with a label",
}
SUPERVISED_HINTS: dict[SampleKind, str] = {  # how a supervised stage can learn from other rows
    "pairs": "learn from the better answers alone: data: {path: ..., columns: {completion: chosen}}"
    ", or {messages: chosen} where they are whole conversations; or name a stage for pairs",
    "unpaired": "learn from all of them, whatever the label says: data: {path: ..., format: "
    "prompt_completion}; or name a stage for labels",
}


class FormatColumns(NamedTuple):
    """The columns of a format, by their names in `Columns`: those every row needs, and those it may
    have. kind: what its rows become.
    """

    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()
    kind: SampleKind = "supervised"


FORMATS: dict[Format, FormatColumns] = {  # of those of a kind, the first one that fits is taken
    "preference": FormatColumns(("chosen", "rejected"), ("prompt", "system", "tools"), "pairs"),
    "unpaired": FormatColumns(("completion", "label"), ("prompt", "system", "tools"), "unpaired"),
    "messages": FormatColumns(("messages",), ("system", "tools")),
    "conversations": FormatColumns(("conversations",), ("system", "tools")),
    "prompt_completion": FormatColumns(("prompt", "completion"), ("system", "tools")),
    "instruction": FormatColumns(("instruction", "output"), ("input", "system")),
    "text": FormatColumns(("text",)),
}


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
    """Messages; the first `given` of them are only read, never trained, unless everything is.
    tools: what the assistant may call, as JSON objects.
    """

    messages: list[Message]
    given: int = 0
    tools: Tools | None = None


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt."""

    chosen: PromptCompletion | Conversation
    rejected: PromptCompletion | Conversation


@dataclass(frozen=True)
class Judged:
    """An answer to a prompt, and whether it is wanted."""

    side: PromptCompletion | Conversation
    label: bool


Example = PlainText | PromptCompletion | Conversation
RowExample = Example | Pair | Judged


def sides_of(example: RowExample) -> list[Example]:
    """What is rendered of a row: both sides of a pair, else one."""
    if isinstance(example, Pair):
        return [example.chosen, example.rejected]
    return [example.side if isinstance(example, Judged) else example]


@dataclass(frozen=True)
class Reading:
    """How the rows of a source are read: the format and its column names."""

    format: Format
    columns: Columns

    @cached_property
    def needed(self) -> list[str]:
        """The columns that every row must have."""
        return needed_columns(self.format, self.columns)

    @cached_property
    def _without_place(self) -> list[str]:
        """The columns for system turns and tools that the recipe names: two texts have no room."""
        asked = named(self.columns)
        return [getattr(self.columns, name) for name in ("system", "tools") if name in asked]

    def example(self, values: dict[str, Any], train_on: TrainOn) -> RowExample:
        """The row as an example; raises RowError when the row is not what the format asks for."""
        for column in self.needed:
            if values.get(column) is None:
                raise RowError(missing_key(column, values))
        first, *more = [values[column] for column in self.needed]
        columns = self.columns
        if self.format == "text":
            return PlainText(checked_text(first, f"`{columns.text}`"))
        if self.format == "preference":
            return Pair(*self._sides({columns.chosen: first, columns.rejected: more[0]}, values))
        if self.format == "unpaired":
            label = checked_label(more[0], f"`{columns.label}`")
            (side,) = self._sides({columns.completion: first}, values)
            return Judged(side, label)
        if self.format == "prompt_completion" and not isinstance(first, list):
            return self._two_texts(first, more[0], columns.completion, values)
        given = 0
        if self.format == "messages":
            messages = checked_messages(first, f"`{columns.messages}`")
        elif self.format == "conversations":
            messages = checked_turns(first, f"`{columns.conversations}`")
        elif self.format == "instruction":
            messages = self._instruction(first, more[0], values)
        else:
            prompt = checked_messages(first, f"`{columns.prompt}`")
            messages = prompt + self._answer(first, more[0], columns.completion)
            given = len(prompt)
        return self._conversation(messages, given, values, train_on)

    def _sides(
        self, sides: dict[str, Any], values: dict[str, Any]
    ) -> list[PromptCompletion | Conversation]:
        """Answers, by their columns, each with the row's prompt in front."""
        name, prompt = self.columns.prompt, values.get(self.columns.prompt)
        if is_text(sides):
            if prompt is None:
                raise RowError(missing_key(name, values))
            return [self._two_texts(prompt, side, at, values) for at, side in sides.items()]
        turns = {at: turns_of(side, f"`{at}`") for at, side in sides.items()}
        given, answers = parted(prompt, name, turns)
        return [
            self._conversation(given + answer, len(given), values, "completions")
            for answer in answers
        ]

    def _two_texts(
        self, prompt: Any, completion: Any, name: str, values: dict[str, Any]
    ) -> PromptCompletion:
        """name: the completion's column."""
        if isinstance(prompt, list) or isinstance(completion, list):
            self._answer(prompt, completion, name)
        for column in self._without_place:
            if values.get(column):
                raise RowError(f"`{column}` has no place in a row of two texts without roles")
        return PromptCompletion(
            checked_text(prompt, f"`{self.columns.prompt}`"),
            checked_text(completion, f"`{name}`"),
        )

    def _answer(self, prompt: Any, completion: Any, name: str) -> list[Message]:
        if isinstance(prompt, list) and isinstance(completion, list):
            return checked_messages(completion, f"`{name}`")
        raise RowError(
            f"`{self.columns.prompt}` is {kind_of(prompt)} and `{name}` is {kind_of(completion)}; "
            "expected two texts or two lists of messages"
        )

    def _instruction(self, instruction: Any, output: Any, values: dict[str, Any]) -> list[Message]:
        """A question and its answer; the question keeps both of its parts, for templates that have
        a place for each.
        """
        columns = self.columns
        asked = checked_text(instruction, f"`{columns.instruction}`")
        question: Message = {"role": "user", "content": asked}
        given = values.get(columns.input)
        if given is not None and (text := checked_text(given, f"`{columns.input}`")):
            parts = {"instruction": asked, "input": text}
            question = {"role": "user", "content": f"{asked}\n\n{text}", **parts}
        answer = checked_text(output, f"`{columns.output}`")
        return [question, {"role": "assistant", "content": answer}]

    def _conversation(
        self, messages: list[Message], given: int, values: dict[str, Any], train_on: TrainOn
    ) -> Conversation:
        """With the row's own system turn in front, and its tools."""
        columns = self.columns
        system = values.get(columns.system) if columns.system else None
        if system is not None and (text := checked_text(system, f"`{columns.system}`")):
            turn = {"role": "system", "content": text}
            own = [message for message in messages[:1] if message["role"] == "system"]
            if own and own[0]["content"] != text:
                raise RowError(
                    f"`{columns.system}` differs from the conversation's own system turn"
                )
            if not own:
                messages, given = [turn, *messages], given + bool(given)
        tools = None
        if columns.tools and "tools" in FORMATS[self.format].optional:
            tools = checked_tools(values.get(columns.tools), f"`{columns.tools}`")
        if not messages:
            raise RowError("the list of messages is empty")
        if train_on == "completions" and not any(
            m["role"] == "assistant" for m in messages[given:]
        ):
            where = "the completion" if given else "the conversation"
            raise RowError(
                f"{where} has no turn of role `assistant`, so nothing in it would be trained"
            )
        return Conversation(messages, given, tools)


def named(columns: Columns) -> list[str]:
    """The columns whose names are not the usual ones."""
    usual = Columns()
    return [name for name in Columns.model_fields if getattr(columns, name) != getattr(usual, name)]


def needed_columns(format: Format, columns: Columns) -> list[str]:
    """The column names that a format cannot do without."""
    return [getattr(columns, name) for name in FORMATS[format].needed]


def formats_of(kind: SampleKind | None) -> list[Format]:
    """The formats whose rows become samples of a kind; all formats for None."""
    return [format for format in FORMATS if kind in (None, FORMATS[format].kind)]


def recognise(keys: Sequence[str], data: Data, kind: SampleKind | None = "supervised") -> Reading:
    """How to read rows with these keys; conversations come before two texts, and these before text.

    kind: what samples are wanted, None for any. Raises UserError that lists the columns there are
    when none of the formats (or not the named one) fits, and where they fit samples of another kind
    only.
    """
    if data.format != "auto":
        if data.format not in formats_of(kind):
            raise _of_other_kind(data.format, keys, data.columns, kind)
        for column in needed_columns(data.format, data.columns):
            if column not in keys:
                raise _missing(column, keys, data.columns)
        return _all_used(Reading(data.format, data.columns), keys)
    formats = formats_of(kind)
    for format in (*formats, *(other for other in FORMATS if other not in formats)):
        if all(column in keys for column in needed_columns(format, data.columns)):
            if format not in formats:
                raise _of_other_kind(format, keys, data.columns, kind)
            return _all_used(Reading(format, data.columns), keys)
    raise _unrecognised(keys, data, kind)


def _of_other_kind(
    format: Format, keys: Sequence[str], columns: Columns, kind: SampleKind | None
) -> UserError:
    """Rows, or a format, that a stage of another kind could learn from."""
    wanted = kind or "supervised"
    hint = _columns_hint(keys, columns, needed_columns(formats_of(wanted)[0], columns)[0])
    if wanted == "supervised":
        hint = SUPERVISED_HINTS[FORMATS[format].kind]
    return UserError(
        f"the rows have the columns {listed(keys)}, the format `{format}`; this stage learns from "
        f"{KINDS[wanted]}: expected {_expected(wanted, columns)}",
        hint=hint,
        exit_code=2,
    )


def _expected(kind: SampleKind | None, columns: Columns) -> str:
    """The columns that each format of a kind needs, in words."""
    needed = [
        " and ".join(f"`{column}`" for column in needed_columns(format, columns))
        for format in formats_of(kind)
    ]
    return ", or ".join(needed)


def _all_used(reading: Reading, keys: Sequence[str]) -> Reading:
    """Raises UserError where the recipe names a column that rows of this format do not have."""
    columns = reading.columns
    needed, optional, kind = FORMATS[reading.format]
    for name in named(columns):
        column = getattr(columns, name)
        if name in optional and column is not None and column not in keys:
            raise _missing(column, keys, columns)
        if name not in needed + optional:
            formats = [*formats_of(kind), *FORMATS]
            other = next(each for each in formats if name in (*FORMATS[each][0], *FORMATS[each][1]))
            raise UserError(
                f"`columns.{name}` is `{column or 'null'}`, but the rows are read as "
                f"`{reading.format}`, which has no use for it",
                hint=f"name the format, e.g. data: {{path: ..., format: {other}}}, or leave the "
                "column out",
                exit_code=2,
            )
    return reading


def _unrecognised(keys: Sequence[str], data: Data, kind: SampleKind | None) -> UserError:
    columns = data.columns
    column = _likely_meant(keys, columns, kind)
    if column:
        return _missing(column, keys, columns)
    return UserError(
        f"the rows have the columns {listed(keys)}; expected {_expected(kind, columns)}",
        hint=_columns_hint(keys, columns, needed_columns(formats_of(kind)[-1], columns)[0]),
        exit_code=2,
    )


def _missing(column: str, keys: Sequence[str], columns: Columns) -> UserError:
    hint = _columns_hint(keys, columns, column)
    return UserError(missing_key(column, keys), hint=hint, exit_code=2)


def _likely_meant(keys: Sequence[str], columns: Columns, kind: SampleKind | None) -> str | None:
    """The column that is most likely missing: one the recipe names, half of a pair, or one with a
    similar name.
    """
    candidates = [getattr(columns, name) for name in named(columns)]
    everything = []
    for format in formats_of(kind):
        needed = needed_columns(format, columns)
        everything += needed
        if any(column in keys for column in needed):
            candidates += needed
    for column in candidates:
        if column is not None and column not in keys:
            return str(column)
    return next((column for column in everything if nearest(column, keys)), None)


def _columns_hint(keys: Sequence[str], columns: Columns, column: str) -> str:
    role = next((name for name, value in columns.model_dump().items() if value == column), "text")
    value = nearest(column, keys) or nearest(role, keys) or next(iter(keys), "name")
    meant = f"{role}: {printable(value)}"
    return f"name the columns in the recipe, e.g. data: {{path: ..., columns: {{{meant}}}}}"
