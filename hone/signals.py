"""Stop signals: SIGINT and SIGTERM become one exception, raised where it does no harm.

`hone.cli.main` calls `install` before anything heavy is imported; `fit`, the checkpoints and
`files.py` wrap what must not be cut in two in `uninterrupted`; `Run.attempt` and `hone.cli.main`
catch `StopRequested`. Stopping needs nothing more, because a run can be resumed after a kill at any
moment. Left out on purpose: a grace period after which the process is ended by force (that is for
whoever sent the signal), and any signal but these two.
"""

import os
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# An import that is guarded by a bare `except:` takes the exception for a missing library and goes
# on, and so does a finaliser: until `accept_stop`, the stop is raised again and again. The signal
# that does so is one that means nothing to anybody else.
INSISTING = signal.SIGURG
INSIST_EVERY_S = 0.4


class StopRequested(BaseException):
    """The process was asked to stop. No `Exception`: what recovers from faults must let it pass.

    Whoever catches it either raises it on or says `accept_stop`.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """What the process leaves with: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.signum


class StepReached(StopRequested):
    """The steps that were asked for are done: the run ends as if it were stopped there."""

    def __init__(self, step: int) -> None:
        BaseException.__init__(self, f"stopped after step {step}, as asked")
        self.signum = 0


class _Section:
    """What was asked for, and how deep the main thread is in sections that are not to be cut."""

    def __init__(self) -> None:
        self.depth = 0
        self.requested: int | None = None
        self.pending = False
        self.accepted = False

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self.depth += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self.depth -= 1
        if self.depth == 0 and self.pending and kind is None:
            self.pending = False
            check_stop()


_section = _Section()


def install() -> None:
    """Take SIGINT and SIGTERM over; called once, in the main thread, and before any library.

    It does so also where the parent ignores SIGINT. The first signal raises `StopRequested` in the
    main thread, at once or on leaving `uninterrupted`. The second ends the process at once with 128
    + its number, even while the main thread is inside a long library call. Forked workers leave
    SIGINT to their parent and are ended by SIGTERM.
    """
    for signum in STOP_SIGNALS:
        signal.signal(signum, _on_signal)
    signal.signal(INSISTING, _insist)
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(read_end,), name="stop-signals", daemon=True).start()
    os.register_at_fork(after_in_child=_leave_to_parent)


def uninterrupted() -> _Section:
    """A section that a stop signal does not cut: it is raised on leaving the outermost one.

    An exception that leaves the section goes first; the stop then comes with the next section or
    `check_stop`. Outside the main thread, where signals are never raised, it does nothing.
    """
    return _section


def check_stop() -> None:
    """Raise `StopRequested` if a stop was asked for and nobody has accepted it: once a round."""
    if _section.requested is not None and not _section.accepted:
        raise StopRequested(_section.requested)


@contextmanager
def stop_before_errors() -> Iterator[None]:
    """An error that leaves after a stop was asked for is the stop: raised as `StopRequested`.

    A library whose import was cut in the middle fails in words of its own when it is tried again.
    """
    try:
        yield
    except Exception as error:
        if _section.requested is not None and not _section.accepted:
            raise StopRequested(_section.requested) from error
        raise


def accept_stop() -> None:
    """The stop has arrived where it is dealt with: it is not raised again."""
    _section.accepted = _section.requested is not None
    _section.pending = False


def _on_signal(signum: int, frame: FrameType | None) -> None:
    if _section.requested is not None:
        _leave(signum)
    _section.requested = signum
    _insist(signum, frame)


def _insist(signum: int, frame: FrameType | None) -> None:
    if _section.depth:
        _section.pending = True
    else:
        check_stop()


def _watch(read_end: int) -> None:
    """Count signals as they arrive: handlers wait until the main thread is back in Python."""
    seen = 0
    while True:
        insists = seen == 1 and not _section.accepted
        ready, _, _ = select.select([read_end], [], [], INSIST_EVERY_S if insists else None)
        if not ready:
            signal.pthread_kill(threading.main_thread().ident or 0, INSISTING)
            continue
        for signum in os.read(read_end, 64):
            seen += signum in STOP_SIGNALS
            if seen == 2:
                _leave(signum)


def _leave(signum: int) -> None:
    if os.isatty(2):
        os.write(2, b"\x1b[?25h\n")  # a progress bar hides the cursor
    os._exit(128 + signum)


def _leave_to_parent() -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(INSISTING, signal.SIG_DFL)
