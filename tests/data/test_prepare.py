"""Prepared data: the same tokens as the renderer's, kept by content, whole or not there."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hone.data.chat import Renderer
from hone.data.prepare import Prepared, open_prepared, prepare, split_held_out
from hone.data.prepared import LAYOUT
from hone.errors import UserError
from hone.recipe.data import Data
from tests.data.tokenizers import CHATML, DATED, GEMMA, ZEPHYR, byte_level, shared

ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"Hello {i}"},
            {"role": "assistant", "content": "é " * (i % 7)},
        ]
    }
    for i in range(30)
]


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text(
        "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    )
    return path


def texts(*values: str) -> list[Any]:
    return [{"text": value} for value in values]


def run(
    path: Path, tokenizer: Any = None, data: dict[str, Any] | None = None, **settings: Any
) -> Prepared:
    """Prepare with usual settings, in a cache beside the file."""
    defaults = {"max_tokens": 2048, "overlong": "keep_start", "train_on": "completions"}
    return prepare(
        Data(path=str(path), **(data or {})),
        tokenizer or shared("byte_level"),
        **{"cache_folder": path.parent / "cache", **defaults, **settings},
    )


def tokens_of(prepared: Prepared) -> list[tuple[list[int], list[bool]]]:
    segments = [prepared.sample(i).segments for i in range(len(prepared))]
    return [(only.tokens.tolist(), only.trained.tolist()) for (only,) in segments]


def files_in(folder: Path) -> list[str]:
    """The names of what is in the cache, the index of known files aside."""
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith("sources-"))


def test_samples_are_what_the_renderer_makes(tmp_path: Path) -> None:
    prepared = run(write_rows(tmp_path / "a.jsonl", ROWS))
    renderer = Renderer(shared("byte_level"))
    rendered = [renderer.conversation(row["messages"]) for row in ROWS]
    assert tokens_of(prepared) == [(ids.tolist(), mask.tolist()) for ids, mask in rendered]
    assert prepared.lengths.tolist() == [len(ids) for ids, _ in rendered]
    assert prepared.trained.tolist() == [mask.sum() for _, mask in rendered]
    assert (prepared.lengths.dtype, prepared.trained.dtype) == (np.int32, np.int32)
    assert prepared.template == renderer.template
    assert prepared.end_token_ids == renderer.end_token_ids
    assert prepared.report == {
        "rows": 30,
        "samples": 30,
        "tokens": int(prepared.lengths.sum()),
        "trained_tokens": int(prepared.trained.sum()),
        "truncated": 0,
        "split_turns": 0,
        "split_overlong": 0,
        "dropped_overlong": 0,
        "dropped_equal": 0,
        "dropped_untrained": 0,
        "skipped_rows": 0,
        "straddling_tokens": 0,
    }
    assert prepared.place(3) == f"{tmp_path / 'a.jsonl'}:4"
    with pytest.raises(IndexError):
        prepared.sample(30)


def test_many_batches_are_the_same_as_one(tmp_path: Path) -> None:
    rows = texts(*(f"Hello {i} " * (i % 5) for i in range(2_345)))
    prepared = run(write_rows(tmp_path / "a.jsonl", rows))
    ids = shared("byte_level")([row["text"] for row in rows])["input_ids"]
    wanted = [(number, each) for number, each in enumerate(ids, 1) if each]
    assert [tokens[:-1] for tokens, _ in tokens_of(prepared)] == [each for _, each in wanted]
    assert prepared.arrays["rows"].tolist() == [number for number, _ in wanted]
    assert prepared.report["dropped_untrained"] == 469


def test_the_second_time_nothing_is_tokenised(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ROWS)
    seen: list[tuple[int, int | None]] = []
    first = run(path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(30, 30)]
    manifest = (first.folder / "manifest.json").stat()
    second = run(path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(30, 30)]
    assert (first.folder / "manifest.json").stat() == manifest
    assert tokens_of(second) == tokens_of(first)
    path.unlink()
    opened = open_prepared(first.key, tmp_path / "cache")
    assert opened and tokens_of(opened) == tokens_of(first)
    assert opened.sources == first.sources
    assert opened.sources[0]["path"] == str(path)
    assert open_prepared("0" * 64, tmp_path / "cache") is None


def test_the_key_depends_on_all_that_the_tokens_depend_on(tmp_path: Path) -> None:
    tokenizer = byte_level(pad_token="<|endoftext|>", chat_template=DATED)
    rows = [{**row, "turns": row["messages"]} for row in ROWS]
    path = write_rows(tmp_path / "a.jsonl", rows)
    other = write_rows(tmp_path / "b.jsonl", rows[1:])
    marked = byte_level(pad_token="<|endoftext|>", chat_template=DATED)
    marked.add_tokens(["Hello"])
    base: dict[str, Any] = {"path": path, "tokenizer": tokenizer, "date": "2024-01-01"}
    changes: list[dict[str, Any]] = [
        {},
        {"path": other},
        {"tokenizer": marked},
        {"date": "2024-01-02"},
        {"max_tokens": 100},
        {"overlong": "drop"},
        {"train_on": "all"},
        {"data": {"template": CHATML}},
        {"data": {"format": "messages"}},
        {"data": {"columns": {"messages": "turns"}}},
        {"data": {"on_bad_row": "skip"}},
    ]
    keys = [run(**{**base, **change}).key for change in changes]
    assert len(set(keys)) == len(changes)
    assert [run(**{**base, **change}).key for change in changes] == keys
    assert files_in(tmp_path / "cache") == sorted(keys)

    tokenizer(["a", "b c"], padding="max_length", truncation=True, max_length=4)
    moved = tmp_path / "c.jsonl"
    path.rename(moved)
    assert run(**{**base, "path": moved}).key == keys[0], "neither name nor the last call matter"


def test_a_date_matters_only_to_templates_that_print_it(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ROWS)
    keys = {run(path, date=date).key for date in ("2024-01-01", "2024-01-02")}
    assert len(keys) == 1


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HONE_CACHE", str(tmp_path / "elsewhere"))
    prepared = run(write_rows(tmp_path / "a.jsonl", ROWS), cache_folder=None)
    assert prepared.folder.parent == tmp_path / "elsewhere" / "data"
    monkeypatch.delenv("HONE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    prepared = run(tmp_path / "a.jsonl", cache_folder=None)
    assert prepared.folder.parent == tmp_path / ".cache" / "hone" / "data"


@pytest.mark.parametrize("overlong", ["keep_start", "keep_end", "drop"])
def test_overlong_samples(tmp_path: Path, overlong: str) -> None:
    tokenizer = shared("byte_level_begin")
    path = write_rows(tmp_path / "a.jsonl", texts("xyz", "xyzxyzxy"))
    whole = [ids for ids, _ in tokens_of(run(path, tokenizer))]
    assert [len(ids) for ids in whole] == [5, 10]
    prepared = run(path, tokenizer, max_tokens=5, overlong=overlong)
    (short, *long) = tokens_of(prepared)
    assert short[0] == whole[0]
    expected = {
        "keep_start": [whole[1][:5]],
        "keep_end": [[whole[1][0], *whole[1][-4:]]],
        "drop": [],
    }
    assert [ids for ids, _ in long] == expected[overlong]
    assert [trained for _, trained in long] == [[False, True, True, True, True]] * len(long)
    counts = prepared.report["truncated"], prepared.report["dropped_overlong"]
    assert counts == ((0, 1) if overlong == "drop" else (1, 0))


def test_keeping_the_end_leaves_no_target_without_a_token_before_it(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", texts("xyzxyzxy"))
    ((ids, trained),) = tokens_of(run(path, max_tokens=4, overlong="keep_end"))
    assert ids == tokens_of(run(path))[0][0][-4:]
    assert trained == [False, True, True, True]


def test_samples_without_a_trained_token_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "Hello " * n, "completion": "Paris"} for n in (1, 50, 2)]
    prepared = run(write_rows(tmp_path / "a.jsonl", rows), max_tokens=20)
    assert len(prepared) == 2
    assert (prepared.report["truncated"], prepared.report["dropped_untrained"]) == (1, 1)
    assert [prepared.place(i).rsplit(":")[-1] for i in (0, 1)] == ["1", "3"]


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({"max_tokens": 3}, "1 had no token to train (1 were cut to max_tokens 3)", "keep_end"),
        ({"max_tokens": 3, "overlong": "drop"}, "1 were longer than max_tokens 3", "keep_start"),
        (
            {"data": {"on_bad_row": "skip", "template": "{{ raise_exception('no') }}"}},
            "1 could not be used",
            "the chat template refuses this conversation: no",
        ),
    ],
)
def test_a_stage_in_which_nothing_remains_is_refused(
    tmp_path: Path, settings: dict[str, Any], message: str, hint: str
) -> None:
    path = write_rows(tmp_path / "a.jsonl", ROWS[1:2])
    with pytest.raises(UserError) as caught:
        run(path, **settings)
    assert caught.value.message.startswith("no sample is left to train on: 1 rows read, ")
    assert message in caught.value.message
    assert hint in str(caught.value.hint)
    assert files_in(tmp_path / "cache") == []
    with pytest.raises(UserError, match="no sample is left to train on: 0 rows read"):
        run(write_rows(tmp_path / "empty.jsonl", []))


BAD = [
    *texts("a"),
    "{",
    *texts("b"),
    {"txt": "c"},
    {"text": 3},
    *texts("\ud800"),
    *texts("d"),
]


def test_a_bad_row_stops_with_file_and_line(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", BAD)
    with pytest.raises(UserError) as caught:
        run(path)
    assert caught.value.message.startswith(f"{path}:2: not valid JSON")
    assert "on_bad_row: skip" in str(caught.value.hint)


def test_bad_rows_are_skipped_counted_and_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", BAD)
    prepared = run(path, data={"on_bad_row": "skip"})
    assert prepared.arrays["rows"].tolist() == [1, 3, 7]
    assert (prepared.report["rows"], prepared.report["skipped_rows"]) == (7, 4)
    assert [line.split(": ")[0] for line in prepared.skipped] == [
        f"{path}:{n}" for n in (2, 4, 5, 6)
    ]


def test_a_row_that_the_template_refuses_is_named(tmp_path: Path) -> None:
    twice = {"messages": [ROWS[0]["messages"][0]] * 2 + [{"role": "assistant", "content": "a"}]}
    path = write_rows(tmp_path / "a.jsonl", [ROWS[1], twice])
    with pytest.raises(UserError, match=r"a\.jsonl:2: .*roles must alternate"):
        run(path, shared("byte_level_begin"), data={"template": GEMMA})


def test_a_missing_column_is_named_with_its_file(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"txt": "a"}])
    with pytest.raises(UserError, match=r"a\.jsonl:1: there is no column `text`") as caught:
        run(path, data={"on_bad_row": "skip"})
    assert caught.value.exit_code == 2


def test_several_files_are_named_each(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write_rows(folder / "a.jsonl", texts("a", "b"))
    (folder / "b.csv").write_text("text\nc\n")
    totals: list[int | None] = []
    prepared = run(folder, progress=lambda done, total: totals.append(total))
    places = [prepared.place(i) for i in range(3)]
    assert places == [f"{folder}/a.jsonl:1", f"{folder}/a.jsonl:2", f"{folder}/b.csv:2"]
    assert [len(source["sha256"]) for source in prepared.sources] == [64, 64]
    assert totals == [None], "nobody counted the rows of the CSV file"


def test_whatever_interrupts_leaves_nothing_behind(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [*texts(*["a"] * 2500), {"text": 3}])

    def interrupt(done: int, total: int | None) -> None:
        assert files_in(tmp_path / "cache") != []
        if done == 2000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(path, progress=interrupt)
    assert files_in(tmp_path / "cache") == []
    with pytest.raises(UserError, match=r"a\.jsonl:2501"):
        run(path)
    assert files_in(tmp_path / "cache") == []


def test_data_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ROWS)

    def grow(done: int, total: int | None) -> None:
        with path.open("a") as file:
            file.write("\n")

    with pytest.raises(UserError, match="changed while it was read"):
        run(path, progress=grow)
    assert files_in(tmp_path / "cache") == []


def test_a_damaged_folder_is_made_again(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ROWS)
    first = run(path)
    before = tokens_of(first)
    for damage in ("tokens.int32", "offsets.int64", "manifest.json"):
        with (first.folder / damage).open("r+b") as file:
            file.truncate(40)
        assert open_prepared(first.key, tmp_path / "cache") is None
        assert tokens_of(run(path)) == before
    assert files_in(tmp_path / "cache") == [first.key]


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(UserError, match="could not be written") as caught:
        run(path, cache_folder=path / "below-a-file")
    assert "HONE_CACHE" in str(caught.value.hint)


def test_the_index_of_hashes_is_trusted_only_for_settled_files(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ROWS)
    run(path)
    index = tmp_path / "cache" / f"sources-{LAYOUT}.json"
    assert not index.exists(), "a file of this moment may change within its time stamp"
    os.utime(path, (1_000_000_000, 1_000_000_000))
    key = run(path).key
    assert list(json.loads(index.read_text())) == [str(path)]
    index.write_text("{ torn")
    assert run(path).key == key


PROCESS = """
import sys, time
from pathlib import Path
from tests.data.test_prepare import run
path, own, other = map(Path, sys.argv[1:])
def wait(done, total):
    own.touch()
    while not other.exists():
        time.sleep(0.01)
