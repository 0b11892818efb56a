"""The one exception that a person sees without a traceback.

Raised at the edges (recipe, files, data rows, model folders); shown by `hone.cli.main`, which
prints the message, a blank line and the hint, and leaves with `exit_code`. Everything else that is
raised is a fault of Hone's own.
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """What a person can put right: `message` says what was found and what was expected, `hint`
    gives the next command.

    `exit_code` is 2 for a mistake in what was asked (recipe, flags), 1 for work that failed.
    """

    def __init__(self, message: str, *, hint: str | None = None, exit_code: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name closest to `name`, or None when none is close."""
    found = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.6)
    return found[0] if found else None
