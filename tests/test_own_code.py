"""A person's own code: found by its file and name, imported once, faults in words."""

import pickle
import re
import sys
from pathlib import Path

import pytest

from hone.errors import UserError
from hone.own_code import load_function, load_own

pytestmark = pytest.mark.quick


def test_it_is_imported_once_with_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_own_code.py").write_text("word = 'hello'\n")
    file = tmp_path / "own.py"
    file.write_text(
        "from neighbour_of_own_code import word\n"
        "calls = []\n"
        "class Thing: pass\n"
        "def say():\n    calls.append(word)\n    return len(calls)\n"
    )
    first, second = (load_function(f"{file}:say", "rewards") for _ in range(2))
    assert (first(), second()) == (1, 2)
    thing = load_own(f"{file}:Thing", "rewards")
    assert isinstance(pickle.loads(pickle.dumps(thing())), thing)
    sys.path.remove(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (None, "f", "there is no Python file"),
        ("def distinct(): pass\n", "distnct", "there is no `distnct` in .*; did you mean `disti"),
        ("1 / 0\n", "f", "cannot be imported: ZeroDivisionError: division by zero"),
        ("def f(:\n", "f", "cannot be imported: SyntaxError"),
        ("raise SystemExit(3)\n", "f", "cannot be imported: SystemExit: 3"),
        ("f = 3\n", "f", "is int; expected a function"),
    ],
)
def test_what_cannot_be_used(tmp_path: Path, text: str | None, name: str, message: str) -> None:
    file = tmp_path / "own.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_function(f"{file}:{name}", "rewards")
    assert re.match("rewards: ", caught.value.message)
    assert caught.value.exit_code == 2
    if str(tmp_path) in sys.path:
        sys.path.remove(str(tmp_path))
