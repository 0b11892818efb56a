"""metrics.jsonl: one row a step, appended by the stage that trains and read by everyone else.

A row is a flat record with its `step`; rows of held-out data carry `"split": "evaluation"`. A
resumed stage appends `{"resumed_from": step}` and repeats the steps after it. Written by `fit`;
read by `hone runs`, `hone show`, the trackers, plots and tests.
"""

import errno
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from hone.errors import UserError
from hone.files import room_permitting

Row = dict[str, Any]

TIMES = ("time_s", "step_s", "sampling_s", "scoring_s")  # in seconds
TAIL_BYTES = 65_536  # some 200 rows: where the newest row is looked for first


class MetricsWriter:
    """Appends rows to one file. A last line that a kill or a power loss has torn is cut off on
    opening.

    Rows that a full disk has no room for wait, and are written before the next one; `waiting` is
    how many. `sync` raises OSError while there are any; closing loses them.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._waiting: list[bytes] = []
        self._file = path.open("ab", buffering=0)
        self._file.truncate(_whole_bytes(path.read_bytes()))

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row in one system call, so that a reader never sees half of it while the
        process lives.

        Numbers are Python's own; NaN and infinity, which JSON lacks, become null.
        """
        finite = {key: None if _is_not_finite(value) else value for key, value in row.items()}
        self._waiting.append(json.dumps(finite, allow_nan=False).encode() + b"\n")
        with room_permitting():
            self._write_waiting()

    @property
    def waiting(self) -> int:
        """Rows that are not in the file, because the disk is full."""
        return len(self._waiting)

    def _write_waiting(self) -> None:
        lines = b"".join(self._waiting)
        size = os.fstat(self._file.fileno()).st_size
        if lines and self._file.write(lines) != len(lines):  # the disk became full on the way
            self._file.truncate(size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)
        self._waiting.clear()

    def resumed_from(self, step: int) -> None:
        """Say that the rows after `step` that stand above are done again."""
        self.write({"resumed_from": step})

    def sync(self) -> None:
        """Wait until the rows are on the disk."""
        self._write_waiting()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; the writer is not used after it."""
        with room_permitting():
            self._write_waiting()
        self._file.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_metrics(path: Path) -> list[Row]:
    """All rows that count, by step, the training row of a step before its evaluation row; [] where
    there is no file.

    The last row of each (step, split) wins, and rows that a resumed stage did again are gone. A
    torn last line is left out: it is being written, or its writer was killed.
    """
    return _effective(_parse(path, path.read_bytes())) if path.exists() else []


def latest_row(path: Path, split: str | None = None) -> Row | None:
    """The newest row of a split (None: training), or None; a long file is not read whole."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        start = max(0, path.stat().st_size - TAIL_BYTES)
        file.seek(start)
        tail = file.read()
    if start:
        tail = tail.partition(b"\n")[2]
    found = _last_of(_effective(_parse(path, tail)), split)
    return found or (_last_of(read_metrics(path), split) if start else None)


def read_new_rows(path: Path, start: int, end: int = -1) -> tuple[list[Row], int]:
    """The rows from byte `start` (to `end`), as they stand, and the byte after the last one.

    Nothing is taken back here: `{"resumed_from": k}` is among them. Raises UserError as
    `read_metrics` does.
    """
    if not path.exists() or path.stat().st_size <= start:
        return [], start
    with path.open("rb") as file:
        file.seek(start)
        content = file.read(end - start if end >= 0 else -1)
    size = _whole_bytes(content)
    return _parse(path, content[:size]), start + size


def canonical_metrics(path: Path) -> bytes:
    """What two runs are compared by: the rows that count, without clock times and memory."""
    return b"".join(canonical_row(row) for row in read_metrics(path))


def canonical_row(row: Row) -> bytes:
    """A row as a line that is the same whenever the step is: without clock times and memory."""
    kept = {key: value for key, value in row.items() if not _is_timing(key)}
    return json.dumps(kept, sort_keys=True).encode() + b"\n"


def _is_timing(key: str) -> bool:
    return key in TIMES or key.endswith(("_per_s", "_memory_bytes"))


def _is_not_finite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _last_of(rows: list[Row], split: str | None) -> Row | None:
    return next((row for row in reversed(rows) if row.get("split") == split), None)


def _effective(rows: Iterable[Row]) -> list[Row]:
    kept: dict[tuple[int, str], Row] = {}
    for row in rows:
        if "resumed_from" in row:
            kept = {key: value for key, value in kept.items() if key[0] <= row["resumed_from"]}
        else:
            kept[row["step"], row.get("split") or ""] = row
    return [kept[key] for key in sorted(kept)]


def _parse(path: Path, content: bytes) -> list[Row]:
    """Every whole line of `content`. Raises UserError at a whole line that is no row."""
    lines = content.split(b"\n")[:-1]
    rows = [_row(line) for line in lines]
    if rows and rows[-1] is None:
        del rows[-1]
    for number, row in enumerate(rows, 1):
        if row is None:
            raise UserError(
                f"`{path}` holds a line that is no row of metrics: {lines[number - 1][:80]!r}"
            )
    return [row for row in rows if row is not None]


def _row(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and ("step" in row or "resumed_from" in row) else None


def _whole_bytes(content: bytes) -> int:
    """The length of the content up to its last line that is whole and a row."""
    end = content.rfind(b"\n") + 1
    while end and _row(content[content.rfind(b"\n", 0, end - 1) + 1 : end]) is None:
        end = content.rfind(b"\n", 0, end - 1) + 1
    return end
