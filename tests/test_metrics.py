"""metrics.jsonl: rows survive kills, resumed rows replace those they repeat."""

import math
from pathlib import Path

import pytest

from hone.errors import UserError
from hone.metrics import (
    TAIL_BYTES,
    MetricsWriter,
    canonical_metrics,
    latest_row,
    read_metrics,
    read_new_rows,
)
from tests.workbench import fill

pytestmark = pytest.mark.quick


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "stages" / "1-sft" / "metrics.jsonl"


def write_steps(path: Path, first: int, last: int, **fields: object) -> None:
    with MetricsWriter(path) as writer:
        for step in range(first, last + 1):
            writer.write({"step": step, "loss": 10.0 - step, **fields})


def test_rows_come_back_as_they_were_written(path: Path) -> None:
    with MetricsWriter(path) as writer:
        writer.write({"step": 1, "loss": 1.9300000000000002, "tokens": 8121})
        writer.write({"step": 1, "split": "evaluation", "loss": 2.0})
        writer.sync()
    assert read_metrics(path) == [
        {"step": 1, "loss": 1.9300000000000002, "tokens": 8121},
        {"step": 1, "split": "evaluation", "loss": 2.0},
    ]


def test_no_file_has_no_rows(path: Path) -> None:
    assert (read_metrics(path), latest_row(path), canonical_metrics(path)) == ([], None, b"")


def test_a_row_is_on_file_as_soon_as_it_is_written(path: Path) -> None:
    writer = MetricsWriter(path)
    writer.write({"step": 1, "loss": 2.0})
    assert read_metrics(path) == [{"step": 1, "loss": 2.0}]
    writer.close()


def test_what_json_lacks_becomes_null(path: Path) -> None:
    with MetricsWriter(path) as writer:
        writer.write({"step": 1, "loss": math.nan, "grad_norm": math.inf})
    assert read_metrics(path) == [{"step": 1, "loss": None, "grad_norm": None}]


def test_a_resumed_stage_replaces_the_rows_after_its_checkpoint(path: Path) -> None:
    write_steps(path, 1, 7, attempt=1)
    with MetricsWriter(path) as writer:
        writer.resumed_from(4)
    write_steps(path, 5, 6, attempt=2)
    rows = [(row["step"], row["attempt"]) for row in read_metrics(path)]
    assert rows == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2), (6, 2)]


def test_the_last_row_of_a_step_and_split_wins(path: Path) -> None:
    with MetricsWriter(path) as writer:
        writer.write({"step": 2, "split": "evaluation", "loss": 9.0})
        writer.write({"step": 2, "loss": 8.0})
        writer.write({"step": 2, "split": "evaluation", "loss": 7.0})
    assert [(row.get("split"), row["loss"]) for row in read_metrics(path)] == [
        (None, 8.0),
        ("evaluation", 7.0),
    ]


@pytest.mark.parametrize("torn", [b'{"step": 3, "lo', b"\x00\x00\x00", b"\x00\x00\n", b"\n"])
def test_a_torn_last_line_is_cut_off_and_left_out(path: Path, torn: bytes) -> None:
    write_steps(path, 1, 2)
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert [row["step"] for row in read_metrics(path)] == [1, 2]
    write_steps(path, 3, 3)
    assert path.read_bytes().startswith(whole + b'{"step": 3')
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]


def test_a_broken_line_among_others_is_named(path: Path) -> None:
    write_steps(path, 1, 1)
    path.write_bytes(b"{broken\n" + path.read_bytes())
    with pytest.raises(UserError, match="broken"):
        read_metrics(path)


@pytest.mark.parametrize("num_rows", [5, 3000])
def test_the_latest_row_of_each_split(path: Path, num_rows: int) -> None:
    with MetricsWriter(path) as writer:
        writer.write({"step": 0, "split": "evaluation", "loss": 20.0})
        for step in range(1, num_rows + 1):
            writer.write({"step": step, "loss": 10.0, "learning_rate": 0.0001234})
        if num_rows == 3000:
            assert path.stat().st_size > 2 * TAIL_BYTES
        writer.resumed_from(num_rows - 2)
    assert latest_row(path) == {"step": num_rows - 2, "loss": 10.0, "learning_rate": 0.0001234}
    assert latest_row(path, "evaluation") == {"step": 0, "split": "evaluation", "loss": 20.0}


def test_the_canonical_view_is_the_same_for_an_interrupted_run(tmp_path: Path) -> None:
    straight, resumed, other = (tmp_path / f"{name}.jsonl" for name in ("a", "b", "c"))
    write_steps(straight, 1, 6, time_s=1.0, step_s=0.5, tokens_per_s=3.0, peak_memory_bytes=7)
    write_steps(resumed, 1, 5, time_s=2.0, step_s=0.6, tokens_per_s=4.0, peak_memory_bytes=8)
    with MetricsWriter(resumed) as writer:
        writer.resumed_from(3)
    write_steps(resumed, 4, 6, time_s=3.0, step_s=0.7, tokens_per_s=5.0, peak_memory_bytes=9)
    write_steps(other, 1, 6)
    with MetricsWriter(other) as writer:
        writer.write({"step": 6, "loss": 4.0000001})
    assert canonical_metrics(straight) == canonical_metrics(resumed)
    assert canonical_metrics(straight) != canonical_metrics(other)
    assert canonical_metrics(straight).splitlines()[0] == b'{"loss": 9.0, "step": 1}'


def test_a_file_can_be_followed_row_by_row(path: Path) -> None:
    assert read_new_rows(path, 0) == ([], 0)
    write_steps(path, 1, 2)
    first, end = read_new_rows(path, 0)
    assert [row["step"] for row in first] == [1, 2]
    with path.open("ab") as file:
        file.write(b'{"step": 3, "lo')
    assert read_new_rows(path, end) == ([], end)
    with MetricsWriter(path) as writer:  # cuts the torn row off
        writer.resumed_from(1)
        writer.write({"step": 2, "loss": 8.0})
    assert read_new_rows(path, end) == (
        [{"resumed_from": 1}, {"step": 2, "loss": 8.0}],
        path.stat().st_size,
    )
    assert read_new_rows(path, 0, end) == (first, end)
    assert read_new_rows(path, path.stat().st_size + 10) == ([], path.stat().st_size + 10)


def test_rows_wait_for_room_on_a_full_disk(small_disk: Path) -> None:
    """None is lost, none is torn, and nobody takes them for saved meanwhile."""
    path = small_disk / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        writer.write({"step": 1, "text": "x" * 3000})
        filler = fill(small_disk, leave=0)
        for step in range(2, 7):
            writer.write({"step": step, "text": "x" * 3000})
        assert writer.waiting > 0
        with pytest.raises(OSError):
            writer.sync()
        filler.unlink()
        writer.write({"step": 7})
        assert writer.waiting == 0
        writer.sync()
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 4, 5, 6, 7]
