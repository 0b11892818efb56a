"""The process that runs a completion's code against tests: a script that `sandbox.py` starts with
`python -I`, so that it imports the standard library only.

A request comes as JSON on standard input, the answer goes as JSON to standard output. The process
leaves the network, other processes and the right to change files outside its folder behind, then
forks: the child runs the code, the parent watches the clock. The child's answer counts only with
the word that came with the request, so that code which writes into its files is not believed; code
that searches the memory of its own process for the word could still cheat.
"""

import ctypes
import json
import math
import os
import resource
import select
import signal
import struct
import sys
import time
from typing import Any

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
NEW_IPC, NEW_USER, NEW_PID, NEW_NETWORK = 0x08000000, 0x10000000, 0x20000000, 0x40000000

# landlock(7): the numbers of its three calls, the same on every processor; the rights to change
# files (bits 1, 4 to 12; 13, moving between folders, since version 2; 14, cutting off, since 3).
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
LANDLOCK_VERSION = 1 << 0
LANDLOCK_PATH_BENEATH = 1
CHANGES = {1: 0x1FF2, 2: 0x3FF2, 3: 0x7FF2}
CHANGES_OF_A_FILE = 1 << 1 | 1 << 14

MOST_PROCESSES = 64
MOST_OPEN_FILES = 256
LARGEST_FILE = 16 * 2**20  # bytes
LONGEST_ANSWER = 2**20  # bytes

libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Answer the request: {"passed": [true, false]}, or {"refused": why nothing was run}."""
    request = json.loads(sys.stdin.buffer.read())
    answers = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    problem = cut_off(request["allow_network"])
    end_with_parent()  # not before: new rights take the wish back
    if os.getppid() != request["parent"]:  # it has ended already
        return
    answer = {"refused": problem} if problem else {"passed": watch(request)}
    os.write(answers, json.dumps(answer).encode())


def cut_off(allow_network: bool) -> str | None:
    """Leave network and processes; returns what the system says where it does not let us.

    A user namespace of its own gives the right to the others, and takes that to look into the
    memory and the environment of processes outside.
    """
    spaces = NEW_USER | NEW_PID | NEW_IPC | (0 if allow_network else NEW_NETWORK)
    if libc.unshare(spaces) and not allow_network:
        return os.strerror(ctypes.get_errno())
    return None


def end_with_parent() -> None:
    """Be killed when the parent ends, however it does."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def is_unheard(write_end: int) -> bool:
    """True where nobody holds the other end of a pipe."""
    ends = select.poll()
    ends.register(write_end, 0)
    return bool(ends.poll(0))


def watch(request: dict[str, Any]) -> list[bool]:
    """Run the tests in a child; what has not answered in time has passed none."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()  # a signal to its group is not for this process
            os.closerange(3, write_end)
            os.closerange(write_end + 1, MOST_OPEN_FILES)
            end_with_parent()
            if is_unheard(write_end):  # it has ended already
                return []
            limit(request["memory_bytes"], request["run_s"])
            passed = run(request["code"], request["tests"])
            told = {"word": request["word"], "passed": passed}
            os.write(write_end, json.dumps(told).encode() + b"\n")
        finally:
            os._exit(0)
    os.close(write_end)
    heard = listen(read_end, request["run_s"])
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return believed(heard, request)


def limit(memory_bytes: int, run_s: float) -> None:
    """Limit this process and its children, for good."""
    seconds = math.ceil(run_s) + 1
    for kind, most in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, LARGEST_FILE),
        (resource.RLIMIT_NOFILE, MOST_OPEN_FILES),
        (resource.RLIMIT_NPROC, MOST_PROCESSES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    change_only(os.getcwd())


def change_only(folder: str) -> None:
    """Nothing outside `folder` can be changed any more, where the kernel has Landlock."""
    version = libc.syscall(LANDLOCK_CREATE_RULESET, None, 0, LANDLOCK_VERSION)
    if version < 1:
        return
    rights = CHANGES[min(version, 3)]
    handled = struct.pack("Q", rights)
    rules = libc.syscall(LANDLOCK_CREATE_RULESET, handled, len(handled), 0)
    for path, allowed in ((folder, rights), (os.devnull, rights & CHANGES_OF_A_FILE)):
        place = os.open(path, os.O_PATH)
        rule = struct.pack("=Qi", allowed, place)
        libc.syscall(LANDLOCK_ADD_RULE, rules, LANDLOCK_PATH_BENEATH, rule, 0)
        os.close(place)
    libc.syscall(LANDLOCK_RESTRICT_SELF, rules, 0)
    os.close(rules)


def run(code: str, tests: list[str]) -> list[bool]:
    """Which of the tests pass after the code, in its names; none where the code itself raises."""
    names: dict[str, Any] = {"__name__": "completion"}
    try:
        exec(compile(code, "completion", "exec"), names)
    except BaseException:  # SystemExit as well
        return [False] * len(tests)
    return [passes(test, names) for test in tests]


def passes(test: str, names: dict[str, Any]) -> bool:
    """True where the test does not raise."""
    try:
        exec(compile(test, "test", "exec"), names)
    except BaseException:
        return False
    return True


def listen(read_end: int, seconds: float) -> bytes:
    """What the child says until the end of its line, its own end or that of the time."""
    end, heard = time.monotonic() + seconds, b""
    while b"\n" not in heard and len(heard) < LONGEST_ANSWER:
        if not select.select([read_end], [], [], max(0.0, end - time.monotonic()))[0]:
            break
        piece = os.read(read_end, 2**16)
        if not piece:
            break
        heard += piece
    return heard


def believed(heard: bytes, request: dict[str, Any]) -> list[bool]:
    """The child's answer if it knew the word, else that nothing has passed."""
    try:
        told = json.loads(heard)
        if told["word"] == request["word"]:
            return [result is True for result in told["passed"]]
    except (ValueError, TypeError, KeyError):
        pass
    return [False] * len(request["tests"])


if __name__ == "__main__":
    main()
