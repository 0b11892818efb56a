"""One data file into two of the same kind, for training and evaluation.

Called by `hone data split`. A row's side depends on the seed and on what the row says: equal rows
are on the same side, in whatever order they come, and in every kind of file. The source is read
twice, a row at a time: once for the border between the sides, once to write. Lines of JSON Lines,
CSV, TSV and text are copied byte for byte. Left out: keeping rows together that are only alike.
"""

import bz2
import gzip
import io
import json
import lzma
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from hone.data.row_hashes import RowHashes, hash_of
from hone.data.rows import BadRow, Row, RowError
from hone.data.sources import (
    PACKED,
    Files,
    Source,
    csv_reader,
    holds_lines,
    kind_of_file,
    open_bytes,
    open_source,
)
from hone.errors import UserError
from hone.files import sync
from hone.signals import uninterrupted

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

IsHeldOut = Callable[[Any], bool]
Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Split:
    """What was written: the two files and the rows in them. repeated: rows that equal another."""

    paths: tuple[Path, Path]
    rows: tuple[int, int]
    repeated: int


def split(
    path: str,
    share: float,
    seed: int,
    *,
    folder: Path | None = None,
    names: tuple[str, str] | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Split:
    """Write the rows of `path`, a file, a folder or a Hub data set, to two files.

    share: of the rows, for evaluation; as near to it as whole groups of equal rows allow, at least
    one row and never all. folder: where they go; beside the file when left out. A folder and a Hub
    data set become JSON Lines. progress is called with (rows, None). Raises UserError where a row
    cannot be read, one of the files exists and `force` is not given, or all rows are equal.
    """
    source = open_source(path)
    targets = _targets(path, source, folder, names)
    _check_targets(targets, source, force)
    before = [_stamp(file) for file in source.files]
    hashes = _hash_rows(source, seed, progress)
    border = _border(hashes.values(), share, path)
    counts = [0, 0]

    def is_held_out(values: Any) -> bool:
        held_out = hash_of(seed, values) <= border
        counts[held_out] += 1
        if progress and sum(counts) % 1000 == 0:
            progress(len(hashes) + sum(counts), 2 * len(hashes))
        return held_out

    with _new_files(targets) as (train, evaluation):
        _copy(source, train, evaluation, is_held_out)
        if [_stamp(file) for file in source.files] != before or sum(counts) != len(hashes):
            raise UserError(f"`{path}` changed while it was split", hint="start again")
        if not force:
            _check_targets(targets, source, force)
    return Split(targets, (counts[0], counts[1]), hashes.repeated(0).count)


def _stamp(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def _targets(
    path: str, source: Source, folder: Path | None, names: tuple[str, str] | None
) -> tuple[Path, Path]:
    only = source.files[0] if _is_one_file(source, path) else None
    if only is None:
        stem, suffixes = Path(path.rstrip("/")).name, ".jsonl"
        place = folder or Path()
    else:
        suffixes = "".join(only.suffixes[-2:] if only.suffix.lower() in PACKED else [only.suffix])
        stem, place = only.name.removesuffix(suffixes), folder or only.parent
    if names:
        for name in names:
            if Path(name).name != name or not name.lower().endswith(suffixes.lower()):
                raise UserError(
                    f"`--names`: `{name}` is not the name of a `{suffixes}` file",
                    hint=f"--names train{suffixes} evaluation{suffixes}",
                    exit_code=2,
                )
        return place / names[0], place / names[1]
    return place / f"{stem}.train{suffixes}", place / f"{stem}.evaluation{suffixes}"


def _is_one_file(source: Source, path: str) -> bool:
    return isinstance(source, Files) and not Path(path).expanduser().is_dir()


def _check_targets(targets: tuple[Path, Path], source: Source, force: bool) -> None:
    if targets[0] == targets[1]:
        raise UserError("`--names`: expected two different names", exit_code=2)
    for target in targets:
        if any(target.exists() and target.samefile(file) for file in source.files):
            raise UserError(f"`{target}` is the file that is split", exit_code=2)
        if not target.parent.is_dir():
            message = f"there is no folder `{target.parent}`"
            raise UserError(message, hint=f"mkdir -p {target.parent}", exit_code=2)
        if target.is_dir() or (target.exists() and not force):
            raise UserError(
                f"`{target}` exists already, and files are not overwritten",
                hint="move it away, name another folder with `--out`, or give `--force`",
                exit_code=2,
            )


def _hash_rows(source: Source, seed: int, progress: Progress | None) -> RowHashes:
    """The hash of every row; raises UserError at the first that cannot be read."""
    hashes = RowHashes(seed)
    hashes.add_source(source)
    for row in source.rows():
        try:
            if isinstance(row, BadRow):
                raise RowError(row.message)
            hashes.add(row.source, row.number, row.values)
        except RowError as fault:
            raise UserError(
                f"{source.place(row.source, row.number)}: {fault.message}",
                hint=f"all bad rows: hone data validate {source.files[row.source]}",
            ) from fault
        if progress and len(hashes) % 1000 == 0:
            progress(len(hashes), None)
    return hashes


def _border(hashes: Any, share: float, path: str) -> int:
    """The largest hash of the evaluation side: the one that gives the number of rows nearest to
    the share.
    """
    distinct, counts = np.unique(hashes, return_counts=True)
    if len(distinct) < 2:
        raise UserError(
            f"`{path}` has {len(hashes)} row(s) and no two different ones, so it cannot be split",
        )
    held_out = np.cumsum(counts)[:-1]  # never all
    return int(distinct[np.argmin(np.abs(held_out - share * len(hashes)))])


@contextmanager
def _new_files(targets: tuple[Path, Path]) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Two files to write, packed as their names say; they get the names when the block ends well,
    else they are removed.
    """
    unfinished = [path.with_name(f".{path.name}.new") for path in targets]
    try:
        with ExitStack() as stack:
            files = [
                stack.enter_context(_packed(stack.enter_context(new.open("wb")), path))
                for new, path in zip(unfinished, targets, strict=True)
            ]
            yield files[0], files[1]
        for new in unfinished:
            sync(new)
        with uninterrupted():
            for new, path in zip(unfinished, targets, strict=True):
                os.replace(new, path)
            sync(targets[0].parent)
    finally:
        for new in unfinished:
            new.unlink(missing_ok=True)


def _packed(file: BinaryIO, path: Path) -> BinaryIO:
    """Packed without a time or a name, so that the same rows give the same bytes."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0))
    if suffix == ".bz2":
        return cast(BinaryIO, bz2.BZ2File(file, "wb"))
    return cast(BinaryIO, lzma.LZMAFile(file, "wb")) if suffix == ".xz" else file


def _copy(source: Source, train: BinaryIO, evaluation: BinaryIO, is_held_out: IsHeldOut) -> None:
    """Every row to its side."""
    only = source.files[0] if isinstance(source, Files) and len(source.files) == 1 else None
    kind = kind_of_file(only) if only else ""
    if only and kind == ".parquet":
        _copy_parquet(only, train, evaluation, is_held_out)
        return
    if only and kind in (".csv", ".tsv"):
        _copy_csv(only, train, evaluation, is_held_out)
        return
    lines = kind in (".jsonl", ".ndjson", ".txt") or (
        kind == ".json" and only and holds_lines(only)
    )
    if only and lines:
        _copy_lines(only, source, train, evaluation, is_held_out)
        return
    _write_json(source, (train, evaluation), is_held_out, as_list=kind == ".json")


def _copy_lines(
    path: Path, source: Source, train: BinaryIO, evaluation: BinaryIO, is_held_out: IsHeldOut
) -> None:
    """Lines as they are; blank ones and the byte order mark are left out."""
    with open_bytes(path) as file:
        lines = enumerate(file, start=1)
        for row in source.rows():
            assert isinstance(row, Row), "all rows were read before"
            number, line = next(lines)
            while number < row.number:
                number, line = next(lines)
            line = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
            line = line if line.endswith(b"\n") else line + b"\n"
            (evaluation if is_held_out(row.values) else train).write(line)


def _copy_csv(path: Path, train: BinaryIO, evaluation: BinaryIO, is_held_out: IsHeldOut) -> None:
    """The header to both, then records as they are."""
    with io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", newline="") as file:
        taken: list[str] = []

        def lines() -> Iterator[str]:
            for line in file:
                taken.append(line)
                yield line

        reader = csv_reader(path, lines())
        header: list[str] = []
        for fields in reader:
            record = "".join(taken)
            taken.clear()
            content = (record if record.endswith(("\n", "\r")) else record + "\n").encode()
            if not header:
                header = fields
                train.write(content)
                evaluation.write(content)
            elif fields:
                values = dict(zip(header, fields, strict=True))
                (evaluation if is_held_out(values) else train).write(content)


def _copy_parquet(
    path: Path, train: BinaryIO, evaluation: BinaryIO, is_held_out: IsHeldOut
) -> None:
    """Rows with the schema of the source."""
    import pyarrow
    import pyarrow.compute
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file, ExitStack() as stack:
        schema = file.schema_arrow
        writers = [
            stack.enter_context(pyarrow.parquet.ParquetWriter(target, schema))
            for target in (train, evaluation)
        ]
        for batch in file.iter_batches():
            held_out = pyarrow.array([is_held_out(values) for values in batch.to_pylist()])
            sides = batch.filter(pyarrow.compute.invert(held_out)), batch.filter(held_out)
            for writer, side in zip(writers, sides, strict=True):
                if side.num_rows:
                    writer.write_batch(side)


def _write_json(
    source: Source, targets: tuple[BinaryIO, BinaryIO], is_held_out: IsHeldOut, as_list: bool
) -> None:
    """A row in each line; in `[` and `]` where the source is a JSON array."""
    written = [0, 0]
    for row in source.rows():
        assert isinstance(row, Row), "all rows were read before"
        side = is_held_out(row.values)
        separator = ("[\n" if written[side] == 0 else ",\n") if as_list else ""
        ending = "" if as_list else "\n"
        targets[side].write(separator.encode() + _as_json(row.values) + ending.encode())
        written[side] += 1
    if as_list:
        for target in targets:
            target.write(b"\n]\n")


def _as_json(values: Any) -> bytes:
    try:
        return json.dumps(values, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:  # half of a surrogate pair has no other form than its escape
        return json.dumps(values, default=str).encode()
