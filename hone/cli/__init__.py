"""The command line: one file per command, imported on use.

`command` is the installed command and `python -m hone`. `commands.py` holds the table of commands,
`arguments.py` what several of them take, `output.py` how they print, `failures.py` how they fail.
"""

import atexit
import gc
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from hone import signals

# Importing torch and transformers makes a million objects that stay; looking for garbage among them
# in Python's usual rhythm takes a sixth of the start (docs/log.md).
OBJECTS_BETWEEN_COLLECTIONS = 50_000, 50, 50


def command() -> NoReturn:
    """The whole life of a process that is one command."""
    gc.set_threshold(*OBJECTS_BETWEEN_COLLECTIONS)
    _leave(main())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; `arguments` are the process's own where left out.

    Stop signals are taken over before anything else is imported.
    """
    try:
        signals.install()
        from hone.cli.commands import invoke

        return invoke(arguments)
    except signals.StopRequested as stop:
        signals.accept_stop()
        _leave(stop.exit_code)


def _leave(exit_code: int) -> NoReturn:
    """End the process without taking the libraries down, which takes them a second or more."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody reads it
            stream.flush()
    os._exit(exit_code)
