"""Prepared data on disk: arrays that are memory-mapped, and their manifest.

`prepare.py` makes such a folder; the stages, `hone data show` and a resumed run read it, without
the source. A folder holds one file for each of the `arrays_of` its kind and manifest.json. Left
out: making batches of samples (forest.py).
"""

import os
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hone.data.sources import place_in
from hone.errors import UserError
from hone.files import read_json
from hone.recipe.data import SampleKind
from hone.records import Sample, Segment
from hone.seeds import shuffle

LAYOUT = 6  # raised whenever the same inputs would give other arrays or another manifest
ARRAYS = {
    "tokens": np.int32,  # all samples, one after the other; of trees, segment by segment
    "trained": np.uint8,  # 1 where the token is a target of the loss
    "offsets": np.int64,  # N + 1 borders of the samples
    "counts": np.int32,  # N numbers of trained tokens
    "rows": np.int64,  # N line or row numbers, from 1
    "files": np.int32,  # N indices into the manifest's sources
}
SEGMENTS: dict[SampleKind, tuple[str, ...]] = {  # what hangs on what: all behind the first on it
    "supervised": ("text",),
    "pairs": ("prompt", "chosen", "rejected"),
    "unpaired": ("prompt", "completion"),
}
TREE_ARRAYS = {
    "segments": np.int32,  # N x S lengths of the segments
    "labels": np.uint8,  # N times 1 for an answer that is wanted; unpaired ones only
}
COUNTS = (
    "rows",
    "samples",
    "tokens",
    "trained_tokens",
    "truncated",
    "split_turns",
    "split_overlong",
    "dropped_overlong",
    "dropped_equal",
    "dropped_untrained",
    "skipped_rows",
    "straddling_tokens",
)
LEFT_OUT = ("dropped_overlong", "dropped_equal", "dropped_untrained", "skipped_rows")


@dataclass(frozen=True, eq=False)
class Prepared:
    """Tokenised samples.

    kind: what a sample is. lengths: (N,) int32 tokens, those of a shared prompt once. trained: (N,)
    int32 trained tokens, at least 1 on every side. report: counts by the names in `COUNTS`.
    skipped: the first of the skipped rows, named. sources: what was read, {path, size, mtime_ns,
    sha256, rows}. plain: texts that no template wraps. template, date, end_token_ids: as in
    `chat.Renderer`.
    """

    folder: Path
    key: str
    kind: SampleKind
    report: dict[str, int]
    plain: bool
    template: str
    date: str | None
    end_token_ids: list[int]
    sources: list[dict[str, Any]]
    skipped: list[str]
    lengths: npt.NDArray[np.int32]
    trained: npt.NDArray[np.int32]
    arrays: dict[str, npt.NDArray[Any]]

    def __len__(self) -> int:
        return len(self.lengths)

    def sample(self, index: int) -> Sample:
        """The sample's tree of segments, in the order of `SEGMENTS`; raises IndexError outside
        0..N-1. An unpaired answer carries the constant "label", 1.0 where it is wanted, else 0.0.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        begin, end = self.arrays["offsets"][index : index + 2]
        tokens = np.array(self.arrays["tokens"][begin:end])
        trained = np.array(self.arrays["trained"][begin:end], dtype=np.bool_)
        if self.kind == "supervised":
            return Sample(index, (Segment(tokens, trained),))
        borders = [0, *np.cumsum(self.segments[index])]
        parts = [slice(*ends) for ends in pairwise(borders)]
        constants = {}
        if self.kind == "unpaired":
            label = float(self.arrays["labels"][index])
            constants["label"] = np.full(borders[-1] - borders[1], label)
        prompt = Segment(tokens[parts[0]], trained[parts[0]])
        sides = [Segment(tokens[part], trained[part], 0, constants) for part in parts[1:]]
        return Sample(index, (prompt, *sides))

    @cached_property
    def segments(self) -> npt.NDArray[np.int32]:
        """(N, S) lengths of the segments in tokens; of supervised samples, that of the only one."""
        if self.kind == "supervised":
            return self.lengths[:, None]
        return self.arrays["segments"].reshape(len(self), -1)

    def place(self, index: int) -> str:
        """Where the sample came from: file and line, or data set and row."""
        file = self.sources[int(self.arrays["files"][index])]
        return place_in(file.get("name", file["path"]), int(self.arrays["rows"][index]))

    def part(self, index: int) -> tuple[int, int]:
        """Which of its row's samples this is, from 1, and how many there are."""
        first, last = self.row_borders[self.row_of[index] : self.row_of[index] + 2]
        return index - int(first) + 1, int(last - first)

    @cached_property
    def row_borders(self) -> npt.NDArray[np.int64]:
        """(R + 1,) the first sample of each of the R rows that have samples, and the end."""
        rows, files = self.arrays["rows"], self.arrays["files"]
        changes = np.flatnonzero((np.diff(rows) != 0) | (np.diff(files) != 0)) + 1
        return np.array([0, *changes, len(self)], dtype=np.int64)

    @cached_property
    def row_of(self) -> npt.NDArray[np.int64]:
        """(N,) the index of each sample's row among those that have samples."""
        return np.repeat(np.arange(len(self.row_borders) - 1), np.diff(self.row_borders))


