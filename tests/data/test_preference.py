"""Rows of preference data: what is prompt and what is answer, and what makes such a row bad."""

from typing import Any

import pytest

from hone.data.formats import Conversation, Judged, Pair, PromptCompletion, recognise, sides_of
from hone.data.rows import RowError
from hone.errors import UserError
from hone.recipe.data import Data

pytestmark = pytest.mark.quick

SYSTEM = {"role": "system", "content": "s"}
USER = {"role": "user", "content": "a"}
OTHER = {"role": "user", "content": "z"}
TOOL = {"role": "tool", "content": "22"}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


GOOD, BAD = said("b"), said("c")


def row(values: dict[str, Any], kind: Any = "pairs", **settings: Any) -> Any:
    reading = recognise(list(values), Data(path="x.jsonl", **settings), kind)
    return reading.example(values, "completions")


def pair(prompt: list[Any], chosen: list[Any], rejected: list[Any], tools: Any = None) -> Pair:
    sides = (Conversation(prompt + side, len(prompt), tools) for side in (chosen, rejected))
    return Pair(*sides)


PLAIN = pair([USER], [GOOD], [BAD])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            Pair(PromptCompletion("a", "b"), PromptCompletion("a", "c")),
        ),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, PLAIN),
        ({"prompt": USER, "chosen": GOOD, "rejected": BAD}, PLAIN),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, PLAIN),
        ({"prompt": None, "chosen": [USER, GOOD], "rejected": [USER, BAD]}, PLAIN),
        ({"prompt": [], "chosen": [USER, GOOD], "rejected": [USER, BAD]}, PLAIN),
        ({"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]}, PLAIN),
        ({"prompt": " a\n", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, PLAIN),
        (
            {
                "prompt": [{"from": "human", "value": "a"}],
                "chosen": {"from": "gpt", "value": "b"},
                "rejected": [{"from": "gpt", "value": "c"}],
            },
            PLAIN,
        ),
        (
            {"chosen": [USER, GOOD], "rejected": [USER, BAD], "system": "s", "tools": [{"n": 1}]},
            pair([SYSTEM, USER], [GOOD], [BAD], [{"n": 1}]),
        ),
        (
            {"chosen": [USER, BAD, OTHER, GOOD], "rejected": [USER, BAD, OTHER, BAD]},
            pair([USER, BAD, OTHER], [GOOD], [BAD]),
        ),
        (
            {"chosen": [USER, GOOD, OTHER, GOOD], "rejected": [USER, BAD]},
            pair([USER], [GOOD, OTHER, GOOD], [BAD]),
        ),
        (
            {"chosen": [USER, GOOD, OTHER, GOOD], "rejected": [USER, GOOD]},
            pair([USER], [GOOD, OTHER, GOOD], [GOOD]),
        ),
        (
            {"chosen": [USER, GOOD, TOOL, GOOD], "rejected": [USER, GOOD, OTHER, BAD]},
            pair([USER], [GOOD, TOOL, GOOD], [GOOD, OTHER, BAD]),
        ),
        ({"chosen": [USER, GOOD], "rejected": [USER, GOOD]}, pair([USER], [GOOD], [GOOD])),
        (
            {"messages": [USER, GOOD], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
            PLAIN,
        ),
    ],
)
def test_pairs_are_read(values: dict[str, Any], expected: Pair) -> None:
    assert row(values) == expected
    assert sides_of(expected) == [expected.chosen, expected.rejected]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"prompt": "a", "completion": "b", "label": True}, PromptCompletion("a", "b")),
        ({"prompt": [USER], "completion": [GOOD], "label": True}, Conversation([USER, GOOD], 1)),
        ({"prompt": [USER], "completion": GOOD, "label": True}, Conversation([USER, GOOD], 1)),
        ({"completion": [USER, GOOD], "label": True}, Conversation([USER, GOOD], 1)),
        ({"prompt": "a", "completion": [USER, GOOD], "label": True}, Conversation([USER, GOOD], 1)),
        (
            {"completion": [USER, BAD, OTHER, GOOD], "label": True, "system": "s"},
            Conversation([SYSTEM, USER, BAD, OTHER, GOOD], 4),
        ),
    ],
)
def test_labelled_answers_are_read(values: dict[str, Any], expected: Any) -> None:
    assert row(values, "unpaired") == Judged(expected, True)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        *((each, True) for each in (True, 1, 1.0, "1", "true", " True")),
        *((each, False) for each in (False, 0, 0.0, "0", "FALSE")),
    ],
)
def test_labels(label: Any, expected: bool) -> None:
    values = {"prompt": "a", "completion": "b", "label": label}
    assert row(values, "unpaired").label is expected


