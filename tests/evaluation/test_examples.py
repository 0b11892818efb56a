"""Rows of data files as questions, and what is said of rows that are none."""

from pathlib import Path
from typing import Any

import pytest

from hone.cli.arguments import data_of
from hone.data.formats import Conversation, PlainText, PromptCompletion
from hone.environments import make_environment
from hone.errors import UserError
from hone.evaluation.examples import (
    AnswerColumns,
    Question,
    choose,
    questions_of,
    read_questions,
    values_of,
)
from hone.recipe.rewards import Arithmetic
from tests.evaluation.ground import write_rows

pytestmark = pytest.mark.quick

ASKED = {"role": "user", "content": "What is 2 + 3?"}
TOLD = {"role": "assistant", "content": "5"}
SHAREGPT = {"from": "human", "value": "What is 2 + 3?"}


def read(
    folder: Path,
    rows: list[dict[str, Any]],
    *columns: str,
    own: AnswerColumns | None = None,
    bare: bool = False,
) -> list[Question]:
    path = write_rows(folder / "rows.jsonl", rows)
    return read_questions(data_of(str(path), "auto", columns), own, bare=bare)


def test_two_texts(tmp_path: Path) -> None:
    rows = [{"question": "2 + 3 =", "completion": " 5", "kind": "sum"}]
    (question,) = read(tmp_path, rows, "prompt=question")
    assert (question.prompt, question.expected) == ("2 + 3 =", (" 5",))
    assert question.trained == PromptCompletion("2 + 3 =", " 5")
    assert question.columns == {"completion": " 5", "kind": "sum"}
    assert question.place.endswith("rows.jsonl:1")
    assert values_of([question], "kind") == ["sum"]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASKED, TOLD]},
        {"prompt": [ASKED], "completion": [TOLD]},
        {"conversations": [SHAREGPT, {"from": "gpt", "value": "5"}]},
        {"instruction": "What is 2 + 3?", "output": "5"},
    ],
    ids=["messages", "prompt_completion", "sharegpt", "instruction"],
)
def test_the_last_turn_is_what_is_expected(tmp_path: Path, row: dict[str, Any]) -> None:
    (question,) = read(tmp_path, [row])
    assert (question.prompt, question.expected) == ([ASKED], ("5",))
    assert isinstance(question.trained, Conversation)
    assert question.trained.messages == [ASKED, TOLD]


def test_an_answer_beside_a_conversation_is_what_counts(tmp_path: Path) -> None:
    again = {"role": "user", "content": "And 3 + 3?"}
    rows = [
        {"messages": [ASKED, TOLD, again, {"role": "assistant", "content": "3+3=6"}], "answer": 6},
        {"messages": [ASKED], "answer": ["5", "five"]},
    ]
    first, second = read(tmp_path, rows)
    assert (first.prompt, first.expected) == ([ASKED, TOLD, again], ("6",))
    assert (second.prompt, second.expected) == ([ASKED], ("5", "five"))
    assert second.trained == Conversation([ASKED, TOLD], given=1)


def test_prompt_and_answer(tmp_path: Path) -> None:
    rows = [{"q": "2 + 3 =", "gold": 5}, {"q": "?", "gold": ["a", "b"]}]
    first, second = read(tmp_path, rows, "prompt=q", own=AnswerColumns(answer="gold"))
    assert (first.prompt, first.expected) == ("2 + 3 =", ("5",))
    assert first.trained == PromptCompletion("2 + 3 =", "5")
    assert second.expected == ("a", "b")
    (bare,) = read(tmp_path, [{"prompt": "2 + 3 ="}], bare=True)
    assert (bare.prompt, bare.expected, bare.trained) == ("2 + 3 =", (), None)


def test_plain_text_and_pairs(tmp_path: Path) -> None:
    (text,) = read(tmp_path, [{"text": "Once."}])
    assert (text.prompt, text.expected, text.trained) == (None, (), PlainText("Once."))
    (pair,) = read(tmp_path, [{"prompt": "?", "chosen": "yes", "rejected": "no"}])
    assert (pair.prompt, pair.expected, pair.pair) == ("?", ("yes",), True)
    assert pair.sides == (PromptCompletion("?", "yes"), PromptCompletion("?", "no"))
    (chat,) = read(
        tmp_path, [{"chosen": [ASKED, TOLD], "rejected": [ASKED, {**TOLD, "content": "6"}]}]
    )
    assert (chat.prompt, chat.expected, chat.choices) == ([ASKED], ("5",), ("5", "6"))


