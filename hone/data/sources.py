"""Where rows come from: files (JSON, JSONL, CSV, TSV, Parquet, text), folders of them, data sets on
the Hub. All but Parquet may be packed with gzip, bzip2 or xz.

`open_source` finds what a recipe's `data.path` names; its rows are then read one at a time, so a
file may be larger than the memory. Line numbers are those of an editor, from 1. Called by
`prepare.py`. How a row is understood is in `formats.py`.
"""

import bz2
import csv
import gzip
import hashlib
import io
import json
import lzma
import re
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from hone.data.json_stream import JsonFault, read_objects
from hone.data.rows import BadRow, Row, kind_of
from hone.errors import UserError, nearest
from hone.hub import is_reachable

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
NOT_DATA = {
    "dataset_info.json",
    "dataset_infos.json",
    "state.json",
}  # what `datasets` writes beside its data
FIRST_LINE_BYTES = 1 << 24  # a longer first line is no JSON Lines row
PARQUET_ROWS = 256  # rows decoded at a time
SETTLED_NS = 2_000_000_000  # a younger file may change again without a new time stamp

Reader = Callable[[Path, int], Iterator[Row | BadRow]]
PACKED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


@dataclass(frozen=True)
class SourceFile:
    """A file as it was when it was hashed. `rows` is what the progress bar may expect, None when
    unknown.
    """

    path: str
    size: int
    mtime_ns: int
    sha256: str
    rows: int | None


class Source(Protocol):
    """Something that rows are read from."""

    @property
    def files(self) -> list[Path]:
        """The files that hold its content."""
        ...

    def rows(self) -> Iterator[Row | BadRow]:
        """All rows in order; a row that cannot be read comes as BadRow."""
        ...

    def place(self, source: int, number: int) -> str:
        """How a row is named to a person: file and line."""
        ...


@dataclass(frozen=True)
class Files:
    """Local files of the kinds in `READERS`, read in order."""

    files: list[Path]

    def rows(self) -> Iterator[Row | BadRow]:
        for index, path in enumerate(self.files):
            try:
                yield from READERS[kind_of_file(path)](path, index)
            except OSError as fault:
                raise UserError(f"`{path}` cannot be read: {fault.strerror or fault}") from fault
            except (EOFError, zlib.error, lzma.LZMAError) as fault:
                raise UserError(f"`{path}` cannot be unpacked: {fault}") from fault

    def place(self, source: int, number: int) -> str:
        return place_in(str(self.files[source]), number)


@dataclass(frozen=True)
class HubDataset:
    """One split of a data set, as `datasets` keeps it on this machine."""

    name: str
    dataset: Any

    @property
    def files(self) -> list[Path]:
        return [Path(entry["filename"]) for entry in self.dataset.cache_files]

    def rows(self) -> Iterator[Row | BadRow]:
        for number, values in enumerate(self.dataset, start=1):
            yield Row(0, number, values)

    def place(self, source: int, number: int) -> str:
        return f"{self.name} row {number}"


def place_in(path: str, number: int) -> str:
    """`file:line`, or `file row n` for files without lines."""
    lines = kind_of_file(Path(path)) in READERS and not path.lower().endswith(".parquet")
    return f"{path}:{number}" if lines else f"{path} row {number}"


def kind_of_file(path: Path) -> str:
    """The suffix that says how a file is read, that of the packing aside: ".csv" of "a.csv.gz"."""
    suffix = path.suffix.lower()
    inner = Path(path.stem).suffix.lower()
    return inner if suffix in PACKED and inner != ".parquet" else suffix


def open_bytes(path: Path) -> BinaryIO:
    """The content of a file, unpacked."""
    return cast(BinaryIO, PACKED.get(path.suffix.lower(), open)(path, "rb"))


def open_source(path: str, split: str | None = None) -> Source:
    """Find the file, the folder's files or the Hub data set that `path` names; raises UserError
    when there is none.
    """
    local = Path(path).expanduser()
    if local.is_dir():
        return Files(_files_in(local))
    if local.exists():
        return Files([_of_known_kind(local)])
    looks_local = kind_of_file(local) in READERS or path.startswith((".", "/", "~"))
    if looks_local or not HUB_ID.fullmatch(path):
        raise _missing(local)
    return _from_hub(path, split or "train")


