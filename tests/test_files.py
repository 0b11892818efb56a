"""Files appear whole or not at all."""

import subprocess
import sys
from pathlib import Path

import pytest

from hone.files import append_line, read_json, read_json_lines, write_json, write_whole

pytestmark = pytest.mark.quick

# Rewrites a file over and over with contents of one letter each, until it is killed.
REWRITE = """
import itertools, sys
from pathlib import Path
from hone.files import write_whole
for number in itertools.count():
    write_whole(Path(sys.argv[1]), chr(97 + number % 26) * 100_000)
    if number == 3:
        print("ready", flush=True)
"""


def test_a_kill_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    command = [sys.executable, "-c", REWRITE, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    content = path.read_text()
    assert content == content[0] * 100_000


def test_a_leftover_of_a_killed_writer_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".status.json.new").write_text("half of a longer fi")
    write_whole(tmp_path / "status.json", "whole")
    assert [file.name for file in tmp_path.iterdir()] == ["status.json"]
    assert (tmp_path / "status.json").read_text() == "whole"


def test_json_comes_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"learning_rate": 2e-4, "name": "Zoë"})
    assert read_json(tmp_path / "a.json") == {"learning_rate": 2e-4, "name": "Zoë"}


@pytest.mark.parametrize("content", [b"", b"{", b"\x00\x00", b"[1]"])
def test_what_is_no_table_reads_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    assert read_json(tmp_path / "a.json") is None
    assert read_json(tmp_path / "b.json") is None


def test_lines_after_a_torn_one_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    append_line(path, '{"n": 1}')
    path.write_bytes(path.read_bytes() + b'{"n":')
    append_line(path, '{"n": 2}')
    assert read_json_lines(path) == [{"n": 1}, {"n": 2}]
    assert read_json_lines(tmp_path / "none.jsonl") == []