@pytest.mark.parametrize("answer", [1, "1", "B", " no", "no"])
def test_the_right_choice_is_its_text_its_number_or_its_letter(
    tmp_path: Path, answer: object
) -> None:
    choices = ["yes", "no"] if answer != " no" else ["yes", " no"]
    (question,) = read(tmp_path, [{"prompt": "?", "choices": choices, "answer": answer}])
    assert (question.right, question.expected) == (1, (choices[1],))
    assert question.sides == tuple(PromptCompletion("?", choice) for choice in choices)


def test_a_text_wins_over_a_number(tmp_path: Path) -> None:
    (question,) = read(tmp_path, [{"prompt": "1 + 1 =", "choices": ["2", "1"], "answer": "1"}])
    assert question.right == 1
    rows = [{"prompt": [ASKED], "choices": '["5", "6"]', "answer": "A"}]  # as CSV has it
    (chat,) = read(tmp_path, rows)
    assert chat.sides[0] == Conversation([ASKED, TOLD], given=1)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has no rows"),
        ([{"prompt": "?", "answr": "5"}], r"beside `prompt` expected `completion` or `answer`"),
        ([{"promt": "?", "answer": "5"}], r"no column `prompt`.*did you mean `promt`"),
        ([{"prompt": "?", "answer": "5"}, {"prompt": "?"}], r":2: there is no column `answer`"),
        ([{"prompt": "?", "answer": None}], r":1: the column `answer` is empty"),
        ([{"prompt": 3, "answer": "5"}], r":1: `prompt` is a number; expected text"),
        ([{"prompt": "?", "answer": {"a": 1}}], r":1: `answer` is an object"),
        ([{"prompt": "?", "answer": []}], r":1: `answer` is an empty list"),
        ([{"prompt": "?", "choices": ["a", "b"]}], r"no column `answer`"),
        ([{"prompt": "?", "choices": ["a", "a"], "answer": 0}], r"2 texts, 1 of them different"),
        ([{"prompt": "?", "choices": "a, b", "answer": 0}], r"text that is no JSON"),
        ([{"prompt": "?", "choices": ["a", "b"], "answer": 2}], r"`answer` is `2`.*0 to 1"),
        ([{"prompt": "?", "choices": ["a", "b"], "answer": True}], r"`answer` is `True`"),
        ([{"messages": [TOLD]}], r":1: nothing stands before the assistant's answer"),
        ([{"completion": "a", "label": True, "prompt": "?"}], r"answers with a label"),
        ([{"a": 1}], r"columns `a`; expected"),
    ],
)
def test_rows_that_are_no_questions_are_named(
    tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, rows)


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "?", "answer": "5"}\n{"prompt"\n')
    with pytest.raises(UserError, match=r"rows.jsonl:2: not valid JSON"):
        read_questions(data_of(str(tmp_path / "rows.jsonl"), "auto", []))


def test_columns_that_are_named_have_to_be_there(tmp_path: Path) -> None:
    rows = [{"prompt": "?", "gold": "5"}]
    with pytest.raises(UserError, match=r"no column `golden`.*did you mean `gold`"):
        read(tmp_path, rows, own=AnswerColumns(answer="golden"))
    (question,) = read(tmp_path, rows, own=AnswerColumns(answer="gold"))
    with pytest.raises(UserError, match=r":1: there is no column `knid`"):
        values_of([question], "knid")


def test_the_questions_of_an_environment_are_its_held_out_tasks() -> None:
    environment = make_environment(Arithmetic(evaluation_tasks=7))
    questions = questions_of(environment)
    tasks = environment.tasks("evaluation")
    assert [question.task().prompt for question in questions] == [task.prompt for task in tasks]
    assert [question.task().columns for question in questions] == [task.columns for task in tasks]


def test_some_of_the_questions_are_drawn_from_the_seed() -> None:
    questions = [Question(n, f"row {n}", "?") for n in range(50)]
    chosen = [question.index for question in choose(questions, 10, 3)]
    assert chosen == sorted(set(chosen)) and len(chosen) == 10
    assert chosen == [question.index for question in choose(questions, 10, 3)]
    assert chosen != [question.index for question in choose(questions, 10, 4)]
    assert choose(questions, 50, 0) == choose(questions, None, 0) == questions