def _files_in(folder: Path) -> list[Path]:
    files = sorted(
        path
        for path in folder.rglob("*")
        if kind_of_file(path) in READERS
        and path.name not in NOT_DATA
        and path.is_file()
        and not _hidden(path, folder)
    )
    if any(kind_of_file(path) != ".txt" for path in files):  # then those are notes
        files = [path for path in files if kind_of_file(path) != ".txt"]
    if not files:
        raise UserError(f"no data files in `{folder}`; expected some of {_kinds()}", exit_code=2)
    return files


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _of_known_kind(path: Path) -> Path:
    if kind_of_file(path) not in READERS:
        raise UserError(
            f"`{path}` ends in `{path.suffix}`; expected a file of kind {_kinds()}",
            hint="rename it after what it holds, or convert it to JSON Lines (one object a line)",
            exit_code=2,
        )
    return path


def _kinds() -> str:
    return f"{', '.join(READERS)} (all but Parquet also with {', '.join(PACKED)})"


def _missing(path: Path) -> UserError:
    message = f"there is no file or folder `{path}`"
    if not path.parent.is_dir():
        return UserError(f"{message}, nor a folder `{path.parent}`", exit_code=2)
    close = nearest(path.name, [entry.name for entry in path.parent.iterdir()])
    hint = (
        f"did you mean `{path.parent / close}`?"
        if close
        else f"see what is there: ls {path.parent}"
    )
    return UserError(message, hint=hint, exit_code=2)


def _from_hub(name: str, split: str) -> Source:
    import datasets

    if not is_reachable():  # the library would ask for half a minute before it looks into its cache
        datasets.config.HF_HUB_OFFLINE = True
    try:
        dataset = datasets.load_dataset(name, split=split, keep_in_memory=False)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as fault:
        first_line = (str(fault).strip().splitlines() or [type(fault).__name__])[0]
        raise UserError(
            f"there is no file or folder `{name}`, and the split `{split}` of a Hub data set "
            f"of that name could not be loaded: {first_line}",
            hint=f"look at the data set: https://huggingface.co/datasets/{name}",
            exit_code=2,
        ) from fault
    return HubDataset(f"{name}[{split}]", dataset)


def _read_jsonl(path: Path, source: int) -> Iterator[Row | BadRow]:
    with open_bytes(path) as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield _row_of_line(line.rstrip(b"\r\n"), source, number)


def _row_of_line(line: bytes, source: int, number: int) -> Row | BadRow:
    try:
        return _row_of(json.loads(line.decode("utf-8")), source, number)
    except UnicodeDecodeError as fault:
        return BadRow(source, number, f"not UTF-8 text at byte {fault.start + 1} of the line")
    except json.JSONDecodeError as fault:
        return BadRow(source, number, f"not valid JSON: {fault.msg} at column {fault.colno}")
    except (ValueError, RecursionError) as fault:
        return BadRow(source, number, f"not readable as JSON: {fault}")


def _row_of(value: object, source: int, number: int) -> Row | BadRow:
    if isinstance(value, dict):
        return Row(source, number, value)
    return BadRow(
        source, number, f"expected an object with columns as keys, found {kind_of(value)}"
    )


def _read_json(path: Path, source: int) -> Iterator[Row | BadRow]:
    if holds_lines(path):
        yield from _read_jsonl(path, source)
        return
    with io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", newline="") as file:
        try:
            for line, value in read_objects(file):
                yield _row_of(value, source, line)
        except JsonFault as fault:
            raise UserError(f"{path}:{fault.line}: {fault.message}") from None
        except UnicodeDecodeError as fault:
            raise UserError(f"`{path}` is not UTF-8 text: {fault.reason}") from None


def holds_lines(path: Path) -> bool:
    """Whether a `.json` file holds JSON Lines: a whole object in its first line, then more."""
    with open_bytes(path) as file:
        line = file.readline(FIRST_LINE_BYTES).removeprefix(b"\xef\xbb\xbf")
        rest = file.read(1)
    try:
        return bool(rest) and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _read_csv(path: Path, source: int) -> Iterator[Row | BadRow]:
    with io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", newline="") as file:
        reader = csv_reader(path, file)
        try:
            header: list[str] = next(reader, [])
        except csv.Error as fault:
            raise UserError(f"{path}:1: the header cannot be read: {fault}") from None
        except UnicodeDecodeError as fault:
            raise UserError(f"`{path}` is not UTF-8 text: {fault.reason}") from None
        repeated = sorted({name for name in header if header.count(name) > 1})
        if repeated:
            raise UserError(
                f"{path}:1: the column `{repeated[0]}` stands in the header more than once"
            )
        yield from _csv_rows(path, source, reader, header)


