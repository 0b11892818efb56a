"""Whatever stands in a data file: counts or a UserError, soon, and nothing left in the cache.

Right files of every kind are broken at random, byte by byte and value by value, and given to
`prepare`, which reads, renders, tokenises and writes.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import random
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hone.data.prepare import prepare
from hone.data.sources import READERS
from hone.errors import UserError
from hone.recipe.data import Data
from tests.data.tokenizers import shared
from tests.fuzz import Change, broken, changed, changes, command, examples, soon

CHATS = [
    {"messages": [{"role": "user", "content": f"é {n}?"}, {"role": "assistant", "content": "\n"}]}
    for n in range(3)
]
PAIRS = [{"prompt": f"{n} + {n} =", "completion": f" {2 * n}"} for n in range(3)]
TEXTS = [{"text": f'Line {n}\nand, so "on"'} for n in range(3)]
values = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([10**400, "", "\x00", "\ud800", "\r", "a" * 9000])
    | st.text(max_size=20)
    | st.sampled_from(["system", "user", "assistant", "tool", "content", "role", "text"])
    | st.builds(dict)
    | st.lists(st.text(max_size=3) | st.none(), max_size=3)
    | st.dictionaries(st.sampled_from(["role", "content", "x"]), st.text(max_size=5), max_size=3)
)
byte_changes = st.lists(
    st.tuples(st.integers(0, 10_000), st.sampled_from(["set", "cut", "insert"]), st.binary()),
    max_size=4,
)


def as_lines(rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def as_csv(rows: Any, delimiter: str = ",") -> bytes:
    file = io.StringIO(newline="")
    table = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
    table.writeheader()
    table.writerows(rows)
    return file.getvalue().encode()


def as_parquet(rows: Any) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


RIGHT: dict[str, list[bytes]] = {
    ".jsonl": [as_lines(rows) for rows in (CHATS, PAIRS, TEXTS)],
    ".ndjson": [as_lines(CHATS)],
    ".json": [json.dumps(rows).encode() for rows in (CHATS, {"data": PAIRS, "n": 3})],
    ".csv": [as_csv(rows) for rows in (PAIRS, TEXTS)],
    ".tsv": [as_csv(rows, delimiter="\t") for rows in (PAIRS, TEXTS)],
    ".txt": [b"One line\n\nand another\n"],
    ".parquet": [as_parquet(rows) for rows in (CHATS, PAIRS, TEXTS)],
}
assert RIGHT.keys() == READERS.keys()
RIGHT |= {
    ".jsonl.gz": [gzip.compress(content, mtime=0) for content in RIGHT[".jsonl"]],
    ".csv.bz2": [bz2.compress(content) for content in RIGHT[".csv"]],
    ".json.xz": [lzma.compress(content) for content in RIGHT[".json"]],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


def prepare_or_refuse(folder: Path, content: bytes, suffix: str, on_bad_row: Any) -> bool:
    """True where samples come out, with counts that agree with them; then a second call opens what
    the first one wrote.
    """
    path, cache = folder / f"rows{suffix}", folder / "cache"
    path.write_bytes(content)
    before = set(cache.glob("*"))

    def work() -> Any:
        return prepare(
            Data(path=str(path), on_bad_row=on_bad_row),
            shared("byte_level"),
            max_tokens=64,
            overlong="keep_start",
            train_on="completions",
            cache_folder=cache,
        )

    with soon():
        try:
            prepared = work()
        except UserError as error:
            assert error.message.strip()
            error.message.encode("utf-8", "replace")
            left = {path for path in set(cache.glob("*")) - before if path.is_dir()}
            assert left == set(), "a refused file leaves nothing"
            return False
    assert len(prepared) == prepared.report["samples"] > 0
    assert prepared.report["tokens"] == int(prepared.lengths.sum())
    assert work().key == prepared.key
    assert all((entry / "manifest.json").exists() for entry in cache.iterdir() if entry.is_dir())
    return True


@pytest.mark.parametrize("suffix", RIGHT)
def test_what_is_broken_is_right_before(folder: Path, suffix: str) -> None:
    assert all(prepare_or_refuse(folder, content, suffix, "stop") for content in RIGHT[suffix])


@examples(50)
@given(st.sampled_from(sorted(RIGHT)), st.binary(max_size=300), st.sampled_from(["stop", "skip"]))
def test_any_bytes(folder: Path, suffix: str, content: bytes, on_bad_row: str) -> None:
    prepare_or_refuse(folder, content, suffix, on_bad_row)


@examples(80)
@given(
    st.sampled_from(sorted(RIGHT)),
    st.integers(0, 5),
    byte_changes,
    st.sampled_from(["stop", "skip"]),
)
def test_broken_bytes(
    folder: Path, suffix: str, which: int, made: list[tuple[int, str, bytes]], on_bad_row: str
) -> None:
    content = RIGHT[suffix][which % len(RIGHT[suffix])]
    prepare_or_refuse(folder, broken(content, made), suffix, on_bad_row)


@examples(80)
@given(
    st.sampled_from([".json", ".jsonl"]),
    st.sampled_from([CHATS, PAIRS, TEXTS]),
    changes(values),
    st.sampled_from(["stop", "skip"]),
)
def test_changed_rows(
    folder: Path, suffix: str, rows: Any, made: list[Change], on_bad_row: str
) -> None:
    rows = changed(rows, made)
    content = as_lines(rows) if suffix == ".jsonl" else json.dumps(rows).encode()
    prepare_or_refuse(folder, content, suffix, on_bad_row)


@examples(60)
@given(st.sampled_from(sorted(RIGHT)), st.integers(0, 5), byte_changes)
def test_broken_files_are_validated(
    folder: Path, suffix: str, which: int, made: list[tuple[int, str, bytes]]
) -> None:
    path = folder / f"rows{suffix}"
    path.write_bytes(broken(RIGHT[suffix][which % len(RIGHT[suffix])], made))
    command("data", "validate", str(path))
    command("data", "validate", str(path), "--json")


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize(
    "value",
    ["1" * 5000, "[" * 100_000, '{"a":' * 100_000, '"\\ud800"', "NaN", '"' + "a" * 300_000 + '"'],
    ids=["digits", "lists", "objects", "surrogate", "nan", "long"],
)
@pytest.mark.parametrize("on_bad_row", ["stop", "skip"])
def test_values_that_parsers_choke_on(
    folder: Path, suffix: str, value: str, on_bad_row: str
) -> None:
    row = '{"text": "before", "more": %s}'
    lines = [row % 1, row % value, f'{{"text": {value}}}']
    content = "\n".join(lines) if suffix == ".jsonl" else f"[{', '.join(lines)}]"
    prepare_or_refuse(folder, content.encode(), suffix, on_bad_row)


def test_parquet_values_that_python_cannot_hold(folder: Path) -> None:
    far = pyarrow.array([2**62, 1], pyarrow.timestamp("us"))
    table = pyarrow.table({"text": ["a", "b"], "when": far})
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file)
    assert prepare_or_refuse(folder, file.getvalue(), ".parquet", "skip")
    assert not prepare_or_refuse(folder, file.getvalue(), ".parquet", "stop")


@examples(50)
@given(st.integers(0, 2**32))
def test_parquet_with_a_few_bytes_of_its_pages_changed(folder: Path, seed: int) -> None:
    draw = random.Random(seed)
    content = bytearray(RIGHT[".parquet"][draw.randrange(3)])
    for _ in range(draw.randint(1, 6)):
        content[draw.randrange(4, len(content) - 8)] = draw.randrange(256)
    prepare_or_refuse(folder, bytes(content), ".parquet", "stop")
