"""Somebody who types commands: the real `hone` in fresh processes, with what each of them took."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

HONE = [sys.executable, "-m", "hone"]
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


class Person:
    """Works in one folder. commands: what was typed, with exit code, seconds and peak memory.

    all_cores: whether the commands may use them; the tests themselves keep to one thread. settings:
    environment variables of their own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commands: list[dict[str, Any]] = []
        self.all_cores = False
        self.settings: dict[str, str] = {}

    def hone(self, *words: str, expect: int | tuple[int, ...] = 0, given: str = "") -> str:
        """Type `hone WORDS` and wait; returns what it printed to stdout."""
        began = time.monotonic()
        process = self.start(*words, given=given)
        return self.finish(process, words, began, expect)

    def json(self, *words: str, expect: int | tuple[int, ...] = 0) -> Any:
        """What `hone WORDS --json` prints."""
        return json.loads(self.hone(*words, "--json", expect=expect))

    def start(self, *words: str, given: str = "") -> "subprocess.Popen[bytes]":
        """Type `hone WORDS`, as the leader of its own process group."""
        settings = {**os.environ, "HONE_CACHE": str(self.folder / ".cache"), "COLUMNS": "200"}
        if self.all_cores:
            settings = {name: text for name, text in settings.items() if name not in THREADS}
        settings |= self.settings
        (self.folder / ".given").write_text(given)
        with (
            (self.folder / ".given").open("rb") as stdin,
            (self.folder / ".out").open("wb") as stdout,
            (self.folder / ".err").open("wb") as stderr,
        ):
            return subprocess.Popen(
                [*HONE, *words],
                cwd=self.folder,
                env=settings,
                start_new_session=True,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
            )

    def finish(
        self,
        process: "subprocess.Popen[bytes]",
        words: tuple[str, ...],
        began: float,
        expect: int | tuple[int, ...],
    ) -> str:
        """Wait for a command and note what it took; an exit code that is not expected fails."""
        try:
            _, status, usage = os.wait4(process.pid, 0)  # with the memory of what it waited for
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        process.returncode = code = os.waitstatus_to_exitcode(status)
        self.commands.append(
            {
                "command": " ".join(["hone", *words]).replace(str(self.folder), "."),
                "exit_code": code,
                "seconds": round(time.monotonic() - began, 2),
                "peak_memory_bytes": usage.ru_maxrss * 1024,
            }
        )
        wanted = expect if isinstance(expect, tuple) else (expect,)
        out, err = ((self.folder / name).read_text() for name in (".out", ".err"))
        assert code in wanted, f"hone {' '.join(words)} ended with {code}\n{out}\n{err}"
        return out

    def interrupt(self, *words: str, at: Path, step: int, signum: int) -> int:
        """Type `hone WORDS` and send a signal to all of it once the metrics in `at` have the row of
        `step`; returns the exit code.
        """
        began = time.monotonic()
        process = self.start(*words)
        while not (at.exists() and f'"step": {step},' in at.read_text()):
            assert process.poll() is None, (self.folder / ".err").read_text()
            time.sleep(0.02)
        os.killpg(process.pid, signum)
        usual = (-signum, 128 + signum)
        self.finish(process, words, began, usual)
        return int(process.returncode)


def judged(person: Person, run: str) -> dict[str, Any]:
    """The outcome of `hone verify`, whose exit code has to say the same; for the report, too."""
    person.hone("verify", run, expect=(0, 1))
    return verdicts_of(person, run)


def verdicts_of(person: Person, run: str) -> dict[str, Any]:
    """What the last command has found by verifying a run, with which its exit code has to agree."""
    path = person.folder / "runs" / run / "verify" / "verify.json"
    written: dict[str, Any] = json.loads(path.read_text())
    assert written["passed"] == (person.commands[-1]["exit_code"] == 0)
    person.commands[-1]["verdicts"] = {
        check["name"]: check["status"] for check in written["checks"]
    }
    return written
