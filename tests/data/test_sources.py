"""Reading rows: every kind of file, exact line numbers, faults with their place."""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from hone.data.json_stream import JsonFault, read_objects
from hone.data.rows import BadRow, Row
from hone.data.sources import has_changed, hash_files, open_source
from hone.errors import UserError

pytestmark = pytest.mark.quick


def read(path: Path) -> list[tuple[int, Any]]:
    """(line, values) of good rows, (line, message) of bad ones."""
    return [
        (row.number, row.values if isinstance(row, Row) else row.message)
        for row in open_source(str(path)).rows()
    ]


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_json_lines_with_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    text = '\ufeff{"text": "a"}\n\n  \n{"text": "b\u2028c"}\r\n{"text": "d"}'
    assert read(write(tmp_path / "a.jsonl", text)) == [
        (1, {"text": "a"}),
        (4, {"text": "b\u2028c"}),
        (5, {"text": "d"}),
    ]


def test_bad_lines_are_named_and_the_others_are_read(tmp_path: Path) -> None:
    lines = [b'{"text": 1}', b'{"text": ', b"[1]", b"3", b'{"text": "\xff"}', b'{"a": 2}']
    (one, two, three, four, five, six) = read(write(tmp_path / "a.jsonl", b"\n".join(lines)))
    assert (one, six) == ((1, {"text": 1}), (6, {"a": 2}))
    assert two == (2, "not valid JSON: Expecting value at column 10")
    assert three == (3, "expected an object with columns as keys, found a list")
    assert four == (4, "expected an object with columns as keys, found a number")
    assert five == (5, "not UTF-8 text at byte 11 of the line")


def test_a_line_nested_too_deeply_is_a_bad_row(tmp_path: Path) -> None:
    deep = b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    ((number, message),) = read(write(tmp_path / "a.jsonl", deep))
    assert number == 1 and "not readable as JSON" in message


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("wrap", [False, True])
def test_json_files(tmp_path: Path, indent: int | None, wrap: bool) -> None:
    rows = [{"text": "a", "n": {"b": [1, 2]}}, {"text": "ü\n"}, {"text": "c"}]
    value = {"version": {"major": 1}, "data": rows, "note": "x"} if wrap else rows
    found = read(write(tmp_path / "a.json", json.dumps(value, indent=indent)))
    assert [values for _, values in found] == rows
    if indent:
        lines = json.dumps(value, indent=indent).splitlines()
        margin = " " * (4 if wrap else 2)
        assert [n for n, _ in found] == [
            i for i, line in enumerate(lines, 1) if line == margin + "{"
        ]


def test_json_lines_in_a_json_file(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.json", '{"text": "a"}\n{"text": "b"}\n')) == [
        (1, {"text": "a"}),
        (2, {"text": "b"}),
    ]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ('[{"a": 1},\n {"a": }]', 2, "not valid JSON"),
        ('[{"a": 1}\n {"a": 2}]', 2, "expected `,` or `]`, found `{`"),
        ('[{"a": 1},', 1, "not valid JSON"),
        ('[{"a": 1}]\n x', 2, "text after the end"),
        ('{"a": 1}', 1, "found no list"),
        ('{"a": [],\n "b": []}', 2, "a second list"),
        ("3", 1, "expected `[` or `{`, found `3`"),
        ("", 1, "the end of the file"),
        ("[" * 100_000, 1, "too deeply"),
    ],
)
def test_broken_json_is_named_with_its_line(
    tmp_path: Path, text: str, line: int, message: str
) -> None:
    path = write(tmp_path / "a.json", text)
    with pytest.raises(UserError) as caught:
        read(path)
    assert caught.value.message.startswith(f"{path}:{line}: ")
    assert message in caught.value.message


def test_json_is_the_same_however_it_is_cut_into_pieces() -> None:
    generator = random.Random(0)
    rows = [
        {"t": "é\n\"'\\😀" * generator.randint(0, 3), "n": -1.5e-7, "ok": [True, None, {}], "i": i}
        for i in range(20)
    ]
    for indent in (None, 1):
        text = json.dumps({"x": 12345, "rows": rows}, indent=indent)
        whole = list(read_objects(io.StringIO(text)))
        assert [value for _, value in whole] == rows
        for piece in (1, 2, 3, 7, 64):
            assert list(read_objects(io.StringIO(text), piece)) == whole


