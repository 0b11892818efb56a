"""Two run folders side by side: whether what was computed is the same, and what differs first.

Called by `hone reproduce`. Compared are metrics without clock times, results and the newest
optimizer state, in the order in which they were made; a run's own folder, which configuration files
name, does not count. Left out: where runs come from (reproduction.py).
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from hone.metrics import canonical_metrics
from hone.runs import Run

# Of the tables in lock.json: where and when files were, not what is in them.
INCIDENTAL = {"path", "mtime_ns", "size", "rows", "folder"}

NUMPY_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4"}


@dataclass(frozen=True)
class Difference:
    """One thing that is not the same. where: a stage's step, or a file; what: a field or tensor."""

    where: str
    what: str
    before: Any
    after: Any

    def in_words(self) -> str:
        """where: what before -> after."""
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.what} {_told(self.before)} -> {_told(self.after)}"


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side. surroundings: what their bytes depend on and is not the same.

    first: the earliest difference in what was computed; files: all results that differ. rows,
    num_files: how much was compared; missing: what only the first run still has or had.
    """

    first: Difference | None
    surroundings: list[Difference]
    files: list[str]
    rows: int
    num_files: int
    missing: list[str]

    @property
    def same(self) -> bool:
        """True where every byte that was computed is the same."""
        return self.first is None

    def as_json(self) -> dict[str, Any]:
        """All fields, as JSON."""
        return {"same": self.same, **asdict(self)}


def compare_runs(run: Run, other: Run, until: tuple[int, int] | None = None) -> Comparison:
    """What was computed in two runs, stage by stage in the order of its making.

    until: (stage, step) up to which metrics are compared, and nothing else.
    """
    differences: list[Difference] = []
    files: list[str] = []
    missing: list[str] = []
    rows = num_files = 0
    for pair in _folders(run, other, run.path, "base") if until is None else ():
        num_files += _compare_folders(run, other, *pair, differences, files)
    for index, folder in enumerate(run.stage_folders()):
        if until and index + 1 > until[0]:
            break
        beside = other.path / folder.relative_to(run.path)
        last = until[1] if until and index + 1 == until[0] else None
        pairs = [*_folders(run, other, folder, "base")] if until is None else []
        rows += _compare_metrics(folder, beside, last, differences)
        if until is None:
            pairs += _folders(run, other, folder, "rollouts")
            pairs += _folders(run, other, folder, "model")
            newest = _newest_common(folder / "checkpoints", beside / "checkpoints")
            pairs += [newest] if newest else []
            missing += [] if newest else [f"{folder.name}: no checkpoint of the same step"]
        for pair in pairs:
            num_files += _compare_folders(run, other, *pair, differences, files)
    surroundings = compare_surroundings(run, other)
    first = differences[0] if differences else None
    return Comparison(first, surroundings, files, rows, num_files, missing)


def compare_surroundings(run: Run, other: Run) -> list[Difference]:
    """What the bytes depend on and is not the same: recipe, versions, device, threads, files."""
    before, after = (dict(_leaves(each.resolved(), "recipe.")) for each in (run, other))
    lock, beside = run.read_lock_json(), other.read_lock_json()
    for key in lock.keys() - {"recipe", "reproduces", "data_changes"}:
        if key == "stages":
            for number in lock[key].keys() & beside.get(key, {}).keys():
                before |= _leaves(lock[key][number], f"stage {number} ")
                after |= _leaves(beside[key][number], f"stage {number} ")
        elif key in beside:
            before |= _leaves({key: lock[key]}, "")
            after |= _leaves({key: beside[key]}, "")
    return [
        Difference("", key, before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def _folders(run: Run, other: Run, folder: Path, name: str) -> Iterator[tuple[Path, Path]]:
    """`folder`/`name` of the first run and the same of the other, where the first one has it."""
    if (folder / name).is_dir():
        yield folder / name, other.path / (folder / name).relative_to(run.path)


def _newest_common(ours: Path, theirs: Path) -> tuple[Path, Path] | None:
    """The newest checkpoints, where both runs have it of the same step."""
    found = [max(folder.glob("step_*"), default=None) for folder in (ours, theirs)]
    if found[0] is None or found[1] is None or found[0].name != found[1].name:
        return None
    return found[0], found[1]


def _compare_metrics(
    ours: Path, theirs: Path, last: int | None, differences: list[Difference]
) -> int:
    """Compare the rows that count, up to the training row of step `last`; returns how many."""

    def counted(row: dict[str, Any]) -> bool:
        return last is None or row["step"] < last or (row["step"] == last and "split" not in row)

    rows, beside = (list(filter(counted, rows_of(folder))) for folder in (ours, theirs))
    for row, found in zip_longest(rows, beside):
        if row == found:
            continue
        present = row or found or {}
        split = "evaluation at " if "split" in present else ""
        where = f"stage {ours.name}, {split}step {present['step']}"
        if row is None or found is None:
            differences.append(Difference(where, "the row", row, found))
            break
        fields = dict.fromkeys(["loss", *row, *found])
        field = next(field for field in fields if row.get(field) != found.get(field))
        differences.append(Difference(where, field, row.get(field), found.get(field)))
        break
    return len(rows)


def _compare_folders(
    run: Run,
    other: Run,
    ours: Path,
    theirs: Path,
    differences: list[Difference],
    files: list[str],
) -> int:
    """Compare all files; those that differ are added. manifest.json and state.json say no more."""
    names = sorted(
        {
            str(path.relative_to(folder))
            for folder in (ours, theirs)
            for path in folder.rglob("*")
            if path.is_file() and path.name not in ("manifest.json", "state.json")
        }
    )
    for name in names:
        place = str((ours / name).relative_to(run.path))
        before, after = (
            _digest(folder / name, each) for folder, each in ((ours, run), (theirs, other))
        )
        if before == after:
            continue
        files.append(place)
        if name.endswith(".safetensors") and before and after:
            differences.append(_first_tensor(place, ours / name, theirs / name))
        else:
            differences.append(Difference(place, "SHA-256", before, after))
    return len(names)


def _digest(path: Path, run: Run) -> str | None:
    """The file's SHA-256; in texts the run's own folder does not count. None where it is not."""
    if not path.is_file():
        return None
    if path.suffix != ".json":
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    written = json.dumps(str(run.path))[1:-1].encode()
    content = path.read_bytes()
    for name in (written, os.fsencode(run.path)):
        content = content.replace(name, b"<run>")
    return hashlib.sha256(content).hexdigest()


def _first_tensor(place: str, ours: Path, theirs: Path) -> Difference:
    """The first tensor of two safetensors files that differs, with its first other element."""
    (table, begin), (beside, begin_beside) = _header(ours), _header(theirs)
    for name in sorted(table.keys() | beside.keys()):
        shape, found = table.get(name), beside.get(name)
        if shape is None or found is None or shape[:2] != found[:2]:
            return Difference(place, f"tensor {name}", shape and shape[:2], found and found[:2])
        before, after = _bytes_of(ours, begin, shape[2]), _bytes_of(theirs, begin_beside, found[2])
        if before != after:
            kind = NUMPY_TYPES.get(shape[0], "u1")
            old, new = np.frombuffer(before, kind), np.frombuffer(after, kind)
            at = int(np.flatnonzero(_bits(old) != _bits(new))[0])
            what = f"tensor {name}, element {at}:"
            return Difference(place, what, _value(old[at], shape[0]), _value(new[at], shape[0]))
    return Difference(place, "what the file says besides tensors", "", "")


def _header(path: Path) -> tuple[dict[str, tuple[str, list[int], list[int]]], int]:
    """{name: (type, shape, offsets)} of a safetensors file, and where its data begin."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        table = json.loads(file.read(length))
    table.pop("__metadata__", None)
    entries = {
        name: (entry["dtype"], entry["shape"], entry["data_offsets"])
        for name, entry in table.items()
    }
    return entries, 8 + length


