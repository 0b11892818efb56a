"""Stop signals, sent to real processes."""

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from hone.signals import check_stop, stop_before_errors, uninterrupted

# Every script says `ready` when the signal may come.
START = """
import os, sys, threading, time
from hone import signals
signals.install()
def ready():
    print("ready", flush=True)
def say(text):
    os.write(1, (text + "\\n").encode())
"""


def run_script(
    body: str, *sent: signal.Signals, pause_s: float = 0.1
) -> tuple[int, list[str], float]:
    """(return code, lines after `ready`, seconds from the first signal to the end)."""
    script = START + textwrap.dedent(body)
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        began = time.monotonic()
        for number, signum in enumerate(sent):
            if number:
                time.sleep(pause_s)
            process.send_signal(signum)
        lines = process.stdout.read().splitlines()
        return process.wait(timeout=20), lines, time.monotonic() - began


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_raised_at_once_with_its_exit_code(signum: signal.Signals) -> None:
    body = """
    try:
        ready()
        time.sleep(20)
    except signals.StopRequested as stop:
        say(str(stop))
        sys.exit(stop.exit_code)
    """
    code, lines, seconds = run_script(body, signum)
    assert (code, lines) == (128 + signum, [f"stopped by {signum.name}"])
    assert seconds < 5


def test_recovery_from_faults_lets_a_stop_pass() -> None:
    body = """
    try:
        try:
            ready()
            time.sleep(20)
        except Exception:
            say("taken for a fault")
    except signals.StopRequested:
        say("stopped")
    """
    assert run_script(body, signal.SIGTERM)[1] == ["stopped"]


def test_an_error_after_a_stop_was_asked_for_is_the_stop() -> None:
    """As numpy, imported again after a guarded import of it was cut in the middle."""
    body = """
    try:
        with signals.stop_before_errors():
            try:
                ready()
                time.sleep(20)
            except:
                raise ImportError("cannot load module more than once per process")
    except signals.StopRequested as stop:
        say(f"{stop} {type(stop.__cause__).__name__}")
    """
    assert run_script(body, signal.SIGTERM)[1] == ["stopped by SIGTERM ImportError"]


def test_an_error_without_a_stop_stays_itself() -> None:
    with pytest.raises(ValueError, match="mine"), stop_before_errors():
        raise ValueError("mine")


def test_without_install_sigterm_ends_the_process() -> None:
    body = """
    import signal
    for signum in signals.STOP_SIGNALS:
        signal.signal(signum, signal.SIG_DFL)
    ready()
    time.sleep(20)
    """
    assert run_script(body, signal.SIGTERM)[0] == -signal.SIGTERM


def test_an_ignored_interrupt_is_taken_over() -> None:
    body = """
    try:
        ready()
        time.sleep(20)
    except signals.StopRequested as stop:
        os._exit(stop.exit_code)
    """
    script = START + textwrap.dedent(body)
    ignoring = f"trap '' INT; exec {sys.executable} -c '{script}'"
    with subprocess.Popen(["sh", "-c", ignoring], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130


@pytest.mark.parametrize("nested", [False, True])
def test_a_section_is_finished_before_the_stop(nested: bool) -> None:
    inner = "with signals.uninterrupted(): pass" if nested else "pass"
    body = f"""
    try:
        with signals.uninterrupted():
            ready()
            end = time.monotonic() + 0.4
            while time.monotonic() < end:
                {inner}
            say("whole")
        say("after")
    except signals.StopRequested as stop:
        say("stopped")
        sys.exit(stop.exit_code)
    """
    code, lines, _ = run_script(body, signal.SIGINT)
    assert (code, lines) == (130, ["whole", "stopped"])


def test_the_second_signal_leaves_a_section_at_once() -> None:
    body = """
    with signals.uninterrupted():
        ready()
        for _ in range(200):
            time.sleep(0.1)
    """
    code, lines, seconds = run_script(body, signal.SIGINT, signal.SIGTERM)
    assert (code, lines) == (143, [])
    assert seconds < 5


def test_the_second_signal_leaves_a_long_library_call_at_once() -> None:
    # One call that lets other threads run: no handler of Python's is called before it returns.
    body = """
    import hashlib
    threading.Timer(0.2, ready).start()
    hashlib.pbkdf2_hmac("sha256", b"x", b"y", 100_000_000)
    """
    code, _, seconds = run_script(body, signal.SIGTERM, signal.SIGTERM)
    assert code == 143
    assert seconds < 5


def test_an_error_leaves_a_section_first_and_the_stop_follows() -> None:
    body = """
    try:
        try:
            with signals.uninterrupted():
                ready()
                time.sleep(0.2)
                raise OSError("disk full")
        except OSError:
            say("error")
        with signals.uninterrupted():
            say("next section")
    except signals.StopRequested:
        say("stopped")
    """
    said = run_script(body, signal.SIGINT)[1]  # a stop that is not taken comes again by itself
    assert said in (["error", "next section", "stopped"], ["error", "stopped"])


LOSE = """
    sys.unraisablehook = lambda lost: say("lost " + type(lost.exc_value).__name__)
    class Slow:
        def __del__(self):
            ready()
            time.sleep(20)
    try:
        slow = Slow()
        del slow
        {after}
    except signals.StopRequested as stop:
        signals.accept_stop()
        time.sleep(1)
        sys.exit(stop.exit_code)
    """


@pytest.mark.parametrize("after", ["signals.check_stop()", "time.sleep(20)"])
def test_a_stop_that_is_lost_comes_again_until_it_is_accepted(after: str) -> None:
    code, lines, seconds = run_script(LOSE.format(after=after), signal.SIGTERM)
    assert (code, lines) == (143, ["lost StopRequested"])
    assert seconds < 5


def test_a_stop_that_comes_again_does_not_cut_a_section() -> None:
    # The section is longer than the time after which the stop is raised again.
    body = """
    try:
        with signals.uninterrupted():
            ready()
            time.sleep(1.2)
            say("whole")
    except signals.StopRequested as stop:
        with signals.uninterrupted():
            time.sleep(1.2)
            say("saved")
        say("not reached")
    """
    assert run_script(body, signal.SIGINT)[1] == ["whole", "saved"]


def test_sections_of_other_threads_hold_nothing_up() -> None:
    body = """
    def hold():
        with signals.uninterrupted():
            time.sleep(20)
    threading.Thread(target=hold, daemon=True).start()
    time.sleep(0.1)
    try:
        ready()
        time.sleep(20)
    except signals.StopRequested:
        say("stopped")
        os._exit(0)
    """
    code, lines, seconds = run_script(body, signal.SIGINT)
    assert (code, lines) == (0, ["stopped"])
    assert seconds < 5


def test_forked_workers_leave_interrupts_to_their_parent(tmp_path: Path) -> None:
    # The worker's own signals must neither raise in it nor count as its parent's.
    body = """
    import signal
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(20)
        os._exit(1)
    ready()
    time.sleep(0.3)
    os.kill(child, signal.SIGTERM)
    say(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
    """
    assert run_script(body)[:2] == (0, ["-15"])


def test_without_a_signal_nothing_is_raised() -> None:
    with uninterrupted(), uninterrupted():
        check_stop()
