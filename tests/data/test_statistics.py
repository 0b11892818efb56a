"""Counts of rows, compared with the rows."""

import json
import statistics
from pathlib import Path

import pytest

from hone.data.statistics import count_rows, histogram, summary
from hone.recipe.data import Data

pytestmark = pytest.mark.quick


def test_rows_are_counted(tmp_path: Path) -> None:
    def chat(*turns: tuple[str, str]) -> str:
        return json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]})

    one = chat(("system", "Be brief."), ("user", "Hello?"), ("assistant", "Yes."))
    two = chat(("user", "é"), ("assistant", "b"), ("user", "c"), ("assistant", "dd"))
    (tmp_path / "a.jsonl").write_text("\n".join([one, two, "[]", two, '{"messages": []}']))
    found = count_rows(Data(path=str(tmp_path / "a.jsonl")))
    assert (found.report.rows, found.report.num_bad, found.repeated) == (5, 2, 1)
    assert list(found.characters) == [19, 5, 5]
    assert list(found.turns) == [3, 4, 4]
    assert found.roles == {"system": 1, "user": 5, "assistant": 5}
    assert found.report.columns == {"messages": 4}


def test_the_prompt_of_a_pair_is_counted_once(tmp_path: Path) -> None:
    user, *answers = (
        {"role": role, "content": text}
        for role, text in (("user", "abc"), ("assistant", "d"), ("assistant", "ef"))
    )
    rows = [
        {"prompt": "abc", "chosen": "d", "rejected": "ef"},
        {"prompt": [user], "chosen": answers[:1], "rejected": answers[1:]},
        {"chosen": [user, answers[0]], "rejected": [user, answers[1]]},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = count_rows(Data(path=str(tmp_path / "a.jsonl")), kind="pairs")
    assert list(found.characters) == [6, 6, 6]
    assert list(found.turns) == [2, 2, 2, 2]
    assert found.roles == {"user": 2, "assistant": 4}
    assert count_rows(Data(path=str(tmp_path / "a.jsonl")), kind="unpaired").report.fault


def test_a_file_without_a_good_row_is_counted_too(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("[1]\n")
    found = count_rows(Data(path=str(tmp_path / "a.jsonl")))
    assert (found.report.rows, found.report.num_bad, list(found.characters)) == (1, 1, [])


def test_quantiles_are_values_that_occur() -> None:
    values = [5, 1, 9, 9, 2, 40]
    found = summary(values)
    assert found == {
        "count": 6,
        "sum": 66,
        "mean": statistics.mean(values),
        "min": 1,
        "p10": 1,
        "median": 5,
        "p90": 40,
        "p99": 40,
        "max": 40,
    }
    assert summary([]) == {"count": 0}


def test_the_histogram_has_every_value_once() -> None:
    values = [0, 1, 2, 3, 4, 7, 8, 1023, 1024, 5]
    bins = histogram(values)
    for low, high, count in bins:
        assert count == sum(low <= value <= high for value in values)
    assert bins[0] == (0, 0, 1) and bins[-1] == (1024, 2047, 1)
    assert sum(count for *_, count in bins) == len(values)
    assert histogram([6, 5]) == [(4, 7, 2)] and histogram([]) == []
