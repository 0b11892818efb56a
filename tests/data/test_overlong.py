"""Split samples: every trained token once, every piece whole, as few of them as fit."""

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hone.data.chat import Renderer, Tokens
from hone.data.formats import Conversation
from hone.data.overlong import pieces, windows
from hone.data.prepare import Prepared
from tests.data.test_chat import trained_runs
from tests.data.test_prepare import run, texts, tokens_of, write_rows
from tests.data.tokenizers import GEMMA, REASONING, shared

pytestmark = pytest.mark.quick

TEXT = "Hello there, how are you today? I am fine.\n\nThe answer is 42 😀 é. " * 3


def split(path: Path, limit: int, tokenizer: str = "byte_level", **settings: Any) -> Prepared:
    return run(path, shared(tokenizer), max_tokens=limit, overlong="split", **settings)


@pytest.mark.parametrize("limit", [2, 3, 7, 50, 1000])
@pytest.mark.parametrize("name", ["byte_level", "byte_level_begin", "sentencepiece"])
def test_windows_of_text_train_every_token_once(tmp_path: Path, name: str, limit: int) -> None:
    path = write_rows(tmp_path / "a.jsonl", texts(TEXT, "Hello", TEXT[:60]))
    whole = tokens_of(run(path, shared(name)))
    prepared = split(path, limit, name)
    parts = tokens_of(prepared)
    trained = [i for ids, mask in parts for i, on in zip(ids, mask, strict=True) if on]
    assert trained == [i for ids, mask in whole for i, on in zip(ids, mask, strict=True) if on]
    begin = Renderer(shared(name)).begin_ids
    for ids, mask in parts:
        assert 2 <= len(ids) <= limit
        assert mask == [False] + [True] * (len(ids) - 1)
        assert ids[: len(begin)] == begin
    counts = prepared.report
    assert counts["split_overlong"] == sum(len(ids) > limit for ids, _ in whole)
    assert counts["samples"] == len(parts)
    assert counts["trained_tokens"] == len(trained)
    assert (counts["truncated"], counts["dropped_overlong"], counts["dropped_untrained"]) == (
        0,
    ) * 3


