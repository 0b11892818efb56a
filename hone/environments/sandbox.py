"""Runs a completion's Python code against tests in a process with little to spend and few to meet.

What is guaranteed: no network (unless the recipe allows it: without a network namespace nothing is
run), a limit of time, memory, size of a file and number of processes, an empty folder to work in
that is removed, an environment without the person's variables, and that no process is left behind.
Where the kernel has Landlock, no file outside that folder can be changed. Not guaranteed: what the
person can read, the code can read; sockets that are files can be connected to; the memory limit
holds for each process. This is for what a model writes, not for an attacker. Linux only.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hone.errors import UserError

SCRIPT = Path(__file__).with_name("sandboxed.py")
START_WITHIN_S = 30.0  # for the process around the code, on a busy machine


@dataclass(frozen=True)
class Limits:
    """run_s: seconds of the clock. allow_network: run code also where it has the network."""

    run_s: float
    memory_bytes: int
    allow_network: bool = False


def check_sandbox(limits: Limits) -> None:
    """Raises UserError where code cannot be cut off from the network on this machine."""
    if sys.platform != "linux":
        raise UserError("environment: python runs code on Linux only", exit_code=2)
    run_tests("", [], limits)


def run_tests(code: str, tests: Sequence[str], limits: Limits) -> list[bool]:
    """Which tests pass after the code. Raises RuntimeError where the process around it fails, and
    UserError where the network cannot be cut off.
    """
    word = secrets.token_hex(16)
    request = {**vars(limits), "code": code, "tests": list(tests), "word": word}
    request["parent"] = os.getpid()
    with tempfile.TemporaryDirectory(prefix="hone-code-", ignore_cleanup_errors=True) as folder:
        answer = json.loads(_exchange(json.dumps(request).encode(), folder, limits) or "{}")
    if "refused" in answer:
        raise UserError(
            "environment: code cannot be cut off from the network here: a user and network "
            f"namespace is refused ({answer['refused']})",
            hint="allow user namespaces on this machine, or accept that the code has the network: "
            "environment: {type: python, allow_network: true, ...}",
            exit_code=2,
        )
    if "passed" not in answer:
        raise RuntimeError("the process around the code ended without an answer")
    return [bool(result) for result in answer["passed"]]


def _exchange(request: bytes, folder: str, limits: Limits) -> bytes:
    """Start the process, send the request, return its answer; nothing of it is left."""
    process = subprocess.Popen(
        [sys.executable, "-I", str(SCRIPT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env={
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": folder,
            "TMPDIR": folder,
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
            "PYTHONHASHSEED": "0",
        },
        start_new_session=True,
    )
    try:
        return process.communicate(request, limits.run_s + START_WITHIN_S)[0]
    except subprocess.TimeoutExpired:
        raise RuntimeError("the process around the code did not end") from None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
