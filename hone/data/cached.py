"""What the data cache holds, and taking entries out of it.

Called by `hone data list`. An entry is a folder of `prepared.py`. Left out: the index of hashed
files beside them, which is small, and made tokenizers.
"""

import hashlib
import shutil
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hone.data.builtin_templates import ALPACA, CHATML, LLAMA
from hone.data.prepared import LAYOUT
from hone.data.storage import UNFINISHED
from hone.files import read_json
from hone.recipe.data import SampleKind


@dataclass(frozen=True)
class Entry:
    """One prepared data set. size: bytes on the disk. made_at: seconds since 1970. template: the
    name of one that comes with Hone, the beginning of another one's SHA-256, or None for plain
    text. kind: what a sample is. readable: whether this version of Hone can use it; where not, the
    rest is unknown.
    """

    folder: Path
    readable: bool
    size: int
    made_at: float
    sources: tuple[str, ...] = ()
    samples: int | None = None
    tokens: int | None = None
    template: str | None = None
    kind: SampleKind | None = None

    @property
    def key(self) -> str:
        return self.folder.name


def list_entries(folder: Path) -> list[Entry]:
    """All entries of a cache folder, the oldest first."""
    manifests = folder.glob("*/manifest.json")
    found = [_entry(path) for path in manifests if not path.parent.name.startswith(".")]
    return sorted(found, key=lambda entry: (entry.made_at, entry.key))


def _entry(path: Path) -> Entry:
    folder = path.parent
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    manifest = read_json(path) or {}
    made_at = path.stat().st_mtime
    if manifest.get("layout") != LAYOUT:
        return Entry(folder, False, size, made_at)
    return Entry(
        folder,
        True,
        size,
        made_at,
        tuple(dict.fromkeys(source.get("name", source["path"]) for source in manifest["sources"])),
        manifest["report"]["samples"],
        manifest["report"]["tokens"],
        _template_name(manifest),
        manifest["kind"],
    )


def _template_name(manifest: dict[str, Any]) -> str | None:
    if manifest["plain"]:
        return None
    template: str = manifest["template"]
    names = {CHATML: "chatml", ALPACA: "alpaca", LLAMA: "llama"}
    return names.get(template) or hashlib.sha256(template.encode()).hexdigest()[:8]


def remove(entries: Iterable[Entry]) -> None:
    """Take entries out: each loses its name at once, so that none is ever there in part."""
    for entry in entries:
        unnamed = entry.folder.with_name(f"{UNFINISHED}{uuid.uuid4().hex}")
        entry.folder.rename(unnamed)
        shutil.rmtree(unnamed)
