"""Folders and files that are whole or not there, for the data cache; growing arrays.

Used by `prepare.py`. A folder is filled under a temporary name, and its process keeps it locked
until it is done: so what a killed process left can be told from what another one is writing.
"""

import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

UNFINISHED = ".unfinished-"
YOUNG_S = (
    60  # between the making of a folder and its locking lie microseconds; a young one is left alone
)


class ArrayWriter:
    """Files of raw numbers that grow; they are safely on the disk when the context ends well."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = paths
        self._stack = ExitStack()
        self._files: dict[str, BinaryIO] = {}

    def __enter__(self) -> "ArrayWriter":
        self._files = {
            name: self._stack.enter_context(path.open("wb")) for name, path in self._paths.items()
        }
        return self

    def append(self, name: str, values: npt.NDArray[Any]) -> None:
        """Add the values' bytes to the file of that name."""
        self._files[name].write(np.ascontiguousarray(values).data)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._stack:
            if kind is None:
                for file in self._files.values():
                    file.flush()
                    os.fsync(file.fileno())


@contextmanager
def whole_folder(path: Path, is_whole: Callable[[], bool]) -> Iterator[Path]:
    """A new folder to fill; it takes the name `path` when the block ends well, and is removed when
    it does not.

    When another process was first, its folder stays if `is_whole` says so.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.parent / f"{UNFINISHED}{uuid.uuid4().hex}"
    unfinished.mkdir()
    try:
        with _descriptor(unfinished) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield unfinished
            os.fsync(descriptor)
            _take_name(unfinished, path, is_whole)
        with _descriptor(path.parent) as descriptor:
            os.fsync(descriptor)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _take_name(unfinished: Path, path: Path, is_whole: Callable[[], bool]) -> None:
    try:
        unfinished.rename(path)
    except OSError:
        if is_whole():
            return
        if not path.exists():
            raise
        shutil.rmtree(path)  # damaged: it would have been used otherwise
        unfinished.rename(path)


@contextmanager
def _descriptor(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def remove_abandoned(folder: Path) -> None:
    """Remove what killed processes left unfinished in `folder`."""
    for path in folder.glob(f"{UNFINISHED}*"):
        with suppress(OSError):
            if _is_abandoned(path):
                shutil.rmtree(path, ignore_errors=True)


def _is_abandoned(path: Path) -> bool:
    if time.time() - path.stat().st_mtime < YOUNG_S:
        return False
    with _descriptor(path) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def write_shared_json(path: Path, table: dict[str, Any]) -> None:
    """Write the file whole, where several processes may do so at once: the last one wins."""
    new = path.with_name(f".new-{uuid.uuid4().hex}")
    try:
        new.write_text(json.dumps(table, indent=1), encoding="utf-8")
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
