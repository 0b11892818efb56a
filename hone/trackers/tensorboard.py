"""TensorBoard: event files, one folder for each stage, written without torch or tensorflow.

They are a copy of the metrics: an attempt writes them anew, and takes rows back with the event that
TensorBoard itself knows as a restart. Relative folders belong to the recipe's.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hone.extras import import_extra
from hone.recipe.trackers import TensorBoard
from hone.trackers.records import About, Point

WISH = "trackers: tensorboard"


def check(settings: TensorBoard) -> None:
    """Nothing but the library is needed."""


def connect(settings: TensorBoard, about: About) -> "EventFiles":
    """Begin the event files of a run."""
    folder = about.folder / "trackers" / "tensorboard"
    if settings.folder is not None:
        folder = about.recipe_folder / settings.folder / about.name
    return EventFiles(folder, about)


class EventFiles:
    """The event files below one folder."""

    def __init__(self, folder: Path, about: About) -> None:
        self.anew = True
        self.remote = {"folder": str(folder)}
        self.folder = folder
        self.files: dict[str, EventFile] = {}
        texts = {"recipe": about.recipe, "versions": about.versions}
        for name, table in texts.items():
            self.file("").text(name, "```json\n" + json.dumps(table, indent=2) + "\n```")

    def file(self, stage: str) -> "EventFile":
        """The file of a stage, begun on first use; "" stands for the run itself."""
        if stage not in self.files:
            self.files[stage] = EventFile(self.folder / stage)
        return self.files[stage]

    def send(self, points: Sequence[Point]) -> None:
        """Append the numbers."""
        for point in points:
            self.file(point.stage).scalars(point)

    def take_back(self, stage: str, step: int) -> bool:
        """Rows after `step` vanish when the file is read."""
        self.file(stage).restart(step + 1)
        return True

    def confirm(self) -> bool:
        """Hand everything to the system."""
        for file in self.files.values():
            file.writer.flush()
        return True

    def close(self, state: str) -> None:
        """Write the final state as a text."""
        self.file("").text("state", state)
        for file in self.files.values():
            file.writer.close()


class EventFile:
    """One event file, which takes the place of those that earlier attempts wrote."""

    def __init__(self, folder: Path) -> None:
        proto = "tensorboard.compat.proto"
        self.event = import_extra(f"{proto}.event_pb2", "tensorboard", WISH)
        self.summary = import_extra(f"{proto}.summary_pb2", "tensorboard", WISH)
        self.tensor = import_extra(f"{proto}.tensor_pb2", "tensorboard", WISH)
        records = import_extra("tensorboard.summary.writer.record_writer", "tensorboard", WISH)
        folder.mkdir(parents=True, exist_ok=True)
        before = sorted(folder.glob("events.out.tfevents.*.hone"))
        number = int(before[-1].name.split(".")[-2]) + 1 if before else 1
        path = folder / f"events.out.tfevents.{number:010d}.hone"  # read in the order of names
        self.writer = records.RecordWriter(path.open("wb"))
        self.write(time.time(), 0, file_version="brain.Event:2")
        self.restart(0)
        for old in before:
            old.unlink()

    def restart(self, step: int) -> None:
        """What stands before with this step or a later one does not count any more."""
        log = self.event.SessionLog(status=self.event.SessionLog.START)
        self.write(time.time(), step, session_log=log)

    def scalars(self, point: Point) -> None:
        """All numbers of a point."""
        values = [
            self.summary.Summary.Value(tag=name, simple_value=value)
            for name, value in point.values.items()
        ]
        self.write(point.time_s, point.step, summary=self.summary.Summary(value=values))

    def text(self, name: str, text: str) -> None:
        """A text, as TensorBoard's page of texts shows it."""
        plugin = self.summary.SummaryMetadata.PluginData(plugin_name="text")
        value = self.summary.Summary.Value(
            tag=name,
            metadata=self.summary.SummaryMetadata(plugin_data=plugin),
            tensor=self.tensor.TensorProto(dtype="DT_STRING", string_val=[text.encode()]),
        )
        self.write(time.time(), 0, summary=self.summary.Summary(value=[value]))

    def write(self, time_s: float, step: int, **content: Any) -> None:
        """Append one event."""
        event = self.event.Event(wall_time=time_s, step=step, **content)
        self.writer.write(event.SerializeToString())
