"""Two files out of one: every kind of file comes back whole, and nothing is overwritten."""

import bz2
import csv
import gzip
import io
import json
import lzma
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from hone.data.rows import Row
from hone.data.sources import open_source
from hone.data.split import split
from hone.data.validate import validate
from hone.errors import UserError
from hone.recipe.data import Data
from tests.recipe.test_every_field import write_hub_data
from tests.workbench import hone, kill, start

ROWS = [
    {"prompt": f'{n} é, "quoted"\nand {n % 7}', "completion": "x" * (n % 5) + f" {n}"}
    for n in range(60)
]
ROWS += ROWS[:9]  # some of them stand there twice

quick = pytest.mark.quick


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows as a file of the kind that the name says."""
    name = path.name
    if ".parquet" in name:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=10)
        return path
    if ".csv" in name or ".tsv" in name:
        text = io.StringIO()
        delimiter = "\t" if ".tsv" in name else ","
        writer = csv.writer(text, delimiter=delimiter, lineterminator="\r\n")
        writer.writerows([rows[0].keys(), *(row.values() for row in rows)])
        content = text.getvalue().encode()
    elif ".json" in name and ".jsonl" not in name:
        content = json.dumps(rows, indent=1).encode()
    elif ".txt" in name:
        content = "".join(row["completion"] + "\n" for row in rows).encode()
    else:
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    packers = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    path.write_bytes(packers.get(path.suffix, bytes)(content))
    return path


def read(path: Path) -> list[Any]:
    rows = list(open_source(str(path)).rows())
    assert all(isinstance(row, Row) for row in rows)
    return [row.values for row in rows if isinstance(row, Row)]


KINDS = [
    "jsonl",
    "json",
    "csv",
    "tsv",
    "parquet",
    "txt",
    "jsonl.gz",
    "csv.bz2",
    "json.xz",
    "ndjson",
]


@quick
@pytest.mark.parametrize("kind", KINDS)
def test_both_files_together_are_the_source(tmp_path: Path, kind: str) -> None:
    source = write(tmp_path / f"a.b.{kind}", ROWS)
    made = split(str(source), 0.25, 3)
    assert [path.name for path in made.paths] == [f"a.b.train.{kind}", f"a.b.evaluation.{kind}"]
    train, evaluation = map(read, made.paths)
    everything = read(source)
    assert (len(train), len(evaluation)) == made.rows
    assert abs(len(evaluation) - 0.25 * len(everything)) <= 1
    for side in (train, evaluation):
        rest = iter(everything)
        assert all(row in rest for row in side), "the order is that of the source"
    counted = Counter(json.dumps(row) for row in everything)
    assert Counter(json.dumps(row) for row in train + evaluation) == counted
    assert not {json.dumps(row) for row in train} & {json.dumps(row) for row in evaluation}
    assert made.repeated == len(everything) - len(counted) == 9
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [source.name, *(path.name for path in made.paths)]
    ), "nothing else is left"


@quick
def test_a_row_has_the_same_side_in_every_kind_of_file(tmp_path: Path) -> None:
    held_out = set()
    for kind in ("jsonl", "json", "csv", "parquet"):
        rows = ROWS if kind != "json" else ROWS[::-1]
        made = split(str(write(tmp_path / f"a.{kind}", rows)), 0.25, 3)
        held_out.add(tuple(sorted(row["prompt"] for row in read(made.paths[1]))))
    assert len(held_out) == 1
    other = split(str(tmp_path / "a.jsonl"), 0.25, 4, force=True)
    assert tuple(sorted(row["prompt"] for row in read(other.paths[1]))) not in held_out


@quick
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "jsonl.gz"])
def test_the_same_rows_give_the_same_bytes(tmp_path: Path, kind: str) -> None:
    source = write(tmp_path / f"a.{kind}", ROWS)
    first = [path.read_bytes() for path in split(str(source), 0.1, 0).paths]
    again = split(str(source), 0.1, 0, force=True)
    assert [path.read_bytes() for path in again.paths] == first


@quick
def test_lines_are_copied_byte_for_byte(tmp_path: Path) -> None:
    lines = [b'{"text":"%d"   }\r\n' % n if n % 2 else b'{ "text": "%d"}\n' % n for n in range(40)]
    content = b"\xef\xbb\xbf" + b"\n  \n".join(lines).rstrip(b"\r\n")
    (tmp_path / "a.jsonl").write_bytes(content)
    made = split(str(tmp_path / "a.jsonl"), 0.3, 0)
    written = [path.read_bytes().splitlines(keepends=True) for path in made.paths]
    expected = [*lines[:-1], lines[-1].rstrip(b"\r\n") + b"\n"]
    assert sorted(written[0] + written[1]) == sorted(expected)
    fields = [b"a,b", *(b'"%d\n""%d""", %d' % (n, n, n) for n in range(30))]
    (tmp_path / "a.csv").write_bytes(b"\r\n".join(fields) + b"\r\n")
    made = split(str(tmp_path / "a.csv"), 0.3, 0)
    parts = [path.read_bytes().split(b"\r\n") for path in made.paths]
    assert [part[0] for part in parts] == [b"a,b", b"a,b"]
    assert sorted(parts[0][1:-1] + parts[1][1:-1]) == sorted(fields[1:])


