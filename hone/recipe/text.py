"""The text of a recipe or of a profile, read from its file.

Called by `load.py` and `profiles.py`.
"""

from pathlib import Path

from hone.errors import UserError, nearest
from hone.recipe.places import names_in

_MOST_BYTES = 200_000


def read_text(path: Path, noun: str = "recipe") -> str:
    """The text of a recipe (or whatever the noun says); raises UserError where there is none."""
    try:
        content = path.read_bytes() if path.stat().st_size <= _MOST_BYTES else None
    except FileNotFoundError:
        raise _not_found(path) from None
    except IsADirectoryError:
        raise UserError(f'"{path}" is a folder; expected a {noun} file', exit_code=2) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f'"{path}" cannot be read: {reason}', exit_code=2) from None
    if content is None:
        message = f'"{path}" is larger than {_MOST_BYTES:,} bytes; expected a {noun} file'
        raise UserError(message, hint="data files are named in the recipe", exit_code=2)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line, column = before.count(b"\n") + 1, len(before) - before.rfind(b"\n")
        found = f"column {column} holds the byte 0x{content[error.start]:02X}"
        message = f"{path}:{line}: not UTF-8 text: {found}"
    raise UserError(message, hint="save the file with the encoding UTF-8", exit_code=2)


def _not_found(path: Path) -> UserError:
    folder = path.absolute().parent
    if not folder.is_dir():
        return UserError(f'"{path}" does not exist, nor does its folder', exit_code=2)
    recipes = sorted(name for name in names_in(folder) if name.endswith((".yaml", ".yml")))
    close = nearest(path.name, recipes)
    if close:
        hint = f"did you mean {path.with_name(close)}?"
    else:
        hint = f"recipes there: {', '.join(recipes[:10]) or 'none'}"
    return UserError(f'"{path}" does not exist', hint=hint, exit_code=2)