def test_a_fault_early_in_a_large_json_file_is_found_without_reading_on() -> None:
    file = io.StringIO('[{"a": oops}, ' + '{"a": 1}, ' * 100_000)
    with pytest.raises(JsonFault, match="not valid JSON"):
        list(read_objects(file, piece=100))
    assert file.tell() < 1000


def test_a_json_file_is_not_held_in_memory(tmp_path: Path) -> None:
    row = json.dumps({"text": "x" * 1000})
    path = write(tmp_path / "a.json", "[" + ",\n".join([row] * 20_000) + "]")
    rows = open_source(str(path)).rows()
    tracemalloc.start()
    try:
        count = sum(1 for _ in rows)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 20_000
    assert peak < path.stat().st_size / 2


def test_csv_with_lines_inside_of_fields(tmp_path: Path) -> None:
    text = 'text,label\r\n"a\nb",1\r\n"say ""hi""",2\r\n\r\nc,3,4\r\nd,5\r\n'
    assert read(write(tmp_path / "a.csv", "\ufeff" + text)) == [
        (2, {"text": "a\nb", "label": "1"}),
        (4, {"text": 'say "hi"', "label": "2"}),
        (6, "expected 2 fields as in the header, found 3"),
        (7, {"text": "d", "label": "5"}),
    ]


def test_csv_faults(tmp_path: Path) -> None:
    rows = read(write(tmp_path / "a.csv", 'text\n"a"b\n"open\nc\n'))
    assert [number for number, _ in rows] == [2, 3]
    assert all("not valid CSV" in message for _, message in rows)
    with pytest.raises(UserError, match="`a` stands in the header more than once"):
        read(write(tmp_path / "b.csv", "a,b,a\n1,2,3\n"))
    with pytest.raises(UserError, match="not UTF-8"):
        read(write(tmp_path / "c.csv", b"a\n\xff\xfe\n"))


def test_csv_takes_long_fields(tmp_path: Path) -> None:
    long = "x" * 200_000  # the csv module's own limit is 131,072
    assert read(write(tmp_path / "a.csv", f"text\n{long}\n")) == [(2, {"text": long})]


def test_parquet(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": str(i)}], "n": i} for i in range(700)]
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=300)
    assert read(path) == list(enumerate(rows, start=1))
    assert open_source(str(path)).place(0, 7) == f"{path} row 7"
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        read(write(tmp_path / "b.parquet", "no parquet"))


def test_parquet_values_that_python_cannot_hold_are_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    when = pyarrow.array([1, 2**62, 2], pyarrow.timestamp("us"))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b", "c"], "when": when}), path)
    first, bad, last = open_source(str(path)).rows()
    assert isinstance(first, Row) and isinstance(last, Row)
    assert (first.values["text"], last.values["text"], last.number) == ("a", "c", 3)
    assert bad == BadRow(0, 2, "a value cannot be read: date value out of range")


def test_a_parquet_file_whose_footer_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), path)
    content = bytearray(path.read_bytes())
    content[-40:-8] = b"\xff" * 32
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        hash_files([path], {})
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        list(open_source(str(path)).rows())


