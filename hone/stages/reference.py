"""What a stage's samples have under the policy as it is when the stage begins, kept on disk.

Called by `preference.py`. The log-probabilities are computed once, before step 1, with the one
model that is trained afterwards. They lie in the stage's folder in parts of a fixed number of
samples, each whole or not there: what a kill leaves is gone on with, and no number depends on where
that was.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hone.annotate import annotate
from hone.checkpoints import find_fault, find_newest, folder_bytes, write_folder, write_making_room
from hone.cutting import in_memory
from hone.errors import UserError
from hone.files import is_disk_full
from hone.memory import in_words
from hone.records import Sample, Segment
from hone.training import EVALUATION, Training

REFERENCE = "reference"  # the folder, and the constant's name
SOURCE = "source.json"
PART = 256  # samples; no more than so many are computed again after a kill


class Reference:
    """The log-probabilities, in `folder`, of `count` samples, which `sample_of` gives by number.

    source: what tells these samples from others, in one line.
    """

    def __init__(
        self, folder: Path, count: int, sample_of: Callable[[int], Sample], source: str
    ) -> None:
        self.folder = folder
        self.count = count
        self.sample_of = sample_of
        self.source = source
        self.num_parts = -(-count // PART)
        self.read_part = lru_cache(maxsize=None)(self._read_part)

    def part_folder(self, part: int) -> Path:
        """Where the part 0, 1, ... lies."""
        return self.folder / f"part_{part:06d}"

    def compute(self, training: Training, advance: Callable[[int], None]) -> None:
        """Compute the parts that are not there; `advance` is told how many samples are done.

        Raises UserError where the weights are not those that the stage began with, and where the
        disk is full.
        """
        faults = {part: self.find_fault(part) for part in range(self.num_parts)}
        missing = [part for part, fault in faults.items() if fault is not None]
        broken = [part for part in missing if self.part_folder(part).exists()]
        if missing and find_newest(training.checkpoints)[0] is not None:
            raise self._lost(training, missing[0], faults[missing[0]])
        for part in broken:
            place = f"{self.folder.name}/{self.part_folder(part).name}"
            training.warn(f"{place} cannot be used, {faults[part]}: it is computed again")
        done = self.count - sum(len(self._numbers(part)) for part in missing)
        for part in missing:
            advance(done)
            self._compute_part(training, part)
            done += len(self._numbers(part))
        advance(done)

    def find_fault(self, part: int) -> str | None:
        """Why a part is not what it should be, or None."""
        folder = self.part_folder(part)
        fault = find_fault(folder)
        if fault is None and (folder / SOURCE).read_text() != self.source:
            return "it is of other data"
        return fault

    def put(self, samples: Sequence[Sample], numbers: Iterable[int]) -> list[Sample]:
        """The samples, which have these numbers, with the constant "reference" on their tokens."""
        return [
            _with_values(sample, self._values(int(number)))
            for sample, number in zip(samples, numbers, strict=True)
        ]

    @property
    def size(self) -> str:
        """Bytes on the disk, in words."""
        return in_words(folder_bytes(self.folder))

    def _numbers(self, part: int) -> range:
        return range(part * PART, min((part + 1) * PART, self.count))

    def _compute_part(self, training: Training, part: int) -> None:
        # Each has its own moment, all of them before the evaluation that comes before step 1: where
        # the memory runs out, the parts before it stay as they are.
        moment = EVALUATION * part / self.num_parts
        samples = [self.sample_of(number) for number in self._numbers(part)]

        def work() -> list[Sample]:
            return annotate(training, samples, moment, REFERENCE)

        values = [_values_of(sample) for sample in in_memory(training, moment, work)]
        borders = np.cumsum([0, *map(len, values)], dtype=np.int64)

        def write(folder: Path) -> None:
            np.save(folder / "values.npy", np.concatenate(values))
            np.save(folder / "borders.npy", borders)
            (folder / SOURCE).write_text(self.source)

        try:
            write_making_room(
                lambda: write_folder(self.part_folder(part), write), training.checkpoints, None
            )
        except OSError as error:
            if not is_disk_full(error):
                raise
            raise UserError(
                f"the log-probabilities of the reference could not be kept, the disk of "
                f"{self.folder} is full",
                hint="make room, then go on with `hone resume`",
            ) from error

    def _read_part(self, part: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        folder = self.part_folder(part)
        values = np.load(folder / "values.npy", mmap_mode="r")
        return values, np.load(folder / "borders.npy")

    def _values(self, number: int) -> npt.NDArray[np.float32]:
        part, place = divmod(number, PART)
        values, borders = self.read_part(part)
        found: npt.NDArray[np.float32] = values[borders[place] : borders[place + 1]]
        return found

    def _lost(self, training: Training, part: int, fault: str | None) -> UserError:
        return UserError(
            f"{self.part_folder(part)} cannot be used, {fault}; and the stage has gone on from the "
            "weights that it was computed with",
            hint=f"delete {training.folder}, then `hone resume`: the stage begins anew",
        )


def _values_of(sample: Sample) -> npt.NDArray[np.float32]:
    """The constant of all trained tokens, one segment after the other; the engine computes it in
    fp32.
    """
    columns = [
        np.asarray(segment.constants[REFERENCE][segment.trained], dtype=np.float32)
        for segment in sample.segments
    ]
    return np.concatenate(columns)


def _with_values(sample: Sample, values: npt.NDArray[np.float32]) -> Sample:
    trained = [int(np.sum(segment.trained)) for segment in sample.segments]
    assert sum(trained) == len(values), "the reference is that of another sample"
    ends = np.cumsum(trained)[:-1]

    def segments() -> Iterator[Segment]:
        for segment, part in zip(sample.segments, np.split(values, ends), strict=True):
            column = np.zeros(len(segment.tokens))
            column[np.asarray(segment.trained, dtype=bool)] = part
            yield replace(segment, constants={**segment.constants, REFERENCE: column})

    return replace(sample, segments=tuple(segments()))
