"""Code of a person's own, named in a recipe as `file.py:name`: found, imported once, handed out.

Called by `environments/` and `rewards/`. Nothing is imported before it is used. The file's folder
comes first on the path, as for a script, so that the file may import its neighbours.
"""

import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from hone.errors import UserError, nearest


def own_file(name: str) -> Path:
    """The file that `file.py:name` names."""
    return Path(name.rpartition(":")[0]).expanduser().absolute()


def load_own(name: str, wish: str) -> Any:
    """What `file.py:name` names. wish: what of the recipe wants it, as a message begins: `rewards`.

    Raises UserError for a file or a name that is not there, and for a file whose import fails.
    """
    path, attribute = own_file(name), name.rpartition(":")[2]
    if not path.is_file() or path.suffix != ".py":
        raise UserError(
            f"{wish}: there is no Python file `{path}`; expected file.py:name, found `{name}`",
            exit_code=2,
        )
    try:
        module = _module(path)
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{wish}: `{path}` cannot be imported: {type(error).__name__}: {error}",
            hint=f"see where it fails: {sys.executable} {path}",
            exit_code=2,
        ) from error
    if not hasattr(module, attribute):
        close = nearest(attribute, [each for each in vars(module) if not each.startswith("_")])
        meant = f"; did you mean `{close}`?" if close else ""
        raise UserError(f"{wish}: there is no `{attribute}` in `{path}`{meant}", exit_code=2)
    return getattr(module, attribute)


@cache
def _module(path: Path) -> ModuleType:
    """Imported under a name that is the same in every process, for what is pickled."""
    name = f"own_code_{path.stem}_{sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def load_function(name: str, wish: str) -> Callable[..., Any]:
    """The function that `file.py:name` names; UserError for what cannot be called."""
    found = load_own(name, wish)
    if not callable(found):
        raise UserError(
            f"{wish}: `{name}` is {type(found).__name__}; expected a function",
            hint="name a function of the file, defined with `def`",
            exit_code=2,
        )
    return cast(Callable[..., Any], found)
