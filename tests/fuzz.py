"""What the tests with random input share: how many examples, and what broken input looks like.

`HONE_FUZZ=20` makes twenty times as many examples, other ones each time; without it they are the
same in every run.
"""

import contextlib
import io
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from hypothesis import settings
from hypothesis import strategies as st

TIMES = int(os.environ.get("HONE_FUZZ", "1"))
DEADLINE_S = 20.0  # of processor time, for what takes a fraction of a second
PYTHON_FAULT = ("this is a fault of Hone", "Traceback")


def examples(count: int) -> settings:
    """A decorator: `count` examples, or `HONE_FUZZ` times as many."""
    return settings(max_examples=count * TIMES)


@contextlib.contextmanager
def soon() -> Iterator[None]:
    """Fails where the work inside takes long. Other processes do not count."""
    began = time.process_time()
    yield
    taken = time.process_time() - began
    assert taken < DEADLINE_S, f"took {taken:.0f} s"


class Printed(NamedTuple):
    """The exit code of a command and what it printed."""

    code: int
    out: str
    err: str


def command(*words: str) -> Printed:
    """`hone WORDS` in this process; fails where it ends in a traceback or takes long."""
    from hone.cli.commands import invoke

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), soon():
        code = invoke(words)
    printed = Printed(code, out.getvalue(), err.getvalue())
    assert code in (0, 1, 2), printed
    assert not any(fault in printed.out + printed.err for fault in PYTHON_FAULT), printed
    return printed


class Change(NamedTuple):
    """One change of a nested value: where (the n-th place), what, and with what."""

    place: int
    kind: str
    value: Any


def changes(values: st.SearchStrategy[Any], most: int = 3) -> st.SearchStrategy[list[Change]]:
    """Some changes, with values of the strategy."""
    kinds = st.sampled_from(["replace", "delete", "rename", "add", "swap"])
    return st.lists(st.builds(Change, st.integers(0, 1000), kinds, values), max_size=most)


def changed(value: Any, changes: Sequence[Change]) -> Any:
    """A deep copy of nested dicts and lists with the changes made."""
    value = _copied(value)
    for change in changes:
        places = list(_places(value))
        if places:
            _change(*places[change.place % len(places)], change, places)
    return value


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of all that is in a nested value."""
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _change(container: Any, key: Any, change: Change, places: list[tuple[Any, Any]]) -> None:
    if change.kind == "delete":
        del container[key]
    elif change.kind == "swap":
        other, name = places[(change.place // 7) % len(places)]
        container[key] = _copied(other[name])
    elif change.kind == "rename" and isinstance(container, dict):
        container[str(change.value)[:20]] = container.pop(key)
    elif change.kind == "add" and isinstance(container, dict):
        container[f"{key}x"] = change.value
    elif change.kind == "add":
        container.append(change.value)
    else:
        container[key] = change.value


def broken(content: bytes, made: list[tuple[int, str, bytes]]) -> bytes:
    """The bytes with some of them set, cut out or inserted."""
    for place, kind, inserted in made:
        at = place % (len(content) + 1)
        end = at + (len(inserted) if kind == "set" else 1 + place % 40 if kind == "cut" else 0)
        content = content[:at] + (b"" if kind == "cut" else inserted) + content[end:]
    return content
