"""What a case of `test_every_field.py` is; those of a family of methods stand in a file each."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """changes: overrides, each of which alone makes `differs` differ from a run of `start`.

    differs, same: parts of `Outcome`, in one text. same: what the changes must leave as it is.
    """

    changes: tuple[str, ...]
    differs: str
    start: tuple[str, ...] = ()
    same: str = ""


def case(
    *changes: str, start: str | tuple[str, ...] = (), differs: str = "weights", same: str = ""
) -> Case:
    """A case as it stands in the tables."""
    return Case(changes, differs, (start,) if isinstance(start, str) else start, same)
