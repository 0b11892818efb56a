"""Code against tests, and everything it could do wrong, done for real."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hone.environments.sandbox import SCRIPT, Limits, check_sandbox, run_tests
from hone.errors import UserError
from tests.processes import running

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="code is run on Linux only")

LIMITS = Limits(run_s=5.0, memory_bytes=256 * 2**20)


@pytest.fixture(scope="module", autouse=True)
def cut_off() -> None:
    """Where no network namespace can be had, `test_without_a_namespace` is all there is to see."""
    try:
        check_sandbox(LIMITS)
    except UserError as refused:
        pytest.skip(f"this machine gives no sandbox: {refused.message}")


def sandboxed_processes() -> list[str]:
    return [command for command in running().values() if str(SCRIPT) in command]


@pytest.mark.quick
def test_tests_pass_and_fail_one_by_one() -> None:
    code = "def double(x): return 2 * x\nprint('noise')"
    tests = ["assert double(2) == 4", "assert double(2) == 5", "1 / 0", "x = double(1)", "x += 1"]
    assert run_tests(code, tests, LIMITS) == [True, False, False, True, True]


@pytest.mark.parametrize(
    "code",
    [
        "raise ValueError",
        "def broken(:",
        "raise SystemExit",
        "import os; os._exit(0)",
        "import ctypes; ctypes.string_at(0)",
        "x = bytearray(10**9)",
        "x = []\nwhile True: x.append(' ' * 10**6)",
        "open('large', 'wb').write(bytes(2**25))",
        "import sys; sys.setrecursionlimit(10**5)\ndef f(): f()\nf()",
        "import os, json\n"
        "for fd in range(3, 40):\n"
        '    try: os.write(fd, b\'{"passed": [true], "word": "x"}\\n\')\n'
        "    except OSError: pass\n"
        "os._exit(0)",
    ],
)
def test_code_that_goes_wrong_passes_nothing(code: str) -> None:
    assert run_tests(code, ["pass"], LIMITS) == [False]


def test_signals_reach_nobody_else() -> None:
    code = "import os\nfor whom in (0, os.getppid()): os.kill(whom, 9)"
    assert run_tests(code, ["1 / 0", "pass"], LIMITS) == [False, True]


def test_code_that_hangs_is_ended_with_all_it_started() -> None:
    limits = Limits(run_s=0.5, memory_bytes=LIMITS.memory_bytes)
    began = time.monotonic()
    forks = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(100)\n"
    assert run_tests("while True: pass", ["pass"], limits) == [False]
    assert run_tests(f"{forks}time.sleep(100)", ["pass"], limits) == [False]
    assert run_tests(forks, ["pass"], limits) == [True]
    assert time.monotonic() - began < 20
    assert sandboxed_processes() == []


@pytest.mark.quick
def test_the_network_is_cut_off() -> None:
    code = (
        "import socket, errno\n"
        "found = []\n"
        "for address in (('127.0.0.1', PORT), ('192.0.2.1', 53)):\n"
        "    try: socket.create_connection(address, 2)\n"
        "    except OSError as error: found.append(error.errno)\n"
        "    else: found.append(0)\n"
    )
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        code = code.replace("PORT", str(server.getsockname()[1]))
        unreachable = "assert found == [errno.ENETUNREACH] * 2, found"
        assert run_tests(code, [unreachable], LIMITS) == [True]
        allowed = Limits(run_s=5.0, memory_bytes=LIMITS.memory_bytes, allow_network=True)
        assert run_tests(code, ["assert found[0] == 0"], allowed) == [True]


@pytest.mark.quick
def test_nothing_is_known_of_the_person(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret-of-a-person")
    code = (
        "import glob, os\n"
        "seen = str(dict(os.environ))\n"
        "for path in glob.glob('/proc/[0-9]*/environ'):\n"
        "    try: seen += open(path).read()\n"
        "    except OSError: pass\n"
    )
    tests = ["assert 'secret-of' not in seen", "assert 'HOME' in seen"]
    assert run_tests(code, tests, LIMITS) == [True, True]


@pytest.mark.quick
def test_files_are_written_in_its_own_folder_only(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    code = (
        "import os\n"
        "open('own', 'w').write('1')\n"
        f"place = {str(tmp_path)!r}\n"
        "def fails(act):\n"
        "    try: act()\n"
        "    except PermissionError: return True\n"
    )
    tests = [
        "assert open('own').read() == '1' and os.listdir() == ['own']",
        "assert fails(lambda: open(place + '/new', 'w'))",
        "assert fails(lambda: open(place + '/mine', 'w'))",
        "assert fails(lambda: os.remove(place + '/mine'))",
        "assert fails(lambda: os.mkdir(place + '/folder'))",
        "import subprocess; subprocess.run(['true'], stdout=subprocess.DEVNULL, check=True)",
    ]
    if not has_landlock():
        tests = [tests[0], tests[-1]]
    assert run_tests(code, tests, LIMITS) == [True] * len(tests)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine").read_text() == "kept"


def has_landlock() -> bool:
    import ctypes

    return int(ctypes.CDLL(None).syscall(444, None, 0, 1)) > 0


def test_its_folder_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run_tests("open('large', 'w').write('x')", ["pass"], LIMITS) == [True]
    assert list(tmp_path.iterdir()) == []


def test_it_ends_with_whoever_started_it(tmp_path: Path) -> None:
    """SIGKILL of the process that waits for the code."""
    script = (
        "from hone.environments.sandbox import *\n"
        "run_tests('import time; time.sleep(100)', ['pass'], Limits(60.0, 256 * 2**20))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"TMPDIR": "/tmp"})
    try:
        wait_for(lambda: len(sandboxed_processes()) >= 2)
    finally:
        process.kill()
        process.wait()
    wait_for(lambda: sandboxed_processes() == [])


def test_without_a_namespace_code_is_not_run_unless_it_may_have_the_network() -> None:
    """A user namespace with no room for another one stands for machines that refuse them."""
    script = (
        "from hone.environments.sandbox import *\n"
        "from hone.errors import UserError\n"
        "open('/proc/sys/user/max_user_namespaces', 'w').write('0')\n"
        "try: check_sandbox(Limits(5.0, 2**28))\n"
        "except UserError as error: print(error.message, error.hint, sep='|')\n"
        "print(run_tests('x = 1', ['assert x'], Limits(5.0, 2**28, allow_network=True)))"
    )
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    refused, ran = done.stdout.splitlines()
    assert refused.startswith("environment: code cannot be cut off from the network here")
    assert refused.endswith("environment: {type: python, allow_network: true, ...}")
    assert ran == "[True]"


def wait_for(condition: object) -> None:
    assert callable(condition)
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)