def test_columns_can_be_named() -> None:
    values = {"q": "a", "better": "b", "worse": "c", "chosen": 3}
    columns = {"prompt": "q", "chosen": "better", "rejected": "worse"}
    assert row(values, columns=columns).rejected == PromptCompletion("a", "c")
    values = {"q": "a", "a": "b", "ok": 1}
    columns = {"prompt": "q", "completion": "a", "label": "ok"}
    named = row(values, "unpaired", columns=columns, format="unpaired")
    assert named == Judged(PromptCompletion("a", "b"), True)
    with pytest.raises(UserError, match="no column `who`"):
        row({"chosen": "b", "rejected": "c"}, columns={"prompt": "who"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": None}, "the column `rejected` is empty (null)"),
        ({"chosen": "b", "rejected": "c"}, "there is no column `prompt`; the columns are `chosen`"),
        ({"prompt": None, "chosen": "b", "rejected": "c"}, "the column `prompt` is empty (null)"),
        (
            {"prompt": "a", "chosen": "b", "rejected": [BAD]},
            "`chosen` is text and `rejected` is a list; expected two texts or two lists of",
        ),
        (
            {"prompt": "a", "chosen": 3, "rejected": "c"},
            "`chosen` is a number; expected text or a list of messages",
        ),
        (
            {"prompt": [USER], "chosen": "b", "rejected": "c"},
            "`prompt` is a list and `chosen` is text; expected two texts or two lists",
        ),
        (
            {"prompt": "a", "chosen": [GOOD], "rejected": [BAD]},
            "`prompt` is text and `chosen` is a list in which no message before the last one says",
        ),
        ({"prompt": "y", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "says the same"),
        ({"prompt": 3, "chosen": [GOOD], "rejected": [BAD]}, "`prompt` is a number; expected a"),
        (
            {"chosen": [USER, GOOD], "rejected": [OTHER, BAD]},
            "`chosen` and `rejected` have no prompt in common: they differ from message 1 on",
        ),
        ({"chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, OTHER, BAD]}, "from message 2 on"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "have no prompt in common"),
        ({"chosen": [], "rejected": []}, "have no prompt in common"),
        ({"prompt": [USER], "chosen": [], "rejected": [BAD]}, "`chosen` has no message behind"),
        (
            {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD, OTHER]},
            "the last message of `rejected` behind the prompt has the role `user`; expected",
        ),
        (
            {"prompt": [SYSTEM], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
            "the first message of `chosen` behind the prompt has the role `user`; expected",
        ),
        ({"chosen": [USER, GOOD, OTHER], "rejected": [USER, BAD]}, "the last message of `chosen`"),
        (
            {"prompt": [USER], "chosen": [{"role": "boss", "content": ""}], "rejected": [BAD]},
            "message 1 of `chosen` has the role `boss`",
        ),
        ({"prompt": [USER], "chosen": ["b"], "rejected": [BAD]}, "message 1 of `chosen` is text"),
        (
            {"prompt": "a", "chosen": "b", "rejected": "\ud800"},
            "`rejected` holds half of a surrogate pair",
        ),
    ],
)
def test_bad_pairs_say_what_was_expected(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError) as caught:
        row(values)
    assert message in caught.value.message


@pytest.mark.parametrize("label", ["yes", "", 2, -1, 0.5, float("nan"), [], {}, "01"])
def test_a_label_is_true_or_false(label: Any) -> None:
    values = {"prompt": "a", "completion": "b", "label": label}
    with pytest.raises(RowError, match=r"`label` is .*; expected true or false, or 1 or 0"):
        row(values, "unpaired")
    with pytest.raises(RowError, match="`label` is empty"):
        row({**values, "label": None}, "unpaired")


def test_a_labelled_answer_needs_a_prompt() -> None:
    with pytest.raises(RowError, match="`completion` has no message before its answer"):
        row({"completion": [GOOD], "label": True}, "unpaired")
    with pytest.raises(RowError, match="no column `prompt`"):
        row({"completion": "b", "label": True}, "unpaired")


PAIRS = {"prompt": "a", "chosen": "b", "rejected": "c"}
LABELLED = {"prompt": "a", "completion": "b", "label": True}


@pytest.mark.parametrize(
    ("values", "kind", "message", "hint"),
    [
        (PAIRS, "supervised", "learns from text or conversations: exp", "{completion: chosen}"),
        (PAIRS, "unpaired", "answers with a label: expected `completion` and `label`", "columns:"),
        ({"text": "a"}, "pairs", "pairs of answers: expected `chosen` and `rejected`", "chosen:"),
        (LABELLED, "pairs", "the format `unpaired`; this stage learns from pairs", "chosen:"),
        ({"prompt": "a", "chosen": "b"}, "pairs", "there is no column `rejected`", "rejected:"),
        ({"prompt": "a", "label": 1}, "unpaired", "there is no column `completion`", "completion"),
        ({"foo": "a"}, "pairs", "the columns `foo`; expected `chosen` and `rejected`", "chosen"),
    ],
)
def test_rows_of_another_kind_are_refused(
    values: dict[str, Any], kind: str, message: str, hint: str
) -> None:
    with pytest.raises(UserError) as caught:
        row(values, kind)
    assert message in caught.value.message
    assert hint in str(caught.value.hint)
    assert caught.value.exit_code == 2
    with pytest.raises(UserError, match="this stage learns from"):
        row(values, "supervised", format="preference")


def test_a_stage_takes_what_it_can_learn_from() -> None:
    both = {**PAIRS, **LABELLED}
    assert row(both, "supervised") == PromptCompletion("a", "b")
    assert isinstance(row(both, "pairs"), Pair)
    assert isinstance(row(both, "unpaired"), Judged)
    assert isinstance(row(both, None), Pair)
    better = row(PAIRS, "supervised", columns={"completion": "chosen"})
    assert better == PromptCompletion("a", "b")