def default_cache_folder() -> Path:
    """$HONE_CACHE/data, or ~/.cache/hone/data."""
    root = os.environ.get("HONE_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "hone") / "data"


def arrays_of(kind: SampleKind) -> dict[str, Any]:
    """The arrays of a kind of samples, each with the type of its numbers."""
    own = {"supervised": (), "pairs": ("segments",), "unpaired": ("segments", "labels")}[kind]
    return ARRAYS | {name: TREE_ARRAYS[name] for name in own}


def array_path(folder: Path, name: str) -> Path:
    """The file of an array."""
    return folder / f"{name}.{np.dtype((ARRAYS | TREE_ARRAYS)[name]).name}"


def array_sizes(folder: Path) -> dict[str, int]:
    """Bytes of the array files that there are."""
    paths = {name: array_path(folder, name) for name in ARRAYS | TREE_ARRAYS}
    return {name: path.stat().st_size for name, path in paths.items() if path.exists()}


def open_prepared(key: str, cache_folder: Path | None = None) -> Prepared | None:
    """Open what was prepared under `key`, without its source; None where it is not there whole."""
    folder = (cache_folder or default_cache_folder()) / key
    manifest = read_json(folder / "manifest.json")
    if manifest is None or manifest.pop("layout", None) != LAYOUT:
        return None
    if manifest.pop("sizes") != array_sizes(folder):
        return None
    arrays: dict[str, npt.NDArray[Any]] = {
        name: np.memmap(array_path(folder, name), dtype=kind, mode="r")
        for name, kind in arrays_of(manifest["kind"]).items()
    }
    return Prepared(
        folder=folder,
        lengths=np.diff(arrays["offsets"]).astype(np.int32),
        trained=np.array(arrays["counts"]),
        arrays=arrays,
        **manifest,
    )


def split_held_out(
    prepared: Prepared, share: float, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(training, held out) sample indices, int64: training ascending, held out as they were drawn.

    A pure function of the seed and the number of rows. The samples of a row stay together: what is
    held out is not seen in training as the beginning of another sample. At least one row is held
    out and never all; raises UserError when there is only one.
    """
    borders = prepared.row_borders
    total = len(borders) - 1
    if total < 2:
        raise UserError(
            "there is only 1 sample, or samples of only 1 row, so none can be held out for "
            "evaluation",
            hint="leave `evaluation` out, or name other data for it: evaluation: {data: ...}",
        )
    order = shuffle(total, seed, "held out")
    drawn = order[: min(max(round(total * share), 1), total - 1)]
    held_out = np.concatenate([np.arange(borders[i], borders[i + 1]) for i in drawn])
    return np.setdiff1d(np.arange(len(prepared)), held_out), held_out
