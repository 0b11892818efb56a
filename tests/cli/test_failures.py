"""How commands fail: real processes, their stderr and their exit codes."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

# A command line whose command is the function `act`, written in the test.
SCRIPT = """
import sys, types
from hone.cli import commands
{body}
module = types.ModuleType("hone_act"); module.act = act
sys.modules["hone_act"] = module
commands.COMMANDS["act"] = commands.Command("hone_act:act", "Act.")
from hone.cli import main
sys.exit(main())
"""


def hone(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hone", *arguments]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True
    )


def act(
    body: str, *arguments: str, folder: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `act` as a command of Hone, with `folder` for temporary files."""
    command = [sys.executable, "-c", SCRIPT.format(body=body), "act", *arguments]
    settings = {**os.environ, "TMPDIR": str(folder), **environment}
    return subprocess.run(command, env=settings, capture_output=True, text=True)


MISTAKE = """
def act() -> None:
    from hone.errors import UserError
    raise UserError("`frist` is no run, expected `first`", hint="hone show first", exit_code=2)
"""

FAULT = """
def act() -> None:
    raise KeyError("a line\\nand another")
"""


def test_a_mistake_is_a_message_and_a_hint(tmp_path: Path) -> None:
    done = act(MISTAKE, folder=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: `frist` is no run, expected `first`\n\nhint: hone show first\n"


@pytest.mark.parametrize(
    ("arguments", "environment"), [(["--debug"], {}), ([], {"HONE_DEBUG": "1"})]
)
def test_debug_shows_the_traceback_of_a_mistake(
    tmp_path: Path, arguments: list[str], environment: dict[str, str]
) -> None:
    done = act(MISTAKE, *arguments, folder=tmp_path, **environment)
    assert done.returncode == 2
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("hint: hone show first\n")


def test_a_fault_says_whose_it_is_and_where_its_traceback_is(tmp_path: Path) -> None:
    done = act(FAULT, folder=tmp_path)
    (log,) = tmp_path.glob("hone-*.log")
    assert done.returncode == 1
    assert done.stderr == (
        "error: this is a fault of Hone, not of yours: KeyError: 'a line\\nand another'\n\n"
        f"hint: the traceback is in {log}; --debug shows it\n"
    )
    assert "Traceback" in log.read_text()


def test_debug_shows_the_traceback_of_a_fault(tmp_path: Path) -> None:
    done = act(FAULT, "--debug", folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert list(tmp_path.glob("hone-*.log")) == []
    assert act(FAULT, folder=tmp_path, HONE_DEBUG="0").stderr.startswith("error:")


def test_what_the_system_refuses_is_no_fault_of_hone(tmp_path: Path) -> None:
    body = """
def act() -> None:
    import errno, os
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/full/file")
"""
    done = act(body, folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: No space left on device: `/full/file`\n")


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["rnu"], "no command `hone rnu`; did you mean `run`?", "hone --help"),
        (["zzz"], "no command `hone zzz`; there are quickstart, init, check,", "hone --help"),
        (["data", "shwo"], "no command `hone data shwo`; did you mean `show`?", "hone data --help"),
        (
            ["run", "--nam", "a", "r.yaml"],
            "no such option: --nam (Possible options: --name)",
            "run",
        ),
        (["run", "--sft.steps=5", "r.yaml"], "no such option: --sft.steps", "sft.steps=VALUE"),
        (["run"], "missing argument 'RECIPE'", "hone run --help"),
        (["generate", "a", "--max-tokens", "0"], "invalid value for '--max-tokens'", "generate"),
        (["show", "a", "b"], "got unexpected extra argument(s) (b)", "hone show --help"),
        (["generate", "a", "--max-tokens"], "option '--max-tokens' requires", "hone --help"),
    ],
)
def test_a_command_line_that_makes_no_sense(arguments: list[str], message: str, hint: str) -> None:
    done = hone(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert "Traceback" not in done.stderr
    assert hint in done.stderr.partition("\n\nhint: ")[2]


def test_a_reader_that_leaves_is_no_failure() -> None:
    for arguments in ("recipe schema", "--help"):
        command = f"{sys.executable} -m hone {arguments} | true; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
        assert done.stderr == ""
        assert done.returncode in (0, 141)  # 0: all was written before the reader left


def test_a_broken_pipe_of_another_kind_is_not_hidden(tmp_path: Path) -> None:
    body = """
def act() -> None:
    raise BrokenPipeError("a worker has gone")
"""
    done = act(body, folder=tmp_path)
    assert done.returncode == 1
    assert "BrokenPipeError: a worker has gone" in done.stderr


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_leaves_quietly_with_its_code(tmp_path: Path, signum: signal.Signals) -> None:
    body = f"""
def act() -> None:
    import os, time
    os.kill(os.getpid(), {int(signum)})
    time.sleep(20)
"""
    done = act(body, folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (128 + signum, "", "")


def test_a_stop_while_the_command_is_imported(tmp_path: Path) -> None:
    # The signal comes while typer itself is being imported, long before a command runs.
    script = (
        "import os, signal, sys, threading, time\n"
        "class Slow:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'typer': os.kill(os.getpid(), signal.SIGTERM); time.sleep(20)\n"
        "sys.meta_path.insert(0, Slow())\n"
        "from hone.cli import main\n"
        "sys.exit(main(['run', 'recipe.yaml']))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (143, "")


def test_colours_are_for_terminals_that_want_them(tmp_path: Path) -> None:
    def stderr_at_terminal(**environment: str) -> bytes:
        ours, theirs = pty.openpty()
        settings = {**os.environ, "TERM": "xterm", **environment}
        subprocess.run([sys.executable, "-m", "hone", "rnu"], stderr=theirs, env=settings)
        os.close(theirs)
        text = os.read(ours, 10_000)
        os.close(ours)
        return text

    assert b"\x1b[" in stderr_at_terminal()
    assert b"\x1b[" not in stderr_at_terminal(NO_COLOR="1")
    assert "\x1b[" not in hone("rnu").stderr


def test_a_terminal_that_lacks_a_character_is_no_failure(tmp_path: Path) -> None:
    body = """
def act() -> None:
    print("Zoë → ok")
"""
    done = act(body, folder=tmp_path, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (0, "Zo? ? ok\n")
