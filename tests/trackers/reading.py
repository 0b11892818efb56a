"""What trackers hold, read back: TensorBoard and MLflow through their libraries, W&B from its file.

The three give the same: {stage/name: [(step, value), ...]} in the order of the file or store.
"""

import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Series = dict[str, list[tuple[int, float]]]


def read_tensorboard(folder: Path) -> Series:
    """As TensorBoard shows it: rows that were taken back are gone."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: Series = {}
    for stage in sorted(path for path in folder.iterdir() if path.is_dir()):
        events = EventAccumulator(str(stage), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            values = [(event.step, event.value) for event in events.Scalars(tag)]
            found[f"{stage.name}/{tag}"] = values
    return found


def read_texts(folder: Path) -> dict[str, str]:
    """The texts that TensorBoard shows of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: events.Tensors(tag)[-1].tensor_proto.string_val[0].decode()
        for tag in events.Tags()["tensors"]
    }


def read_mlflow(uri: str, run_id: str) -> Series:
    """The whole history of every metric."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    keys = client.get_run(run_id).data.metrics
    return {
        key: [(metric.step, metric.value) for metric in client.get_metric_history(run_id, key)]
        for key in keys
    }


def read_wandb(folder: Path) -> Series:
    """The history of the one offline run below `folder`."""
    (path,) = folder.glob("offline-run-*/*.wandb")
    found: Series = defaultdict(list)
    for record in records_of(path):
        if not record.HasField("history"):
            continue
        row = {
            item.key or "/".join(item.nested_key): item.value_json for item in record.history.item
        }
        table: dict[str, Any] = {key: float(value) for key, value in row.items()}
        (step_key,) = (key for key in table if key.endswith("/step") and key != "_step")
        for key, value in table.items():
            if "/" in key and key != step_key:
                found[key].append((int(table[step_key]), value))
    return dict(found)


def records_of(path: Path) -> Iterator[Any]:
    """The records of a .wandb file, which is a LevelDB log: blocks of 32 KiB, a header of 7 bytes,
    and for each piece a checksum, a length and whether it is whole, first, middle or last.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    content = path.read_bytes()
    position, collected = 7, b""
    while position + 7 <= len(content):
        left = 32_768 - position % 32_768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        piece = content[position + 7 : position + 7 + length]
        position += 7 + length
        collected += piece
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(collected)
            yield record
            collected = b""
