"""What a model is asked, and what is right: rows of data files, and tasks of environments.

Rows are those that stages learn from (`hone.data.formats`), where the answer is the last turn of
the assistant; rows with `prompt` and `answer`, one right answer or a list of several; rows with
`prompt`, `choices` and `answer`, the number of a choice from 0, its letter, or its text. An
`answer` beside a completion is what answers are judged by. Called by the command and by whoever
judges a model. Left out: rows with a label, whose answers may be wrong.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from string import ascii_uppercase
from typing import Any

from hone.data.formats import (
    FORMATS,
    Conversation,
    Example,
    Judged,
    Pair,
    PlainText,
    PromptCompletion,
    Reading,
    RowExample,
    formats_of,
    named,
    needed_columns,
    recognise,
)
from hone.data.messages import Message, checked_prompt, checked_text
from hone.data.rows import BadRow, RowError, kind_of, listed, missing_key
from hone.data.sources import Source, open_source
from hone.data.tools import Tools
from hone.environments import Environment
from hone.errors import UserError
from hone.recipe.data import Data
from hone.records import Task
from hone.seeds import shuffle

Prompt = str | list[Message]


@dataclass(frozen=True)
class Question:
    """One row to be judged.

    index: its number in the data, from 0. place: file and line. prompt: text or messages that an
    answer follows; None for plain text. expected: the right answers. trained: the row as a stage
    would learn from it, for its loss. sides: what is compared by its log-probability, the choices
    or the two answers of a pair; choices: their texts; right: which one is. pair: the sides are
    whole answers, the better one first. columns: all others of the row.
    """

    index: int
    place: str
    prompt: Prompt | None
    expected: tuple[str, ...] = ()
    trained: Example | None = None
    sides: tuple[Example, ...] = ()
    choices: tuple[str, ...] = ()
    right: int | None = None
    pair: bool = False
    tools: Tools | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)

    def task(self) -> Task:
        """The row as rewards know it."""
        assert self.prompt is not None, "rewards are of answers to a prompt"
        gold = self.expected[0] if self.expected else None
        return Task(self.index, self.prompt, self.columns, gold, self.place)


@dataclass(frozen=True)
class AnswerColumns:
    """The names of the columns that only an evaluation reads."""

    answer: str = "answer"
    choices: str = "choices"


def read_questions(
    data: Data, columns: AnswerColumns | None = None, *, bare: bool = False
) -> list[Question]:
    """Every row of the data as a question. bare: rows may have a prompt alone.

    Raises UserError for data without rows or with other columns, and for the first bad row, with
    its place.
    """
    source = open_source(data.path, data.split)
    rows = _rows(source)
    first = next(rows, None)
    if first is None:
        raise UserError(f"`{data.path}` has no rows; expected a question in each", exit_code=2)
    reader = _find_reader(list(first[1]), data, columns or AnswerColumns(), bare)
    questions = []
    for index, (place, values) in enumerate(_chain(first, rows)):
        try:
            questions.append(reader.question(index, place, values))
        except RowError as error:
            raise _bad_row(place, error) from None
    return questions


def questions_of(environment: Environment, split: str = "evaluation") -> list[Question]:
    """The tasks of an environment as questions."""
    tasks = environment.tasks(split)
    if not tasks:
        raise UserError(f"the environment has no tasks of the split `{split}`", exit_code=2)
    return [
        Question(
            task.index,
            task.place or f"task {task.index}",
            task.prompt,
            expected=() if task.gold is None else (task.gold,),
            columns=task.columns,
        )
        for task in tasks
    ]


def choose(questions: Sequence[Question], count: int | None, seed: int) -> list[Question]:
    """`count` of the questions in their order, drawn from the seed; all where there are no more."""
    if count is None or count >= len(questions):
        return list(questions)
    drawn = shuffle(len(questions), seed, "evaluation samples")[:count]
    return [questions[n] for n in sorted(int(n) for n in drawn)]


def values_of(questions: Sequence[Question], column: str) -> list[str]:
    """A column's value of each question as text; raises UserError where a row has none."""
    for question in questions:
        if question.columns.get(column) is None:
            raise UserError(
                f"{question.place}: {missing_key(column, question.columns)}", exit_code=2
            )
    return [str(question.columns[column]) for question in questions]


