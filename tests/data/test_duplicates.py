"""What stands in prepared data twice, compared with the tokens themselves."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hone.data import duplicates
from hone.data.duplicates import find_repeats, hashes_of
from hone.data.joined import Joined
from hone.data.prepare import prepare
from hone.recipe.data import Data
from tests.data.tokenizers import shared

pytestmark = pytest.mark.quick


def prepared(path: Path, rows: list[Any]) -> Any:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return prepare(
        Data(path=str(path)),
        shared("byte_level"),
        max_tokens=99,
        overlong="drop",
        train_on="completions",
        cache_folder=path.parent / "cache",
    )


def few_pairs(count: int, seed: int) -> list[dict[str, str]]:
    """Rows of which many are the same, or have the same prompt."""
    draw = random.Random(seed)
    return [
        {"prompt": "a" * draw.randint(2, 9), "completion": "b" * draw.randint(1, 6)}
        for _ in range(count)
    ]


def whole(joined: Joined, index: int) -> tuple[int, ...]:
    return tuple(joined.sample(index).segments[0].tokens.tolist())


def prompt(joined: Joined, index: int) -> tuple[int, ...]:
    segment = joined.sample(index).segments[0]
    return whole(joined, index)[: segment.trained.tolist().index(True)]


@pytest.mark.parametrize("at_once", [1, 50, 1 << 20])
def test_hashes_are_equal_where_the_tokens_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(duplicates, "TOKENS_AT_ONCE", at_once)
    joined = Joined(tuple(prepared(tmp_path / f"{n}.jsonl", few_pairs(60, n)) for n in range(2)))
    hashes = hashes_of(joined)
    for ours, tokens in ((hashes.whole, whole), (hashes.prompts, prompt)):
        by_tokens: dict[tuple[int, ...], set[int]] = {}
        for i in range(120):
            by_tokens.setdefault(tokens(joined, i), set()).add(int(ours[i]))
        assert all(len(found) == 1 for found in by_tokens.values())
        assert len(set(ours.tolist())) == len(by_tokens) < 100
    assert hashes.prompt_lengths.tolist() == [len(prompt(joined, i)) for i in range(120)]


def test_repeats_are_those_of_a_slow_comparison(tmp_path: Path) -> None:
    training = Joined((prepared(tmp_path / "a.jsonl", few_pairs(50, 0)),))
    evaluation = Joined((prepared(tmp_path / "b.jsonl", few_pairs(40, 1)),))
    trained, held_out = np.arange(3, 40), np.arange(5, 40)[::-1]
    found = find_repeats(training, trained, evaluation, held_out)

    seen: dict[tuple[int, ...], int] = {}
    repeated = [i for i in trained.tolist() if seen.setdefault(whole(training, i), i) != i]
    assert found.repeated.count == len(repeated) > 0
    ((later, earlier),) = found.repeated.pairs
    assert later == repeated[0] and earlier == seen[whole(training, later)]

    known = {whole(training, i) for i in trained.tolist()}
    same = [i for i in held_out.tolist() if whole(evaluation, i) in known]
    assert (found.trained.count, found.trained.pairs[0][0]) == (
        len(same),
        same[0],
    )
    asked = {prompt(training, i) for i in trained.tolist()}
    prompts = [
        i
        for i in held_out.tolist()
        if prompt(evaluation, i) in asked and len(prompt(evaluation, i)) > 1
    ]
    assert len(same) < found.asked.count == len(prompts)


def test_nothing_is_found_where_nothing_repeats(tmp_path: Path) -> None:
    """Texts have no prompt: their first token, which all have, is none."""
    texts = [{"text": f"<|endoftext|>{n}"} for n in range(50)]
    joined = Joined((prepared(tmp_path / "a.jsonl", texts),))
    found = find_repeats(joined, np.arange(30), joined, np.arange(30, 50))
    assert [each.count for each in (found.repeated, found.trained, found.asked)] == [0, 0, 0]
    again = find_repeats(joined, np.arange(30), joined, np.arange(30))
    assert (again.repeated.count, again.trained.count) == (0, 30)
