"""Pairs and labelled answers as trees of tokens, compared with supervised samples of each side."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hone.data.chat import Renderer
from hone.data.duplicates import find_repeats
from hone.data.joined import Joined
from hone.data.prepare import Prepared, open_prepared, prepare
from hone.errors import UserError
from hone.recipe.data import Data, SampleKind
from hone.recipe.schema import Sft
from hone.stages.data import check_ids, prepare_training, split_data
from tests.data.tokenizers import GEMMA, LLAMA3, REASONING, shared

pytestmark = pytest.mark.quick

USER = {"role": "user", "content": "The capital"}
Path_ = tuple[list[int], list[bool]]


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def run(
    path: Path, rows: list[Any], tokenizer: Any = None, template: str = "auto", **settings: Any
) -> Prepared:
    """Prepare rows with usual settings, in a cache beside the file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    usual: dict[str, Any] = {
        "max_tokens": 2048,
        "overlong": "keep_start",
        "train_on": "completions",
        "kind": "pairs",
        "cache_folder": path.parent / "cache",
    }
    data = Data(path=str(path), template=template)
    return prepare(data, tokenizer or shared("byte_level"), **usual | settings)


def paths_of(prepared: Prepared, index: int) -> list[Path_]:
    """(tokens, trained) of the prompt with each of its sides."""
    prompt, *sides = prepared.sample(index).segments
    assert prompt.parent == -1 and not prompt.trained.any()
    assert [side.parent for side in sides] == [0] * len(sides)
    return [
        (
            [*prompt.tokens.tolist(), *side.tokens.tolist()],
            [*prompt.trained.tolist(), *side.trained.tolist()],
        )
        for side in sides
    ]


def supervised(renderer: Renderer, prompt: Any, completion: Any) -> Path_:
    ids, trained = renderer.prompt_completion(prompt, completion)
    return ids.tolist(), trained.tolist()


def tokens_of(prepared: Prepared) -> list[list[list[int]]]:
    samples = (prepared.sample(i) for i in range(len(prepared)))
    return [[segment.tokens.tolist() for segment in sample.segments] for sample in samples]


TEXTS = [
    ("The cap", "ital of France", "s are"),  # a token across the border on one side
    ("Hello", " there", "!"),
    ("", "Paris", "Hello"),
    ("", "Paris", "Pa"),
    ("Hello", "", " there"),
    ("I am", " fine.", " fine.\n\n"),
    ("é", "\U0001f600", "\U0001f601"),  # which share their first bytes
]


@pytest.mark.parametrize("name", ["byte_level", "byte_level_begin", "sentencepiece", "unigram"])
def test_each_path_has_the_tokens_of_supervised_training(name: str, tmp_path: Path) -> None:
    renderer = Renderer(shared(name))
    rows = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in TEXTS]
    prepared = run(tmp_path / "a.jsonl", rows, shared(name))
    assert len(prepared) == len(TEXTS)
    for index, (prompt, *sides) in enumerate(TEXTS):
        expected = [supervised(renderer, prompt, side) for side in sides]
        assert paths_of(prepared, index) == expected
        shared_prompt = prepared.sample(index).segments[0].tokens
        (ours, trained), (theirs, also) = expected
        end = len(shared_prompt)
        assert ours[end] != theirs[end] or trained[end] or also[end], "nothing more is shared"
        assert prepared.lengths[index] == len(ours) + len(theirs) - end
        assert prepared.trained[index] == sum(trained) + sum(also)
        assert prepared.segments[index].tolist() == [end, len(ours) - end, len(theirs) - end]
    assert prepared.report["tokens"] == prepared.lengths.sum()
    assert prepared.report["trained_tokens"] == prepared.trained.sum()


@pytest.mark.parametrize("template", ["auto", LLAMA3, GEMMA, REASONING])
def test_both_shapes_of_conversations_give_the_same_trees(template: str, tmp_path: Path) -> None:
    tokenizer = shared("byte_level_begin")
    prompts = [[USER], [USER, said("<think>hm</think>x"), USER]]
    answers = [("Paris", "I"), ("Paris", "Par"), ("", " fine"), ("\n", "x")]
    cases = [(p, [said(c)], [said(r)]) for p in prompts for c, r in answers]
    apart = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in cases]
    whole = [{"chosen": p + c, "rejected": p + r} for p, c, r in cases]
    kept = run(tmp_path / "a.jsonl", apart, tokenizer, template)
    assert tokens_of(run(tmp_path / "b.jsonl", whole, tokenizer, template)) == tokens_of(kept)
    renderer = Renderer(tokenizer, template)
    found = {kept.arrays["rows"][i]: paths_of(kept, i) for i in range(len(kept))}
    for number, (prompt, *sides) in enumerate(cases, 1):
        expected = [supervised(renderer, prompt, side) for side in sides]
        assert found.get(number, expected) == expected
        assert (number in found) == (expected[0][0] != expected[1][0])
    assert kept.report["dropped_equal"] == len(cases) - len(kept)