def test_a_number_with_more_digits_than_python_takes(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"a": 1},\n{"a": %s}]' % ("1" * 5000))  # braces
    rows = open_source(str(path)).rows()
    assert next(rows) == Row(0, 1, {"a": 1})
    with pytest.raises(UserError, match=r"a.json:2: not readable: .*4300 digits"):
        next(rows)


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    write(tmp_path / "b.jsonl", '{"text": "b"}\n')
    write(tmp_path / "a.csv", "text\na\n")
    write(tmp_path / "sub" / "c.json", '[{"text": "c"}]')
    for ignored in ("README.md", "notes.txt", ".hidden/d.jsonl", "dataset_infos.json"):
        write(tmp_path / ignored, '{"text": "no"}')
    source = open_source(str(tmp_path))
    rows = [row for row in source.rows() if isinstance(row, Row)]
    assert [row.values["text"] for row in rows] == ["a", "b", "c"]
    assert source.place(rows[1].source, rows[1].number) == f"{tmp_path / 'b.jsonl'}:1"
    (tmp_path / "texts").mkdir()
    write(tmp_path / "texts" / "a.txt", "only text\n")
    assert [row.number for row in open_source(str(tmp_path / "texts")).rows()] == [1]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no data files in"):
        open_source(str(tmp_path / "empty"))


def test_what_is_not_there_is_named_with_what_is(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", "")
    with pytest.raises(UserError, match="there is no file or folder") as caught:
        open_source(str(tmp_path / "trian.jsonl"))
    assert caught.value.hint == f"did you mean `{tmp_path / 'train.jsonl'}`?"
    assert caught.value.exit_code == 2
    with pytest.raises(UserError, match=r"ends in `\.doc`; expected a file of kind \.jsonl"):
        open_source(str(write(tmp_path / "a.doc", "a")))
    with pytest.raises(UserError, match="nor a folder"):
        open_source(str(tmp_path / "nowhere" / "a.jsonl"))


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    with pytest.raises(UserError, match=r"there is no file|cannot be read"):
        read(tmp_path / "loop.jsonl")


def test_hashes_are_of_the_content_and_are_not_taken_twice(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "{}\n{}\n")
    (first,) = hash_files([path], {})
    assert hash_files([write(tmp_path / "b.jsonl", "{}\n{}")], {})[0].rows == 2
    assert (first.size, first.rows, len(first.sha256)) == (6, 2, 64)
    write(path, "[]\n[]\n")
    os.utime(path, ns=(first.mtime_ns, first.mtime_ns))
    assert hash_files([path], {str(path): first}) == [first], "trusted by size and time"
    assert not has_changed(first)
    os.utime(path, ns=(first.mtime_ns, first.mtime_ns + 1))
    assert hash_files([path], {str(path): first})[0].sha256 != first.sha256
    assert has_changed(first)


def test_bad_rows_are_told_from_good_ones() -> None:
    assert BadRow(0, 1, "x") != Row(0, 1, {})


def test_tab_separated_values_and_lines_of_text(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.tsv", 'a\tb\n1,5\t"x\ny"\n2\n3\t4\n')) == [
        (2, {"a": "1,5", "b": "x\ny"}),
        (4, "expected 2 fields as in the header, found 1"),
        (5, {"a": "3", "b": "4"}),
    ]
    lines = read(write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\n\n two \n\xff\nthree"))
    assert lines == [
        (1, {"text": "one"}),
        (3, {"text": " two "}),
        (4, "not UTF-8 text at byte 1 of the line"),
        (5, {"text": "three"}),
    ]


PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"text": "1"}\n{"text": "2"}\n{"text": \n'),
        ("a.json", '[{"text": "1"},\n{"text": "2"}]'),
        ("a.json", '{"text": "1"}\n{"text": "2"}\n'),
        ("a.csv", "text\n1\n2\n1,2\n"),
        ("a.tsv", "text\n1\n2\n"),
        ("a.txt", "1\n2\n"),
    ],
)
def test_a_packed_file_is_read_as_what_it_holds(
    tmp_path: Path, suffix: str, name: str, text: str
) -> None:
    packed = tmp_path / f"{name}{suffix}"
    packed.write_bytes(PACKERS[suffix](text.encode()))
    expected = read(write(tmp_path / name, text))
    assert len(expected) >= 2 and read(packed) == expected
    assert open_source(str(packed)).place(0, 2) == f"{packed}:2"
    whole = packed.read_bytes()
    for broken in (whole[:-8], whole[:12] + b"\x99\x99" + whole[14:], b"not packed"):
        packed.write_bytes(broken)
        with pytest.raises(UserError, match=r"cannot be (read|unpacked)"):
            read(packed)
