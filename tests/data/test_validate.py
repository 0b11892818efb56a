"""All that is wrong with data files, with the place and the reason of each row."""

import json
from pathlib import Path
from typing import Any

import pytest

from hone.data.validate import Validation, validate
from hone.errors import UserError
from hone.recipe.data import Data

pytestmark = pytest.mark.quick


def write(path: Path, *rows: Any) -> Data:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines))
    return Data(path=str(path))


def pair(prompt: str, completion: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion}


def places(found: Validation, which: str, folder: Path) -> list[tuple[str, str]]:
    training, evaluation = found.hashes
    mine = training if which == "repeated" else evaluation
    return [
        (
            mine.place(one).removeprefix(f"{folder}/"),
            training.place(other).removeprefix(f"{folder}/"),
        )
        for one, other in getattr(found, which).pairs
    ]


def test_every_bad_row_is_counted_and_the_first_are_named(tmp_path: Path) -> None:
    bad = [pair("a", None), {"prompt": "a"}, "[1]", '{"prompt": ', pair("a", 3)]
    data = write(tmp_path / "a.jsonl", pair("a", "b"), *bad, pair("c", "d"))
    (report,) = validate([data]).training
    assert (report.rows, report.num_bad, report.format) == (7, 5, "prompt_completion")
    assert [place for place, _ in report.bad] == [f"{data.path}:{n}" for n in range(2, 7)]
    reasons = [reason for _, reason in report.bad]
    assert "is empty (null)" in reasons[0] and "there is no column `completion`" in reasons[1]
    assert "found a list" in reasons[2] and "not valid JSON" in reasons[3]
    assert "is a number; expected text" in reasons[4]
    assert report.columns == {"prompt": 5, "completion": 3}
    few = validate([data], most=2)
    assert len(few.training[0].bad) == 2 and few.training[0].num_bad == 5 and not few.ok


def test_rows_nested_as_deeply_as_can_be_read_are_judged(tmp_path: Path) -> None:
    deep = [f'{{"text": "a", "x": {"[" * n}{"]" * n}}}' for n in range(900, 1000)]
    (report,) = validate([write(tmp_path / "a.jsonl", *deep)]).training
    assert report.rows == 100 and 0 < report.num_bad < 100
    assert {reason.partition(":")[0] for _, reason in report.bad} <= {
        "not readable as JSON",
        "not readable",
    }


def test_what_training_reads_is_valid(tmp_path: Path) -> None:
    found = validate([write(tmp_path / "a.jsonl", pair("a", "b"), pair("c", "d"))])
    assert found.ok and found.repeated.count == 0 and found.trained is None


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.json", b'[{"text": "a"},', "not valid JSON"),
        ("a.csv", b"text\nfine\n\xff\n", "is not UTF-8 text"),
        ("a.parquet", b"PAR1 no", "cannot be read as Parquet"),
        ("a.jsonl.gz", b"no", "cannot be read"),
        ("a.jsonl", b"", "there are no rows"),
        ("a.jsonl", b'{"words": "a"}\n', "the rows have the columns `words`"),
    ],
)
def test_a_file_that_cannot_be_read_further_is_a_fault(
    tmp_path: Path, name: str, content: bytes, fault: str
) -> None:
    (tmp_path / name).write_bytes(content)
    other = write(tmp_path / "other.jsonl", {"text": "a"})
    found = validate([Data(path=str(tmp_path / name)), other])
    assert fault in (found.training[0].fault or "")
    assert found.training[1].ok, "the next file is read nevertheless"
    assert not found.ok


def test_a_file_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file or folder"):
        validate([Data(path=str(tmp_path / "a.jsonl"))])


def test_rows_that_repeat_another_one_are_named_across_files(tmp_path: Path) -> None:
    """The order of keys and the kind of file make no difference."""
    first = write(tmp_path / "a.jsonl", pair("a", "b"), pair("c", "d"), pair("a", "b"))
    (tmp_path / "b.csv").write_text("completion,prompt\nd,c\nx,y\nb,a\n")
    found = validate([first, Data(path=str(tmp_path / "b.csv"))])
    assert found.repeated.count == 3
    assert places(found, "repeated", tmp_path) == [
        ("a.jsonl:3", "a.jsonl:1"),
        ("b.csv:2", "a.jsonl:2"),
        ("b.csv:4", "a.jsonl:3"),
    ]
    assert validate([first], most=0).repeated.count == 1


def test_evaluation_rows_that_are_trained_on_are_named(tmp_path: Path) -> None:
    def chat(question: str, answer: str) -> dict[str, Any]:
        turns = [("user", question), ("assistant", answer), ("user", "and"), ("assistant", "so")]
        return {"messages": [{"role": role, "content": text} for role, text in turns]}

    training = write(tmp_path / "a.jsonl", chat("a", "b"), chat("c", "d"), chat("e", "f"))
    held_out = write(tmp_path / "e.jsonl", chat("x", "y"), chat("c", "d"), chat("e", "other"))
    found = validate([training], [held_out])
    assert found.ok, "that is no fault of a row"
    assert places(found, "trained", tmp_path) == [("e.jsonl:2", "a.jsonl:2")]
    assert places(found, "asked", tmp_path) == [
        ("e.jsonl:2", "a.jsonl:2"),
        ("e.jsonl:3", "a.jsonl:3"),
    ]


def test_plain_texts_have_no_prompt(tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", {"text": "a"})
    found = validate([data], [write(tmp_path / "b.jsonl", {"text": "b"})])
    assert found.asked is not None and (found.asked.count, found.repeated.count) == (0, 0)


def test_preference_rows_are_judged_and_compared(tmp_path: Path) -> None:
    def chosen(question: str, answer: str, other: str) -> dict[str, Any]:
        given = {"role": "user", "content": question}
        sides = [[given, {"role": "assistant", "content": text}] for text in (answer, other)]
        return dict(zip(("chosen", "rejected"), sides, strict=True))

    rows = [chosen("a", "b", "c"), chosen("a", "d", "c"), chosen("a", "b", "c")]
    bad = {"chosen": rows[0]["chosen"], "rejected": [{"role": "assistant", "content": "c"}]}
    training = write(tmp_path / "a.jsonl", *rows, bad)
    evaluation = write(tmp_path / "b.jsonl", rows[1], chosen("a", "x", "y"), chosen("z", "x", "y"))
    found = validate([training], [evaluation], kind="pairs")
    assert found.training[0].format == "preference"
    assert found.training[0].bad == [
        (
            f"{training.path}:4",
            "`chosen` and `rejected` have no prompt in common: they differ from message 1 on; "
            "expected conversations that are the same up to an answer, or a column with the prompt",
        )
    ]
    assert places(found, "repeated", tmp_path) == [("a.jsonl:3", "a.jsonl:1")]
    assert places(found, "trained", tmp_path) == [("b.jsonl:1", "a.jsonl:2")]
    assert found.asked and found.asked.count == 2
    refused = validate([training], kind="supervised").training[0]
    assert "this stage learns from text or conversations" in str(refused.fault)
    assert validate([write(tmp_path / "c.jsonl", *rows)]).ok, "any kind will do"
