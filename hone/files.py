"""Files that a kill or a power loss cannot leave in halves: written whole, or line by line.

Used by `runs.py` and by everything else that writes small files. Every file has one writer, so that
its temporary name is fixed and a leftover is overwritten. Left out: folders that appear whole
(runs.py, checkpoints.py) and metrics (metrics.py).
"""

import errno
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hone.signals import uninterrupted


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all: a temporary name in the same folder, fsync, rename."""
    temporary = path.with_name(f".{path.name}.new")
    with uninterrupted():
        try:
            with temporary.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync(path.parent)


def write_json(path: Path, table: dict[str, Any]) -> None:
    """Write a table as indented JSON, whole or not at all."""
    write_whole(path, json.dumps(table, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """The table in a JSON file; None where there is no file or it holds no table."""
    try:
        table = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return table if isinstance(table, dict) else None


def append_line(path: Path, line: str) -> None:
    """Append a line; where a power loss has torn the last one, begin a new one."""
    with path.open("a+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        torn = end > 0 and file.read(1) != b"\n"
        text = (("\n" if torn else "") + line + "\n").encode(errors="backslashreplace")
        if file.write(text) != len(text):
            file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSONL file that are whole; [] where there is no file."""
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:  # torn by a power loss
            continue
    return rows


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk: only then a rename
    outlives a power loss.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_disk_full(error: BaseException) -> bool:
    """True where the disk, or the person's share of it, has no room; libraries say it in words."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return bool(re.search(r"os error (28|122)\b|No space left on device", str(error)))


@contextmanager
def room_permitting() -> Iterator[None]:
    """For notes on the way: where the disk is full, they are left out and the work goes on."""
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