def csv_reader(path: Path, lines: Iterable[str]) -> Any:
    """The standard library's reader for a `.csv` or a `.tsv` file."""
    csv.field_size_limit(1 << 30)
    delimiter = "\t" if kind_of_file(path) == ".tsv" else ","
    return csv.reader(lines, strict=True, delimiter=delimiter)


def _csv_rows(path: Path, source: int, reader: Any, header: list[str]) -> Iterator[Row | BadRow]:
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as fault:
            yield BadRow(source, line, f"not valid CSV: {fault}")
            continue
        except UnicodeDecodeError as fault:
            raise UserError(
                f"`{path}` is not UTF-8 text after line {line}: {fault.reason}"
            ) from None
        if len(fields) == len(header):
            yield Row(source, line, dict(zip(header, fields, strict=True)))
        elif fields:
            yield BadRow(
                source, line, f"expected {len(header)} fields as in the header, found {len(fields)}"
            )


def _read_parquet(path: Path, source: int) -> Iterator[Row | BadRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            first = 1
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                yield from _rows_of_batch(batch, source, first)
                first += len(batch)
    except (pyarrow.ArrowException, OSError) as fault:
        raise UserError(f"`{path}` cannot be read as Parquet: {fault}") from fault


def _rows_of_batch(batch: Any, source: int, first: int) -> Iterator[Row | BadRow]:
    """The rows of a part of a Parquet file; one with a value that Python cannot hold (a date far
    away, text that is not UTF-8) is a bad row.
    """
    try:
        rows = batch.to_pylist()
    except (OverflowError, ValueError):
        yield from (_row_of_slice(batch.slice(n, 1), source, first + n) for n in range(len(batch)))
        return
    for number, values in enumerate(rows, first):
        yield Row(source, number, values)


def _row_of_slice(slice: Any, source: int, number: int) -> Row | BadRow:
    try:
        (values,) = slice.to_pylist()
        return Row(source, number, values)
    except (OverflowError, ValueError) as fault:
        return BadRow(source, number, f"a value cannot be read: {fault}")


def _read_text(path: Path, source: int) -> Iterator[Row | BadRow]:
    """Every line that is not blank is a text."""
    with open_bytes(path) as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            try:
                text = line.rstrip(b"\r\n").decode()
            except UnicodeDecodeError as fault:
                message = f"not UTF-8 text at byte {fault.start + 1} of the line"
                yield BadRow(source, number, message)
                continue
            if text.strip():
                yield Row(source, number, {"text": text})


READERS: dict[str, Reader] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    ".txt": _read_text,
}


def hash_files(files: list[Path], known: dict[str, SourceFile]) -> list[SourceFile]:
    """The files with the SHA-256 of their content; those in `known` by path, size and time are not
    read again.
    """
    return [_hash_file(path, known.get(str(path))) for path in (path.absolute() for path in files)]


def _hash_file(path: Path, before: SourceFile | None) -> SourceFile:
    try:
        stat = path.stat()
        if before and (before.size, before.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
            return before
        digest, lines, piece = hashlib.sha256(), 0, b"\n"
        with path.open("rb") as file:
            for piece in iter(partial(file.read, 1 << 20), b""):
                digest.update(piece)
                lines += piece.count(b"\n")
        lines += not piece.endswith(b"\n")  # the last line may go without
    except OSError as fault:
        raise UserError(f"`{path}` cannot be read: {fault.strerror or fault}") from fault
    return SourceFile(
        str(path), stat.st_size, stat.st_mtime_ns, digest.hexdigest(), _num_rows(path, lines)
    )


def _num_rows(path: Path, lines: int) -> int | None:
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return lines
    if path.suffix.lower() == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            return int(pyarrow.parquet.read_metadata(path).num_rows)
        except (pyarrow.ArrowException, OSError) as fault:
            raise UserError(f"`{path}` cannot be read as Parquet: {fault}") from fault
    return None


def has_settled(file: SourceFile) -> bool:
    """Whether the file is old enough that its time stamp would show another change."""
    return time.time_ns() - file.mtime_ns > SETTLED_NS


def has_changed(file: SourceFile) -> bool:
    """Whether the file is no longer as it was when it was hashed."""
    try:
        stat = Path(file.path).stat()
    except OSError:
        return True
    return (stat.st_size, stat.st_mtime_ns) != (file.size, file.mtime_ns)