def _bytes_of(path: Path, begin: int, offsets: list[int]) -> bytes:
    with path.open("rb") as file:
        file.seek(begin + offsets[0])
        return file.read(offsets[1] - offsets[0])


def _bits(values: Any) -> Any:
    return values.view(f"u{values.dtype.itemsize}")


def _value(element: Any, kind: str) -> float | int:
    if kind == "BF16":  # the upper half of an fp32 number
        element = np.array([int(element) << 16], dtype="<u4").view("<f4")[0]
    value: float | int = element.item()
    return value


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of a stage that count, without clock times and memory."""
    lines = canonical_metrics(folder / "metrics.jsonl").splitlines()
    return [json.loads(line) for line in lines]


def _leaves(table: Any, name: str) -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of everything in a table that is not incidental."""
    if isinstance(table, dict):
        for key, value in table.items():
            if key not in INCIDENTAL:
                yield from _leaves(value, f"{name}{key}." if _is_table(value) else f"{name}{key}")
    elif isinstance(table, list) and any(map(_is_table, table)):
        for index, value in enumerate(table):
            path = value.get("path", index) if isinstance(value, dict) else index
            yield from _leaves(value, f"{name}{Path(str(path)).name}.")
    else:
        yield name, table


def _is_table(value: Any) -> bool:
    return isinstance(value, dict | list) and bool(value)


def _told(value: Any) -> str:
    if value is None:
        return "nothing"
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