def test_an_answer_of_several_turns_is_trained_turn_by_turn(tmp_path: Path) -> None:
    more = [said("x"), USER, said("fine")]
    row = {"prompt": [USER], "chosen": more, "rejected": [said("x")]}
    ((ids, trained), _) = paths_of(run(tmp_path / "a.jsonl", [row]), 0)
    renderer = Renderer(shared("byte_level"))
    expected = renderer.conversation([USER, *more], given=1)
    assert (ids, trained) == (expected[0].tolist(), expected[1].tolist())
    changing = {**row, "chosen": [said("<think>a</think>x"), USER, said("fine")]}
    with pytest.raises(UserError, match=r"a\.jsonl:2: the answer has several turns, and the chat"):
        run(tmp_path / "a.jsonl", [row, changing], template=REASONING)


def test_labelled_answers_carry_their_label(tmp_path: Path) -> None:
    rows = [
        {"prompt": "The cap", "completion": "ital", "label": True},
        {"prompt": [USER], "completion": [said("Paris")], "label": 0},
        {"prompt": "", "completion": "Paris", "label": 1},
    ]
    prepared = run(tmp_path / "a.jsonl", rows, kind="unpaired")
    renderer = Renderer(shared("byte_level"))
    for index, row in enumerate(rows):
        assert paths_of(prepared, index) == [supervised(renderer, row["prompt"], row["completion"])]
        prompt, side = prepared.sample(index).segments
        assert len(prompt.tokens) == 0 or side.trained[0], "the prompt ends at the first target"
        assert not prompt.constants
        assert side.constants["label"].tolist() == [float(row["label"])] * len(side.tokens)
    assert [prepared.part(i) for i in range(3)] == [(1, 1)] * 3


def test_equal_and_untrained_sides_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "chosen": "b", "rejected": "b"},
        {"prompt": "Hello " * 9, "chosen": "Paris", "rejected": "I"},
        {"prompt": "a", "chosen": "bbbbbbbbbbbbbbbbbx", "rejected": "bbbbbbbbbbbbbbbbby"},
        {"prompt": "Hello", "chosen": "b", "rejected": "c"},
    ]
    prepared = run(tmp_path / "a.jsonl", rows, max_tokens=12)
    assert prepared.arrays["rows"].tolist() == [4]
    counts = {name: n for name, n in prepared.report.items() if n and "tokens" not in name}
    assert counts == {
        "rows": 4,
        "samples": 1,
        "truncated": 2,
        "dropped_equal": 2,
        "dropped_untrained": 1,
    }
    assert len(run(tmp_path / "a.jsonl", rows)) == 3, "none of it where nothing is cut"
    with pytest.raises(UserError, match="1 rows read, 1 had the same tokens on both sides"):
        run(tmp_path / "b.jsonl", rows[:1])


def cut_slowly(paths: list[Path_], limit: int, overlong: str, beginning: int) -> list[Path_]:
    """One token at a time: off the prompt, as long as both share one that is not its last."""
    while overlong == "keep_end" and max(len(ids) for ids, _ in paths) > limit:
        at = beginning
        if len({tuple(ids[: at + 2]) for ids, _ in paths}) > 1:
            break
        if any(len(ids) < at + 2 or any(trained[: at + 2]) for ids, trained in paths):
            break
        paths = [(ids[:at] + ids[at + 1 :], mask[:at] + mask[at + 1 :]) for ids, mask in paths]
    return [(ids[:limit], trained[:limit]) for ids, trained in paths]


@pytest.mark.parametrize("name", ["byte_level", "byte_level_begin"])
@pytest.mark.parametrize("overlong", ["keep_start", "keep_end", "drop"])
@pytest.mark.parametrize("limit", [4, 9, 14])
def test_long_pairs_are_cut_path_by_path(
    name: str, overlong: str, limit: int, tmp_path: Path
) -> None:
    rows = [
        {"prompt": "xyz" * p, "chosen": "abc" * c, "rejected": "de" * r}
        for p in (1, 3, 5)
        for c, r in ((1, 1), (3, 1), (1, 4), (5, 6))
    ]
    settings: dict[str, Any] = {"max_tokens": limit, "overlong": overlong}
    renderer = Renderer(shared(name))
    expected = []
    for number, row in enumerate(rows, 1):
        whole = [supervised(renderer, row["prompt"], row[side]) for side in ("chosen", "rejected")]
        if overlong == "drop" and max(len(ids) for ids, _ in whole) > limit:
            continue
        paths = cut_slowly(whole, limit, overlong, len(renderer.begin_ids))
        if all(any(trained) for _, trained in paths) and paths[0] != paths[1]:
            expected.append((number, paths))
    if not expected:
        with pytest.raises(UserError, match="no sample is left"):
            run(tmp_path / "a.jsonl", rows, shared(name), **settings)
        return
    prepared = run(tmp_path / "a.jsonl", rows, shared(name), **settings)
    numbers = prepared.arrays["rows"].tolist()
    assert [(n, paths_of(prepared, i)) for i, n in enumerate(numbers)] == expected
    counts = prepared.report
    assert (counts["dropped_overlong"] > 0) == (overlong == "drop")
    assert (counts["truncated"] > 0) == (overlong != "drop")