prepared = run(path, progress=wait)
print(prepared.key, len(prepared))
"""


def start(path: Path, own: Path, other: Path) -> subprocess.Popen[str]:
    """A process that prepares the file, and waits in the middle of it until `other` exists."""
    arguments = [sys.executable, "-c", PROCESS, str(path), str(own), str(other)]
    root = Path(__file__).parents[2]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=root)


def test_two_processes_at_once_both_end_well(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ROWS)
    first = start(path, tmp_path / "1", tmp_path / "2")
    second = start(path, tmp_path / "2", tmp_path / "1")
    outputs = [process.communicate(timeout=120)[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0)
    assert outputs[0] == outputs[1] == f"{run(path).key} 30\n"
    assert files_in(tmp_path / "cache") == [run(path).key]


def test_what_a_killed_process_leaves_is_ignored_and_removed_later(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ROWS)
    process = start(path, tmp_path / "begun", tmp_path / "never")
    try:
        while not (tmp_path / "begun").exists():
            assert process.poll() is None
            time.sleep(0.01)
        (left,) = files_in(tmp_path / "cache")
        age(tmp_path / "cache" / left)
        assert tokens_of(run(path)), "another one may prepare meanwhile"
        assert left in files_in(tmp_path / "cache"), "its owner lives"
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    key = run(path).key
    assert files_in(tmp_path / "cache") == sorted([left, key]), "what is there is not made again"
    age(tmp_path / "cache" / left)
    other = run(path, max_tokens=100).key
    assert files_in(tmp_path / "cache") == sorted([key, other])


def age(path: Path) -> None:
    os.utime(path, (time.time() - 3600, time.time() - 3600))


def test_held_out_samples_are_a_pure_function_of_seed_and_number(tmp_path: Path) -> None:
    prepared = run(write_rows(tmp_path / "a.jsonl", ROWS))
    training, held_out = split_held_out(prepared, 0.2, seed=1)
    assert (training.dtype, held_out.dtype) == (np.int64, np.int64)
    assert len(held_out) == 6
    assert sorted([*training, *held_out]) == list(range(30))
    assert training.tolist() == sorted(training)
    again = run(write_rows(tmp_path / "b.jsonl", ROWS[::-1]))
    split_held_out(again, 0.5, seed=7)
    assert split_held_out(again, 0.2, seed=1)[1].tolist() == held_out.tolist()
    assert split_held_out(again, 0.2, seed=2)[1].tolist() != held_out.tolist()
    assert split_held_out(again, 0.1, seed=1)[1].tolist() == held_out[:3].tolist()


@pytest.mark.parametrize(("share", "count"), [(1e-9, 1), (0.999, 29), (0.5, 15)])
def test_at_least_one_is_held_out_and_never_all(tmp_path: Path, share: float, count: int) -> None:
    prepared = run(write_rows(tmp_path / "a.jsonl", ROWS))
    assert len(split_held_out(prepared, share, seed=0)[1]) == count


def test_the_samples_of_a_row_are_held_out_together(tmp_path: Path) -> None:
    rows = texts(*("Hello there " * (1 + n % 4) for n in range(40)))
    prepared = run(write_rows(tmp_path / "a.jsonl", rows), max_tokens=5, overlong="split")
    numbers = prepared.arrays["rows"]
    assert len(prepared) > 60
    for seed in range(5):
        training, held_out = split_held_out(prepared, 0.3, seed)
        assert sorted([*training, *held_out]) == list(range(len(prepared)))
        assert training.tolist() == sorted(training)
        assert not set(numbers[training]) & set(numbers[held_out])
        assert len(set(numbers[held_out])) == 12
    parts = [prepared.part(i) for i in range(len(prepared))]
    sizes = np.bincount(numbers)[1:]
    assert parts == [(n + 1, size) for size in sizes for n in range(size)]


def test_a_single_sample_cannot_be_divided(tmp_path: Path) -> None:
    prepared = run(write_rows(tmp_path / "a.jsonl", ROWS[:1]))
    with pytest.raises(UserError, match="only 1 sample"):
        split_held_out(prepared, 0.1, seed=0)


def test_the_split_stays_what_it_is(tmp_path: Path) -> None:
    prepared = run(write_rows(tmp_path / "a.jsonl", ROWS))
    assert split_held_out(prepared, 0.2, seed=0)[1].tolist() == [19, 20, 7, 1, 8, 28]


def test_plain_text_uses_no_template(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", texts("Hello"))
    broken = run(path, data={"template": "{{ raise_exception('never rendered') }}"})
    assert tokens_of(broken) == tokens_of(run(path))
    assert run(path, data={"template": ZEPHYR}).plain
    assert not run(write_rows(tmp_path / "b.jsonl", ROWS)).plain


MANY = """
import json, sys
from pathlib import Path
import torch, transformers
from hone.data.prepare import split_held_out
from tests.data.test_prepare import run
path = Path(sys.argv[1])
with path.open("w") as file:
    for i in range(200_000):
        file.write(json.dumps({"prompt": f"{i} plus one?", "completion": f" {i + 1}"}) + "\\n")
prepared = run(path)
split_held_out(prepared, 0.01, 0)
prepared.sample(199_999)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(len(prepared), int(peak.split()[1]) * 1024)
"""


@pytest.mark.slow
def test_rows_are_streamed(tmp_path: Path) -> None:
    """Even if all of it grew with the rows, a million of them would stay under 2 GB."""
    arguments = [sys.executable, "-c", MANY, str(tmp_path / "a.jsonl")]
    root = Path(__file__).parents[2]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=root, check=True)
    count, peak_bytes = map(int, done.stdout.split())
    assert count == 200_000
    assert peak_bytes < 2e9 / 5