@contextmanager
def placed(question: Question) -> Iterator[None]:
    """What is wrong with a question inside is raised as UserError with its place."""
    try:
        yield
    except RowError as error:
        raise _bad_row(question.place, error) from None


def _rows(source: Source) -> Iterator[tuple[str, dict[str, Any]]]:
    for row in source.rows():
        place = source.place(row.source, row.number)
        if isinstance(row, BadRow):
            raise UserError(f"{place}: {row.message}")
        yield place, row.values


def _chain(
    first: tuple[str, dict[str, Any]], rows: Iterator[tuple[str, dict[str, Any]]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    yield first
    yield from rows


def _bad_row(place: str, error: RowError) -> UserError:
    return UserError(f"{place}: {error.message}", hint=error.hint)


@dataclass(frozen=True)
class _Reader:
    """How rows are read. reading: as a stage would; None for rows with a prompt and `answer`,
    `choices`, or nothing else.
    """

    data: Data
    columns: AnswerColumns
    reading: Reading | None
    has_answer: bool
    has_choices: bool

    def question(self, index: int, place: str, values: dict[str, Any]) -> Question:
        """The row as a question; raises RowError."""
        if self.reading is None:
            made = self._asked(index, place, values)
        else:
            made = _of_example(index, place, self.reading.example(values, "all"))
        if self.has_choices:
            made = self._with_choices(made, values)
        elif self.has_answer:
            made = replace(made, expected=self._answers(values))
            if made.trained is None and made.prompt is not None:
                made = replace(made, trained=side_of(made.prompt, made.expected[0], made.tools))
        kept = {k: v for k, v in values.items() if k != self.data.columns.prompt}
        return replace(made, columns=kept)

    def _asked(self, index: int, place: str, values: dict[str, Any]) -> Question:
        name = self.data.columns.prompt
        if values.get(name) is None:
            raise RowError(missing_key(name, values))
        return Question(index, place, checked_prompt(values[name], f"`{name}`"))

    def _answers(self, values: dict[str, Any]) -> tuple[str, ...]:
        name = self.columns.answer
        if values.get(name) is None:
            raise RowError(missing_key(name, values))
        given = values[name]
        answers = given if isinstance(given, list) else [given]
        if not answers:
            raise RowError(f"`{name}` is an empty list; expected an answer")
        for answer in answers:
            if isinstance(answer, bool) or not isinstance(answer, str | int | float | Decimal):
                raise RowError(f"`{name}` is {kind_of(answer)}; expected text or a number")
        return tuple(checked_text(str(answer), f"`{name}`") for answer in answers)

    def _with_choices(self, made: Question, values: dict[str, Any]) -> Question:
        name = self.columns.choices
        choices = _texts_of(values.get(name), name)
        if made.prompt is None:
            raise RowError(f"a row with `{name}` needs a prompt that they follow")
        right = _find_choice(values.get(self.columns.answer), choices, self.columns.answer, values)
        sides = tuple(side_of(made.prompt, choice, made.tools) for choice in choices)
        return replace(
            made,
            expected=(choices[right],),
            trained=sides[right],
            sides=sides,
            choices=choices,
            right=right,
        )


def side_of(prompt: Prompt, answer: str, tools: Tools | None = None) -> Example:
    """A prompt with an answer, of which the answer counts."""
    if isinstance(prompt, str):
        return PromptCompletion(prompt, answer)
    turn = {"role": "assistant", "content": answer}
    return Conversation([*prompt, turn], given=len(prompt), tools=tools)


def _find_reader(keys: list[str], data: Data, columns: AnswerColumns, bare: bool) -> _Reader:
    usual = AnswerColumns()
    for name, default in ((columns.answer, usual.answer), (columns.choices, usual.choices)):
        if name != default and name not in keys:
            raise UserError(missing_key(name, keys), exit_code=2)
    has_answer, has_choices = columns.answer in keys, columns.choices in keys
    if has_choices and not has_answer:
        raise UserError(missing_key(columns.answer, keys), exit_code=2)
    own = bare or has_answer
    if data.format == "auto" and own and not _is_learnt_from(keys, data):
        if data.columns.prompt not in keys:
            hint = f"name the column: --columns prompt={keys[0]}" if keys else None
            raise UserError(missing_key(data.columns.prompt, keys), hint=hint, exit_code=2)
        return _Reader(data, columns, None, has_answer, has_choices)
    if data.format == "auto" and data.columns.prompt in keys and not _is_learnt_from(keys, data):
        raise UserError(
            f"the rows have the columns {listed(keys)}; beside `{data.columns.prompt}` expected "
            f"`{data.columns.completion}` or `{columns.answer}`",
            hint="name the column: --columns answer=COLUMN",
            exit_code=2,
        )
    reading = recognise(keys, data, None)
    if FORMATS[reading.format].kind == "unpaired":
        raise UserError(
            f"the rows have the columns {listed(keys)}: answers with a label, which may be wrong",
            hint="where all of them are right: --format prompt_completion",
            exit_code=2,
        )
    return _Reader(data, columns, reading, has_answer, has_choices)


def _is_learnt_from(keys: list[str], data: Data) -> bool:
    """True where the rows have the columns of a format, or one is named that only formats have."""
    if any(name not in ("prompt", "system", "tools") for name in named(data.columns)):
        return True
    needed = (needed_columns(format, data.columns) for format in formats_of(None))
    return any(all(column in keys for column in columns) for columns in needed)


def _of_example(index: int, place: str, example: RowExample) -> Question:
    """A row that a stage could learn from; raises RowError."""
    assert not isinstance(example, Judged), "rows with a label are refused before"
    if isinstance(example, Pair):
        better, worse = _last_turn(example.chosen), _last_turn(example.rejected)
        return Question(
            index,
            place,
            better.prompt,
            expected=better.expected,
            trained=better.trained,
            sides=(example.chosen, example.rejected),
            choices=(*better.expected, *worse.expected),
            right=0,
            pair=True,
            tools=better.tools,
        )
    return replace(_last_turn(example), index=index, place=place)


def _last_turn(example: Example) -> Question:
    """Asked is what stands before the last turn of the assistant, which is what is expected."""
    if isinstance(example, PlainText):
        return Question(0, "", None, trained=example)
    if isinstance(example, PromptCompletion):
        return Question(0, "", example.prompt, (example.completion,), example)
    messages, tools = example.messages, example.tools
    if messages[-1]["role"] != "assistant":
        trained = example if any(turn["role"] == "assistant" for turn in messages) else None
        return Question(0, "", messages, trained=trained, tools=tools)
    if not messages[-1].get("content"):
        raise RowError("the last message has no text; expected the assistant's answer")
    if len(messages) == 1:
        raise RowError("nothing stands before the assistant's answer; expected a question")
    return Question(0, "", messages[:-1], (messages[-1]["content"],), example, tools=tools)


def _texts_of(value: Any, name: str) -> tuple[str, ...]:
    """A list of texts, or one as JSON; raises RowError."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise RowError(f"`{name}` is text that is no JSON; expected a list of texts") from None
    if not isinstance(value, list):
        raise RowError(f"`{name}` is {kind_of(value)}; expected a list of texts")
    texts = tuple(checked_text(text, f"choice {n} of `{name}`") for n, text in enumerate(value))
    if len(set(texts)) < max(2, len(texts)):
        raise RowError(
            f"`{name}` has {len(texts)} texts, {len(set(texts))} of them different; expected two "
            "or more, all different"
        )
    if not all(texts):
        raise RowError(f"`{name}` has an empty text; expected answers")
    return texts


def _find_choice(value: Any, choices: tuple[str, ...], name: str, values: Mapping[str, Any]) -> int:
    """Which choice is right: one of the texts, else its number from 0 or its letter."""
    if value is None:
        raise RowError(missing_key(name, values))
    if isinstance(value, str) and value in choices:
        return choices.index(value)
    numbers = {str(n): n for n in range(len(choices))}
    letters = dict(zip(ascii_uppercase, range(len(choices)), strict=False))
    found = (numbers | letters).get(str(value).strip()) if not isinstance(value, bool) else None
    if found is None:
        raise RowError(
            f"`{name}` is `{value}`; expected one of the {len(choices)} choices, or its number "
            f"from 0 to {len(choices) - 1}"
        )
    return found
