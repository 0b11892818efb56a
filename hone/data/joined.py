"""Several prepared data sets as one: the samples of the first, then those of the next.

`stages/data.py` joins the data sets of a stage; one alone is a joined one of one. Left out: how
often a sample comes (seeds.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from hone.data.prepared import Prepared
from hone.errors import UserError
from hone.recipe.data import SampleKind
from hone.records import Sample


@dataclass(frozen=True, eq=False)
class Joined:
    """Prepared data sets, at least one. decides: the set whose template the result is saved with.

    lengths: (N,) int32 tokens. trained: (N,) int32 trained tokens. The N samples are numbered
    through all sets.
    """

    sets: tuple[Prepared, ...]
    decides: int = 0

    def __len__(self) -> int:
        return self.borders[-1]

    @cached_property
    def borders(self) -> list[int]:
        """Where each set begins, and where the last one ends."""
        return list(accumulate(map(len, self.sets), initial=0))

    @cached_property
    def lengths(self) -> npt.NDArray[np.int32]:
        return np.concatenate([each.lengths for each in self.sets])

    @cached_property
    def trained(self) -> npt.NDArray[np.int32]:
        return np.concatenate([each.trained for each in self.sets])

    @property
    def report(self) -> dict[str, int]:
        """The counts of all sets together."""
        names = self.sets[0].report
        return {name: sum(each.report[name] for each in self.sets) for name in names}

    @property
    def skipped(self) -> list[str]:
        return [message for each in self.sets for message in each.skipped]

    @property
    def kind(self) -> SampleKind:
        """What a sample is, the same in all sets of a stage."""
        return self.sets[0].kind

    @property
    def plain(self) -> bool:
        return self.sets[self.decides].plain

    @property
    def template(self) -> str:
        return self.sets[self.decides].template

    @property
    def date(self) -> str | None:
        return self.sets[self.decides].date

    @property
    def end_token_ids(self) -> list[int]:
        return self.sets[self.decides].end_token_ids

    def set_of(self, index: int) -> int:
        """Which set a sample is of, from 0; raises IndexError outside 0..N-1."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return int(np.searchsorted(self.borders, index, side="right")) - 1

    def sample(self, index: int) -> Sample:
        """The sample under its number in all sets; raises IndexError outside 0..N-1."""
        found = self.set_of(index)
        sample = self.sets[found].sample(index - self.borders[found])
        return sample if found == 0 else replace(sample, index=index)

    def place(self, index: int) -> str:
        """Where the sample came from: file and line, or data set and row."""
        found = self.set_of(index)
        return self.sets[found].place(index - self.borders[found])

    def part(self, index: int) -> tuple[int, int]:
        """Which of its row's samples this is, from 1, and how many there are."""
        found = self.set_of(index)
        return self.sets[found].part(index - self.borders[found])


def join(sets: Sequence[Prepared], names: Sequence[str]) -> Joined:
    """The data sets of a stage. Raises UserError where conversations are rendered with different
    templates: the result can be saved with one only.

    names: the sets' paths, for the message. A template has no effect on plain text, so what is
    rendered decides.
    """
    rendered = [i for i, each in enumerate(sets) if not each.plain] or range(len(sets))
    first = rendered[0]
    for other in rendered[1:]:
        if sets[other].template != sets[first].template:
            raise UserError(
                f"data[{first}] `{names[first]}` and data[{other}] `{names[other]}` are rendered "
                "with different chat templates; expected one, since the model is saved with one",
                hint="name the same `template` beside each `path`",
                exit_code=2,
            )
    return Joined(tuple(sets), first)
