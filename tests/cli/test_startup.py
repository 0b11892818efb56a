"""Start-up times, as a person waits for them on a machine that does nothing else.

Measured in processor time: starting waits for nothing, so that this is what the clock would show,
and tests that run beside these do not count.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HELP_LIMIT_S = 0.3
CHECK_LIMIT_S = 1.0


def best_seconds(folder: Path, *arguments: str) -> tuple[float, int, str]:
    """(processor seconds of the fastest of five, exit code, stderr)."""
    times, said, code = [], folder / "stderr", 0
    for _ in range(5):
        with said.open("wb") as stderr:
            command = [sys.executable, "-m", "hone", *arguments]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = code = os.waitstatus_to_exitcode(status)
        times.append(usage.ru_utime + usage.ru_stime)
    return min(times), code, said.read_text()


def test_help_is_there_at_once(tmp_path: Path) -> None:
    seconds, code, _ = best_seconds(tmp_path, "--help")
    assert code == 0
    assert seconds < HELP_LIMIT_S


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_wrong_key_is_found_at_once(tmp_path: Path, command: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: acme/tiny\nstages:\n  - sft: {data: chat.jsonl, stepz: 3}\n")
    seconds, code, said = best_seconds(tmp_path, command, str(recipe), "seed=1")
    assert code == 2
    assert 'unknown key "stepz"; did you mean "steps"?' in said
    assert seconds < CHECK_LIMIT_S


def test_what_is_registered_for_the_end_is_still_done() -> None:
    """The libraries are not taken down, but temporary folders go and everything is printed."""
    script = (
        "import atexit, sys\n"
        "from hone.cli import command\n"
        "atexit.register(print, 'the end')\n"
        "sys.argv = ['hone', 'version']\n"
        "command()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("the end\n") and "torch" in done.stdout