def test_windows_follow_each_other(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", texts(TEXT))
    ((whole, _),) = tokens_of(run(path))
    parts = [ids for ids, _ in tokens_of(split(path, 10))]
    assert parts[0] + [i for ids in parts[1:] for i in ids[1:]] == whole
    assert all(left[-1] == right[0] for left, right in pairwise(parts)), "what predicts the next"
    assert [len(ids) for ids in parts[:-1]] == [10] * (len(parts) - 1)


def test_windows_of_a_pair_train_the_completion_once(tmp_path: Path) -> None:
    rows = [{"prompt": "Hello there. " * 9, "completion": TEXT}]
    path = write_rows(tmp_path / "a.jsonl", rows)
    ((whole, mask),) = tokens_of(run(path))
    prepared = split(path, 9)
    trained = [i for ids, m in tokens_of(prepared) for i, on in zip(ids, m, strict=True) if on]
    assert trained == [i for i, on in zip(whole, mask, strict=True) if on]
    assert prepared.report["dropped_untrained"] == mask.index(True) // 8 > 2
    assert prepared.report["straddling_tokens"] == run(path).report["straddling_tokens"]


def test_a_limit_below_two_tokens_leaves_one_window() -> None:
    tokens = Tokens(np.arange(5, dtype=np.int32), np.array([False, *[True] * 4]), 0)
    assert [part.ids.tolist() for part in windows(tokens, 1, [])] == [[0]]
    assert [part.ids.tolist() for part in windows(tokens, 1, [0])] == [[0]]
    found = [part.ids.tolist() for part in windows(tokens, 2, [0])]
    assert found == [[0, 1], [0, 2], [0, 3], [0, 4]]


SYSTEM = {"role": "system", "content": "Be brief."}


def exchanges(count: int, seed: int = 0) -> list[dict[str, Any]]:
    generator = random.Random(seed)
    return [
        {"role": role, "content": f"{role[0]}{n} " + "yes " * generator.randint(0, 6)}
        for n in range(count)
        for role in ("user", "assistant")
    ]


def size(messages: list[dict[str, Any]]) -> int:
    return len(Renderer(shared("byte_level")).conversation(messages)[0])


def fewest(messages: list[dict[str, Any]], head: list[Any], limit: int) -> int:
    """The least number of pieces, by trying every cut: the second computation."""
    count = len(messages) // 2
    best = [0] + [10**9] * count
    for end in range(1, count + 1):
        for begin in range(end):
            if end - begin == 1 or size(head + messages[2 * begin : 2 * end]) <= limit:
                best[end] = min(best[end], best[begin] + 1)
    return best[count]


@pytest.mark.parametrize("head", [[], [SYSTEM]])
@pytest.mark.parametrize("limit", [80, 110, 170])
def test_conversations_are_cut_between_exchanges(
    tmp_path: Path, head: list[dict[str, Any]], limit: int
) -> None:
    rows = [{"messages": head + exchanges(7, seed)} for seed in range(4)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    renderer = Renderer(shared("byte_level"))
    alone = [head + row["messages"][i : i + 2] for row in rows for i in range(len(head), 14, 2)]
    assert max(map(size, alone)) <= 80
    prepared = split(path, limit)
    decoded = [renderer.tokenizer.decode(ids) for ids, _ in tokens_of(prepared)]
    for number, row in enumerate(rows, start=1):
        own = np.flatnonzero(prepared.arrays["rows"] == number)
        runs = [
            run
            for i in own
            for run in trained_runs(
                renderer, *(np.array(each) for each in tokens_of(prepared)[int(i)])
            )
        ]
        answers = [m["content"] for m in row["messages"] if m["role"] == "assistant"]
        assert runs == [f"{answer}<|im_end|>" for answer in answers], "each once, in order"
        assert len(own) == fewest(row["messages"][len(head) :], head, limit)
    for text in decoded:
        assert text.count("Be brief.") == len(head)
        assert text.startswith("<|im_start|>system" if head else "<|im_start|>user")
    assert prepared.lengths.max() <= limit
    assert prepared.report["split_overlong"] == sum(size(r["messages"]) > limit for r in rows)
    assert prepared.report["truncated"] == 0


def test_an_exchange_that_is_too_long_alone_is_cut_and_counted(tmp_path: Path) -> None:
    long = {"role": "assistant", "content": "no " * 200}
    messages = [*exchanges(2), {"role": "user", "content": "more"}, long, *exchanges(1, 5)]
    lost = [{"role": "user", "content": "why " * 200}, {"role": "assistant", "content": "so"}]
    rows = [messages, messages + lost, messages[4:6]]
    path = write_rows(tmp_path / "a.jsonl", [{"messages": row} for row in rows])
    prepared = split(path, 60)
    assert prepared.report["split_overlong"] == 2
    assert prepared.report["truncated"] == 4
    assert prepared.report["dropped_untrained"] == 1, "nothing of the last answer is left"
    assert prepared.lengths.max() == 60


def test_given_messages_stay_untrained_in_the_pieces(tmp_path: Path) -> None:
    messages = [SYSTEM, *exchanges(6)]
    rows = [{"prompt": messages[:8], "completion": messages[8:]}]
    path = write_rows(tmp_path / "a.jsonl", rows)
    renderer = Renderer(shared("byte_level"))
    runs = [
        run
        for ids, mask in tokens_of(split(path, 60))
        for run in trained_runs(renderer, np.array(ids), np.array(mask))
    ]
    answers = [m["content"] for m in messages[8:] if m["role"] == "assistant"]
    assert runs == [f"{answer}<|im_end|>" for answer in answers]


def test_turns_that_are_samples_of_their_own_are_split_too(tmp_path: Path) -> None:
    messages = [
        {"role": role, "content": f"{'<think>hm</think>' * (role == 'assistant')}{role[0]}{n}"}
        for n in range(6)
        for role in ("user", "assistant")
    ]
    path = write_rows(tmp_path / "a.jsonl", [{"messages": messages}])
    data = {"template": REASONING}
    renderer = Renderer(shared("byte_level"), REASONING)
    every = [f"<think>hm</think>a{n}<|im_end|>" for n in range(6)]
    for limit, overlong in ((2000, 0), (100, 1), (60, 1)):
        prepared = split(path, limit, data=data)
        runs = [
            run
            for ids, mask in tokens_of(prepared)
            for run in trained_runs(renderer, np.array(ids), np.array(mask))
        ]
        assert runs == every
        assert prepared.lengths.max() <= limit
        assert prepared.report["split_overlong"] == overlong
        assert prepared.report["split_turns"] == (limit > 60)


def test_tools_and_later_system_turns_stay_with_their_exchange() -> None:
    tool = {"role": "tool", "content": "4"}
    user, answer = exchanges(1)
    messages = [SYSTEM, user, answer, tool, answer, SYSTEM, user, answer, user, user, answer]
    found = pieces(Conversation(messages, tools=[{"name": "f"}]), lambda piece: False)
    assert [piece.messages for piece in found] == [
        [SYSTEM, user, answer, tool, answer],
        [SYSTEM, SYSTEM, user, answer],
        [SYSTEM, user, user, answer],
    ]
    assert all(piece.tools == [{"name": "f"}] for piece in found)
    assert len(pieces(Conversation(messages), lambda piece: True)) == 1
    assert [p.messages for p in pieces(Conversation([SYSTEM]), lambda piece: False)] == [[SYSTEM]]


def test_a_piece_that_the_template_refuses_is_a_bad_row(tmp_path: Path) -> None:
    refusing = GEMMA.replace(
        "{{ bos_token }}",
        "{{ bos_token }}{% if rest | length == 2 and 'u1' in rest[0].content %}"
        "{{ raise_exception('not so') }}{% endif %}",
    )
    path = write_rows(
        tmp_path / "a.jsonl", [{"messages": exchanges(2)}, {"messages": exchanges(1)}]
    )
    data = {"template": refusing, "on_bad_row": "skip"}
    prepared = split(path, 30, "byte_level_begin", data=data)
    assert prepared.report["skipped_rows"] == 1
    assert json.dumps(prepared.skipped).count("not so") == 1
