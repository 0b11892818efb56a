"""How a command fails: one message to stderr, a hint with what to type next, an exit code.

    error: what was found, and what was expected

    hint: a command

Called by `commands.invoke` for every exception. Only a fault of Hone's own has a traceback, and
that goes to a log unless `--debug` asks for it. Exit codes: 2 for a mistake in what was asked, 1
for work that failed, 141 where the reader of stdout has gone.
"""

import errno
import os
import select
import sys
import tempfile
import traceback

import typer

from hone.errors import UserError

READER_GONE = 128 + 13  # as a process that SIGPIPE ended

# What the system refuses a person, as opposed to what Hone does wrong.
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def report(error: Exception, *, debug: bool) -> int:
    """Print what went wrong and return the exit code."""
    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, BrokenPipeError) and _reader_is_gone():
        return READER_GONE
    if debug:
        traceback.print_exception(error)
    if isinstance(error, typer.Abort):
        return _show("nothing was done", None, 1)
    if isinstance(error, UserError):
        return _show(error.message, error.hint, error.exit_code)
    if isinstance(error, typer.TyperException):
        return _show(_usage_message(error), _usage_hint(error), error.exit_code)
    if isinstance(error, OSError) and error.errno in REFUSED:
        where = f": `{error.filename}`" if error.filename else ""
        return _show(f"{error.strerror}{where}", "give access or make room, and try again", 1)
    return _show_fault(error, debug)


def _show(message: str, hint: str | None, exit_code: int) -> int:
    print(f"{_styled('error:', '1;31')} {message}", file=sys.stderr)
    if hint:
        print(f"\n{_styled('hint:', '1;36')} {hint}", file=sys.stderr)
    return exit_code


def _show_fault(error: Exception, debug: bool) -> int:
    first_line = next(iter(str(error).splitlines()), "")
    message = f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__
    hint = None if debug else f"{_traceback_note(error)}; --debug shows it"
    return _show(f"this is a fault of Hone, not of yours: {message}", hint, 1)


def _traceback_note(error: Exception) -> str:
    """Where the traceback is: in the run's log if the run has written it, else in a file of its
    own.
    """
    from hone.runs import TRACEBACK_NOTE

    for note in getattr(error, "__notes__", ()):
        if note.startswith(TRACEBACK_NOTE):
            return str(note)
    with tempfile.NamedTemporaryFile("w", prefix="hone-", suffix=".log", delete=False) as log:
        log.write("".join(traceback.format_exception(error)))
    return f"{TRACEBACK_NOTE}{log.name}"


def _usage_message(error: typer.TyperException) -> str:
    message = error.format_message().rstrip(".")
    return message[:1].lower() + message[1:]


def _usage_hint(error: typer.TyperException) -> str:
    option = getattr(error, "option_name", "")
    if "." in option:
        return f"values of the recipe are given without dashes: {option.lstrip('-')}=VALUE"
    context = getattr(error, "ctx", None)
    return f"{context.command_path if context else 'hone'} --help"


def _styled(text: str, style: str) -> str:
    if os.environ.get("NO_COLOR") or not sys.stderr.isatty():
        return text
    return f"\x1b[{style}m{text}\x1b[0m"


def _reader_is_gone() -> bool:
    """True where it is stdout or stderr that nobody reads; what is left in them goes nowhere."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        poll.register(stream, 0)  # errors alone: the other end was closed
    gone = [descriptor for descriptor, _ in poll.poll(0)]
    for descriptor in gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return bool(gone)