@quick
def test_a_new_row_moves_hardly_any_other(tmp_path: Path) -> None:
    rows = [{"text": str(n)} for n in range(400)]
    held_out = []
    for count in (400, 390):
        made = split(str(write(tmp_path / f"{count}.jsonl", rows[:count])), 0.1, 0)
        held_out.append({row["text"] for row in read(made.paths[1])})
    assert len(held_out[0] ^ held_out[1]) <= 6


@quick
def test_a_folder_becomes_json_lines(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    write(folder / "a.csv", ROWS[:20])
    write(folder / "b.parquet", ROWS[20:40])
    half = {"prompt": "\ud800 half", "completion": "1"}
    (folder / "c.jsonl").write_text(json.dumps(half) + "\n")
    made = split(str(folder), 0.25, 0, folder=tmp_path)
    assert [path.name for path in made.paths] == ["parts.train.jsonl", "parts.evaluation.jsonl"]
    assert sum(made.rows) == 41
    together = read(made.paths[0]) + read(made.paths[1])
    assert sorted(row["prompt"] for row in together) == sorted(
        row["prompt"] for row in [*ROWS[:40], half]
    )


@quick
def test_nothing_is_overwritten(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "a.evaluation.jsonl").write_text("mine")
    with pytest.raises(UserError, match=r"a\.evaluation\.jsonl` exists already"):
        split(str(source), 0.1, 0)
    assert (tmp_path / "a.evaluation.jsonl").read_text() == "mine"
    assert not (tmp_path / "a.train.jsonl").exists()
    split(str(source), 0.1, 0, force=True)
    assert (tmp_path / "a.evaluation.jsonl").read_text() != "mine"
    with pytest.raises(UserError, match="is the file that is split"):
        split(str(source), 0.1, 0, names=("a.jsonl", "b.jsonl"), force=True)
    with pytest.raises(UserError, match="two different names"):
        split(str(source), 0.1, 0, names=("b.jsonl", "b.jsonl"))
    with pytest.raises(UserError, match=r"is not the name of a `\.jsonl` file"):
        split(str(source), 0.1, 0, names=("b.jsonl", "sub/c.jsonl"))
    with pytest.raises(UserError, match="there is no folder"):
        split(str(source), 0.1, 0, folder=tmp_path / "nowhere")


@quick
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"text": \n', r"a\.jsonl:2: not valid JSON"),
        ('{"text": "a"}\n{"text": "a"}\n', "no two different ones"),
        ("", "0 row"),
    ],
)
def test_what_cannot_be_split_leaves_nothing(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        split(str(tmp_path / "a.jsonl"), 0.5, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


@quick
def test_a_file_that_changes_while_it_is_split_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [{"text": str(n)} for n in range(3000)])

    def change(done: int, total: int | None) -> None:
        if total:  # the second reading
            with source.open("a") as file:
                file.write('{"text": "more"}\n')

    with pytest.raises(UserError, match="changed while it was split"):
        split(str(source), 0.5, 0, progress=change)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


@quick
def test_a_data_set_of_the_hub_becomes_json_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_hub_data(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hub")
    monkeypatch.chdir(tmp_path)
    made = split("acme/tiny", 0.25, 0)
    assert [str(path) for path in made.paths] == ["tiny.train.jsonl", "tiny.evaluation.jsonl"]
    assert made.rows == (12, 4)
    parts = [Data(path=str(path), format="text") for path in made.paths]
    found = validate([Data(path="acme/tiny", format="text")], parts)
    assert found.ok and found.trained is not None and found.trained.count == 16


@pytest.mark.e2e
def test_a_stopped_split_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": str(n)}) + "\n" for n in range(300_000)))
    process = start(tmp_path, "data", "split", "a.jsonl")
    deadline = time.monotonic() + 120
    while process.poll() is None and not (tmp_path / ".a.train.jsonl.new").exists():
        assert time.monotonic() < deadline, "it never began to write"
        time.sleep(0.005)
    printed = kill(process, signal.SIGINT)
    assert process.returncode == 130, printed
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["a.jsonl"]
    hone(tmp_path, "data", "split", "a.jsonl")
    assert (tmp_path / "a.evaluation.jsonl").read_bytes().count(b"\n") == 15_000


MEASURED = """
import resource, sys
from hone.data.split import split
from hone.data.validate import validate
from hone.recipe.data import Data
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
made = split(sys.argv[1], 0.05, 0)
found = validate([Data(path=str(made.paths[0]))], [Data(path=str(made.paths[1]))])
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(sum(made.rows), found.ok, found.trained.count, (after - before) // 1024)
"""


def test_a_large_file_is_read_a_row_at_a_time(tmp_path: Path) -> None:
    """60 MB with less than a third of it in memory."""
    path = tmp_path / "large.jsonl"
    with path.open("w") as file:
        for n in range(30_000):
            file.write(json.dumps({"text": f"{n} " + "word " * 400}) + "\n")
    assert path.stat().st_size > 60_000_000
    command = [sys.executable, "-c", MEASURED, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows, ok, trained, megabytes = done.stdout.split()
    assert (rows, ok, trained) == ("30000", "True", "0")
    assert int(megabytes) < 20, f"{megabytes} MB more than before"
