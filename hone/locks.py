"""The lock of the process that works on a run: one at a time, named, and gone with its process.

`runs.py` holds and reads it. The kernel keeps the lock (fcntl), so that one left by a process that
is dead is nobody's; the file's text only says who holds it, also to another machine that shares the
folder.
"""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

# The lock files this process holds, with its pid: a forked child has the entries, not the locks.
_held_by: dict[Path, int] = {}


@dataclass(frozen=True)
class Holder:
    """The process that works on a run; the fields are None while it is still writing its name."""

    pid: int | None
    host: str | None


class Held(Exception):
    """Another process holds the lock."""

    def __init__(self, holder: Holder) -> None:
        super().__init__(f"held by {holder}")
        self.holder = holder


def find_holder(path: Path) -> Holder | None:
    """The process that holds the lock, or None; a lock left by a dead process is nobody's."""
    if _held_by.get(path) == os.getpid():  # closing the file here would let go of our own lock
        return Holder(os.getpid(), socket.gethostname())
    try:
        with path.open("rb") as file:
            return None if _try_lock(file, fcntl.LOCK_SH) else _named_holder(file)
    except FileNotFoundError:
        return None


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Be the only process that holds the lock; raises Held where another one does, and
    FileNotFoundError where the folder is gone.

    The lock ends with the process, however that ends, and forked workers do not share it.
    """
    assert _held_by.get(path) != os.getpid(), "this process works on the run already"
    with path.open("a+b", buffering=0) as file:
        if not _lock_soon(file):
            raise Held(_named_holder(file))
        if not _is_named(file, path):  # whoever held it has removed the run
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        _held_by[path] = os.getpid()
        try:
            yield
        finally:
            del _held_by[path]


def _try_lock(file: IO[bytes], kind: int) -> bool:
    try:
        fcntl.lockf(file, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _is_named(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _lock_soon(file: IO[bytes]) -> bool:
    """Whoever looks at the lock holds it for an instant: a few tries tell that from work."""
    for _ in range(10):
        if _try_lock(file, fcntl.LOCK_EX):
            return True
        time.sleep(0.03)
    return False


def _named_holder(file: IO[bytes]) -> Holder:
    file.seek(0)
    try:
        named = json.loads(file.read())
    except ValueError:
        return Holder(None, None)
    return Holder(named["pid"], named["host"])