def test_answers_are_not_split(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    with pytest.raises(UserError, match="`overlong: split`: an answer that is compared") as caught:
        run(tmp_path / "a.jsonl", rows, overlong="split")
    assert caught.value.exit_code == 2 and not (tmp_path / "cache").exists()


def test_the_cache_tells_the_kinds_apart(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "completion": "b", "chosen": "c", "rejected": "d", "label": True},
        {"prompt": "a", "completion": "c", "chosen": "d", "rejected": "c", "label": False},
    ]
    kinds: tuple[SampleKind, ...] = ("supervised", "pairs", "unpaired")
    made = {kind: run(tmp_path / "a.jsonl", rows, kind=kind) for kind in kinds}
    assert len({each.key for each in made.values()}) == 3
    for kind, each in made.items():
        opened = open_prepared(each.key, tmp_path / "cache")
        assert opened and opened.kind == kind == Joined((opened,)).kind
        assert tokens_of(opened) == tokens_of(each)
    files = {kind: {path.stem for path in each.folder.iterdir()} for kind, each in made.items()}
    assert files["pairs"] - files["supervised"] == {"segments"}
    assert files["unpaired"] - files["supervised"] == {"segments", "labels"}
    (made["pairs"].folder / "segments.int32").write_bytes(b"")
    assert open_prepared(made["pairs"].key, tmp_path / "cache") is None


def test_ten_thousand_pairs_are_written_as_they_come(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Hello {i}", "chosen": f" there {i}", "rejected": " Paris" * (1 + i % 3)}
        for i in range(10_000)
    ]
    seen: list[int] = []
    prepared = run(tmp_path / "a.jsonl", rows, progress=lambda done, _: seen.append(done))
    assert seen == list(range(1000, 10_001, 1000))
    assert len(prepared) == 10_000
    renderer = Renderer(shared("byte_level"))
    for index in (0, 999, 1000, 5432, 9999):
        prompt, *sides = rows[index].values()
        assert paths_of(prepared, index) == [supervised(renderer, prompt, s) for s in sides]
    assert prepared.segments.sum() == prepared.lengths.sum() == len(prepared.arrays["tokens"])


def test_what_stands_there_twice_is_found(tmp_path: Path) -> None:
    def pair(prompt: str, chosen: str, rejected: str) -> dict[str, str]:
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}

    rows = [
        pair("Hello", " a", " b"),
        pair("Hello", " b", " a"),
        pair("Hello", " a", " b"),
        pair("Paris", " a", " a<|endoftext|> b"),
        pair("Paris", " a<|endoftext|> a", " b"),
        pair("I am", " a", " b"),
        pair("there", " a", " b"),
    ]
    joined = Joined((run(tmp_path / "a.jsonl", rows),))
    same = [np.concatenate(tokens) for tokens in tokens_of(joined.sets[0])[3:5]]
    assert same[0].tolist() == same[1].tolist(), "only the border between the answers differs"
    training, held_out = np.array([0, 1, 3, 4, 5]), np.array([2, 6])
    found = find_repeats(joined, training, joined, held_out)
    assert (found.repeated.count, found.trained.count, found.asked.count) == (0, 1, 1)
    assert found.trained.pairs == ((2, 0),)
    assert find_repeats(joined, np.arange(7), joined, held_out[:0]).repeated.pairs == ((2, 0),)
    labelled = [{"prompt": "a", "completion": "b", "label": n < 1} for n in range(3)]
    joined = Joined((run(tmp_path / "b.jsonl", labelled, kind="unpaired"),))
    repeated = find_repeats(joined, np.arange(3), joined, np.arange(0)).repeated
    assert repeated.pairs == ((2, 1),), "another label is another sample"


class Pairs(Sft):
    """A stage that learns from pairs."""

    @property
    def sample_kind(self) -> SampleKind:
        return "pairs"


def test_a_stage_of_pairs_has_samples_of_trees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HONE_CACHE", str(tmp_path / "cache"))
    rows = [
        {"prompt": f"Hello {i % 7}", "chosen": f" {i}", "rejected": f" {i + i % 2}"}
        for i in range(30)
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = Pairs.model_validate(
        {
            "data": str(path),
            "evaluation": {"share": 0.2},
            "batch": {"tokens": 60},
            "train_on": "all",
        }
    )
    prepared = prepare_training(settings, shared("byte_level"), date="2024-01-01")
    data = split_data(settings, prepared, None, 1, 0)
    assert (len(data.training), len(data.held_out)) == (12, 3)
    for step in range(1, data.total_steps + 1):
        samples = data.samples_of(step)
        assert sum(sample.num_tokens for sample in samples) <= 60
        assert all(len(sample.segments) == 3 for sample in samples)
    described = data.describe()
    assert "dropped equal 15" in described[0]
    assert any("held-out samples have a prompt that is trained on" in line for line in described)
    check_ids(data, 340)
    with pytest.raises(UserError, match=r"a\.jsonl:\d+ holds the token"):
        check_ids(data, 200)
    with pytest.raises(UserError, match="this stage learns from text or conversations"):
        prepare_training(Sft(data=str(path)), shared("byte_level"), date="2024-01-01")
