"""What a tracker's process does: follow `metrics.jsonl` of every stage and send each row once.

Called by `__main__.py`. A row that a resumed stage did again is the same row and is not sent again,
unless the tracker could forget it; one that came out otherwise is. How far it got is kept in
`trackers/NAME.json` after the tracker has confirmed it:

    {"state": "succeeded" once all is sent, "points": 120, "bytes": {"1-sft": 24310},
     "remote": {"run_id": ...}}
"""

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from hone.files import read_json, write_json
from hone.metrics import Row, canonical_row, read_new_rows
from hone.runs import Run
from hone.trackers.records import About, Point, Tracker

AT_ONCE = 200  # points between two signs of life

Key = tuple[int, str]
"""Step and split."""


def progress_path(run: Run, name: str) -> Path:
    """Where it stands how far a tracker got."""
    return run.path / "trackers" / f"{name}.json"


def everything_sent(run: Run, name: str, state: str) -> bool:
    """True where a tracker has all rows of the run and this final state."""
    kept = read_json(progress_path(run, name)) or {}
    sizes = {path.parent.name: path.stat().st_size for path in _metrics_files(run)}
    return kept.get("state") == state and kept.get("bytes") == sizes


class Following:
    """A run and a tracker while rows go from one to the other."""

    def __init__(self, run: Run, name: str, connect: Callable[[About], Tracker]) -> None:
        self.run = run
        self.path = progress_path(run, name)
        self.path.parent.mkdir(exist_ok=True)
        self.about = About.of(run)
        self.tracker = connect(self.about)
        kept = {} if self.tracker.anew else read_json(self.path) or {}
        if kept.get("remote", {}).get("run_id") != self.tracker.remote.get("run_id"):
            kept = {}  # of another run there: this one is to get everything
        self.points: int = kept.get("points", 0)
        self.bytes: dict[str, int] = {}
        self.sent: dict[str, dict[Key, int]] = {}
        for stage, end in kept.get("bytes", {}).items():
            self._recall(stage, end)
        if self.tracker.anew or self.tracker.confirm():
            self.keep(None)

    def send_new(self) -> Iterator[None]:
        """Send the rows that are not sent yet; yields after every few."""
        for path in _metrics_files(self.run):
            stage = path.parent.name
            rows, end = read_new_rows(path, self.bytes.get(stage, 0))
            waiting: list[Point] = []
            began_s = self._began_s(stage) if rows else 0.0
            for row in rows:
                if "resumed_from" in row:
                    self.tracker.send(waiting)
                    waiting = []
                    self._take_back(stage, row["resumed_from"])
                elif self._is_new(stage, row):
                    waiting.append(Point.of(row, stage, self.points, began_s))
                    self.points += 1
                if len(waiting) >= AT_ONCE:
                    self.tracker.send(waiting)
                    waiting = []
                    yield
            if rows:
                self.tracker.send(waiting)
                self.bytes[stage] = end
                yield
        if self.tracker.confirm():
            self.keep(None)

    def close(self, state: str) -> None:
        """Tell the tracker how the run ended; all rows have been sent."""
        self.tracker.close(state)
        self.keep(state)

    def keep(self, state: str | None) -> None:
        """Write down how far it got."""
        table: dict[str, Any] = {"state": state, "points": self.points, "bytes": self.bytes}
        table["remote"] = {
            key: self.run.conceal(value) for key, value in self.tracker.remote.items()
        }
        if table != read_json(self.path):
            write_json(self.path, table)

    def _is_new(self, stage: str, row: Row) -> bool:
        """Also remembers the row."""
        sent, key, line = self.sent.setdefault(stage, {}), _key(row), hash(canonical_row(row))
        new = sent.get(key) != line
        sent[key] = line
        return new

    def _take_back(self, stage: str, step: int) -> None:
        if self.tracker.take_back(stage, step):
            sent = self.sent.get(stage, {})
            self.sent[stage] = {key: line for key, line in sent.items() if key[0] <= step}

    def _recall(self, stage: str, end: int) -> None:
        """The rows of a stage that an earlier process has sent: those before byte `end`."""
        path = self.run.path / "stages" / stage / "metrics.jsonl"
        rows, self.bytes[stage] = read_new_rows(path, 0, end)
        self.sent[stage] = {_key(row): hash(canonical_row(row)) for row in rows if "step" in row}

    def _began_s(self, stage: str) -> float:
        """When the stage began for the first time, in seconds since 1970."""
        number = int(stage.partition("-")[0])
        for event in self.run.events():
            if event.get("event") == "stage" and event.get("stage") == number:
                return datetime.fromisoformat(event["time"]).timestamp()
        return self.about.began_s


def _metrics_files(run: Run) -> list[Path]:
    paths = [folder / "metrics.jsonl" for folder in run.stage_folders()]
    return [path for path in paths if path.exists()]


def _key(row: Row) -> Key:
    return row["step"], row.get("split") or ""
