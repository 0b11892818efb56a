"""The files a run began with: their SHA-256 in lock.json, and how a later change is seen and told.

`stages/` records the base model, `changes.py` compares before resuming, `reproduction.py` before
running again. Hashes are remembered in the cache by path, size and time stamp, so that a large
model is read once. Left out: the hashes of data, which `data/prepare.py` takes on the way.
"""

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hone.data.prepared import default_cache_folder
from hone.data.sources import SourceFile, has_settled, hash_files
from hone.data.storage import write_shared_json
from hone.files import read_json

# {path, size, mtime_ns, sha256}: a file as it was when it was read
FileRecord = dict[str, Any]

# What transformers, PEFT and tokenizers read of a model's folder.
MODEL_FILES = (".safetensors", ".json", ".jinja", ".model", ".txt", ".py", ".bin", ".pt")


@dataclass(frozen=True)
class FileChange:
    """A file that is not what it was. after: None where it is gone."""

    path: str
    before: FileRecord
    after: FileRecord | None

    def in_words(self) -> str:
        """What it was and what it is."""
        now = _described(self.after) if self.after else "gone"
        return f"`{self.path}` was {_described(self.before)}; it is {now}"

    def as_json(self) -> dict[str, Any]:
        """The path, and both records."""
        return {"path": self.path, "before": self.before, "after": self.after}


def record_files(paths: Iterable[Path]) -> list[FileRecord]:
    """The files with their hashes; those of unchanged files are remembered in the cache."""
    index = default_cache_folder().parent / "files.json"
    known = {path: SourceFile(**entry) for path, entry in (read_json(index) or {}).items()}
    files = hash_files(list(paths), known)
    new = {file.path: file for file in files if has_settled(file)}
    if any(known.get(path) != file for path, file in new.items()):
        index.parent.mkdir(parents=True, exist_ok=True)
        write_shared_json(index, {path: asdict(file) for path, file in {**known, **new}.items()})
    return [_record(file) for file in files]


def record_model(source: str) -> dict[str, Any]:
    """{source, revision, files} of a model's folder or of the newest local snapshot of a Hub id.

    revision: the snapshot's commit. Nothing is downloaded: called once the model is here.
    """
    folder = find_folder(source)
    if folder is None:
        return {"source": source, "revision": None, "files": []}
    snapshot = folder.parent.name == "snapshots"
    paths = sorted(path for path in folder.iterdir() if path.suffix in MODEL_FILES)
    files = record_files(path for path in paths if path.is_file())
    return {"source": source, "revision": folder.name if snapshot else None, "files": files}


def find_folder(source: str) -> Path | None:
    """The folder that a model's source names on this machine, or None."""
    if os.path.isdir(source):
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None


def find_file_changes(records: Iterable[FileRecord], *, anew: bool = False) -> list[FileChange]:
    """The recorded files that have another content now, or are gone.

    anew: all are read again; otherwise those whose size and time stamp are the same count as
    unchanged.
    """
    return [
        change
        for record in records
        if (change := _find_change(record, Path(record["path"]), anew)) is not None
    ]


def find_model_changes(recorded: dict[str, Any], *, anew: bool = False) -> list[FileChange]:
    """The files of a recorded model that have another content now, or are gone.

    Compared by their names: a Hub id may have another snapshot by now. A model that is nowhere
    gives all its files as gone.
    """
    folder = find_folder(recorded["source"])
    changes = []
    for record in recorded["files"]:
        path = Path(record["path"])
        change = _find_change(record, folder / path.name if folder else path, anew)
        changes += [change] if change else []
    return changes


def _find_change(record: FileRecord, path: Path, anew: bool) -> FileChange | None:
    try:
        stat = path.stat()
    except OSError:
        return FileChange(str(path), record, None)
    here = (str(path.absolute()), stat.st_size, stat.st_mtime_ns)
    if here == (record["path"], record["size"], record["mtime_ns"]) and not anew:
        return None
    found = _record(hash_files([path], {})[0])
    if found["sha256"] == record["sha256"]:
        return None
    return FileChange(str(path), _plain(record), found)


def _record(file: SourceFile) -> FileRecord:
    return _plain(asdict(file))


def _plain(record: FileRecord) -> FileRecord:
    return {key: record[key] for key in ("path", "size", "mtime_ns", "sha256")}


def _described(record: FileRecord) -> str:
    written = datetime.fromtimestamp(record["mtime_ns"] / 1e9, UTC).isoformat(" ", "seconds")
    return f"{record['size']:,} bytes of {written} with SHA-256 {record['sha256'][:12]}"
