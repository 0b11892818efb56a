"""An evaluation on disk: NAME.jsonl with a line for each question, NAME.json with all the rest.

NAME.json says what was evaluated (`what`), and when all questions are answered, `finished` and the
measures. Lines are appended as batches are done; an evaluation that was killed goes on behind the
last whole batch, if what it would do is the same, and ends in the same bytes. Made by `hone
evaluate`; `read_evaluation` is for whoever shows or compares them.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hone.errors import UserError
from hone.evaluation.answered import Answered, Evaluated, summarise
from hone.files import read_json, read_json_lines, write_json
from hone.locks import Held, held
from hone.signals import uninterrupted

FOLDER = "evaluations"  # of a run, or of the current folder
SHOWN_ONLY = ("source", "path")  # of a model and of data: their content is what counts

What = dict[str, Any]
"""What is evaluated: model, data, settings, versions; tables of plain values."""


@dataclass(frozen=True)
class Stored:
    """A finished evaluation. what: model, data and settings."""

    path: Path
    what: What
    evaluated: Evaluated


@dataclass(frozen=True)
class Place:
    """Where an evaluation is. lines: NAME.jsonl."""

    lines: Path

    @property
    def table(self) -> Path:
        """NAME.json."""
        return self.lines.with_suffix(".json")

    @property
    def is_taken(self) -> bool:
        """True where either file is there."""
        return self.lines.exists() or self.table.exists()

    def what(self) -> What | None:
        """What is evaluated here; None where nothing is, or it cannot be read."""
        found: What | None = (read_json(self.table) or {}).get("what")
        return found

    @property
    def finished(self) -> bool:
        """True where all questions are answered."""
        return bool((read_json(self.table) or {}).get("finished"))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only process that writes here; raises UserError where another one does."""
        self.lines.parent.mkdir(parents=True, exist_ok=True)
        path = self.lines.with_name(f".{self.lines.stem}.lock")
        try:
            with held(path):
                yield
        except Held as other:
            raise UserError(
                f"`{self.lines}` is being written by process {other.holder.pid} on host "
                f"`{other.holder.host}`",
                hint="wait until it ends, or name another file: --out FILE.jsonl",
                exit_code=2,
            ) from None

    def begin(self, what: What) -> None:
        """Begin anew, in the place of what is there."""
        with uninterrupted():
            self.lines.unlink(missing_ok=True)
            write_json(self.table, {"schema": 1, "finished": False, "what": what})
            self.lines.touch()

    def take_up(self, batch: int, total: int) -> list[Answered]:
        """The rows of all whole batches of `total` rows; what stands behind them is cut off."""
        content = self.lines.read_bytes() if self.lines.exists() else b""
        whole = [line for line in content.splitlines(keepends=True) if line.endswith(b"\n")]
        kept = b"".join(whole if len(whole) == total else whole[: len(whole) // batch * batch])
        if kept != content:
            with self.lines.open("r+b") as file:
                file.truncate(len(kept))
        return [Answered.from_json(json.loads(line)) for line in kept.splitlines()]

    def keep(self, rows: list[Answered]) -> None:
        """Append the rows of a batch."""
        text = "".join(row.as_line() + "\n" for row in rows)
        with uninterrupted(), self.lines.open("ab") as file:
            file.write(text.encode(errors="backslashreplace"))
            file.flush()
            os.fsync(file.fileno())

    def finish(self, what: What, evaluated: Evaluated) -> None:
        """Write the measures."""
        write_json(self.table, {"schema": 1, "finished": True, "what": what, **evaluated.as_json()})


def find_place(folder: Path, name: str, what: What) -> tuple[Place, list[str]]:
    """The first of `name`, `name-2`, ... that is free or holds this very evaluation; for a free
    one, how the last one before it differs, in words.
    """
    differences: list[str] = []
    number = 1
    while True:
        place = Place(folder / f"{name if number == 1 else f'{name}-{number}'}.jsonl")
        found = place.what()
        if not place.is_taken:
            return place, differences
        if found is not None:
            differences = differing(found, what)
            if not differences:
                return place, []
        number += 1


def check_place(place: Place, what: What) -> None:
    """Raises UserError where something else is in the place than this evaluation."""
    if not place.is_taken:
        return
    found = place.what()
    unlike = ["it is no evaluation"] if found is None else differing(found, what)
    if unlike:
        raise UserError(
            f"`{place.lines}` holds something else: {'; '.join(unlike)}",
            hint="name another file with --out, or write over it: --anew",
            exit_code=2,
        )


def differing(before: What, now: What) -> list[str]:
    """How one evaluation differs from another, in words; files count by their content."""
    one, other = dict(_values(before)), dict(_values(now))
    return [
        f"{key} was {_shown(one.get(key))}, is {_shown(other.get(key))}"
        for key in dict.fromkeys([*one, *other])
        if one.get(key) != other.get(key)
    ]


def read_evaluation(path: Path) -> Stored:
    """A finished evaluation, named by either of its files. Raises UserError."""
    place = Place(path.with_suffix(".jsonl"))
    what = place.what()
    if what is None or not place.finished:
        state = "is not finished" if what is not None else "is no evaluation"
        raise UserError(f"`{place.lines}` {state}", hint="hone evaluate --help", exit_code=2)
    rows = [Answered.from_json(row) for row in read_json_lines(place.lines)]
    return Stored(place.lines, what, summarise(rows))


def list_evaluations(folder: Path) -> list[Path]:
    """The finished evaluations in a folder, by name."""
    paths = sorted(folder.glob("*.jsonl"), key=lambda path: path.stem)
    found = (Place(path) for path in paths)
    return [place.lines for place in found if place.what() is not None and place.finished]


def _values(table: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _values(value, f"{before}{key}.")
        elif key not in SHOWN_ONLY:
            yield f"{before}{key}", value


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
