"""The run directory: create, open, lock, attempts, status, provenance.

runs/<name>/ recipe.yaml recipe.resolved.json lock.json status.json events.jsonl log.txt
process.lock stages/<n>-<method>/... (written by the stages) DONE

`hone run` and `hone resume` own the moves of a run through `Run.attempt`; stages add to `lock.json`
and to the status. What stands for `${NAME}` in a recipe never enters the directory: `Run.conceal`
puts the name back. Left out: deleting runs (removal.py), and metrics (metrics.py).
"""

import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import socket
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hone
from hone.concealing import conceal, mapped, reveal, variables_in
from hone.errors import UserError, nearest
from hone.files import (
    append_line,
    read_json,
    read_json_lines,
    sync,
    write_json,
    write_whole,
)
from hone.locks import Held, Holder, find_holder, held
from hone.signals import StopRequested, accept_stop, stop_before_errors, uninterrupted

if TYPE_CHECKING:
    from hone.recipe.load import LoadedRecipe

STATES = ("created", "running", "stopped", "failed", "succeeded")
CRASHED = "crashed"  # never written: a `running` status whose lock nobody holds

# What the bytes of a result depend on, besides Python and Hone.
RECORDED_PACKAGES = (
    *("torch", "transformers", "tokenizers", "peft", "safetensors", "numpy"),
    "bitsandbytes",  # packed weights and running means, where a recipe asks for them
)

VERDICTS = Path("verify", "verify.json")  # in a run: what `hone verify` has found

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Run:
    """One run directory. All state is on the disk: two Run objects of one path are the same run."""

    path: Path

    @property
    def name(self) -> str:
        """The name of the directory."""
        return self.path.name

    @property
    def reference(self) -> str:
        """What a person types for this run from here: its name in ./runs, or its path."""
        if self.path.parent == Path("runs").resolve():
            return self.name
        return shlex.quote(os.path.relpath(self.path))

    @property
    def done(self) -> bool:
        """All stages are finished: DONE is written last."""
        return (self.path / "DONE").exists()

    def stage_folder(self, index: int, method: str) -> Path:
        """The folder that stage `index` (from 0) makes: stages/<n>-<method>, n from 1."""
        return self.path / "stages" / f"{index + 1}-{method}"

    def stage_folders(self) -> list[Path]:
        """The folders of the stages that have begun, in order."""
        found = (self.path / "stages").glob("[0-9]*-*")
        return sorted(found, key=lambda folder: int(folder.name.partition("-")[0]))

    def trained_nothing(self) -> bool:
        """True where no step was trained: no row of metrics, no checkpoint, no result."""
        if self.done:
            return False
        kept = ("metrics.jsonl", "checkpoints/step_*", "model")
        found = (path for name in kept for path in self.path.glob(f"stages/*/{name}"))
        return not any(path.is_dir() or path.stat().st_size for path in found)

    # What is known about the run

    def status(self) -> dict[str, Any]:
        """status.json, with the state `crashed` where a process vanished while it was running.

        Keys: state, created_at, updated_at, attempt, pid, host, started_at, ended_at, message, and
        what the stages add.
        """
        status = {"state": "running", **(read_json(self.path / "status.json") or {})}
        if status["state"] == "running" and self.holder() is None:
            status["state"] = CRASHED
        return status

    def write_status(self, state: str, **fields: Any) -> None:
        """Write status.json whole: the fields are laid over the old ones, None takes one away."""
        assert state in STATES, f"{state} is no state of a run"
        path = self.path / "status.json"
        status = {
            **(read_json(path) or {}),
            **self._concealed(fields),
            "state": state,
            "updated_at": _now(),
        }
        write_json(path, {key: value for key, value in status.items() if value is not None})

    def event(self, kind: str, **fields: Any) -> None:
        """Append a line to events.jsonl: {"time": ..., "event": kind, ...}."""
        line = json.dumps({"time": _now(), "event": kind, **self._concealed(fields)})
        append_line(self.path / "events.jsonl", line)

    def events(self) -> list[dict[str, Any]]:
        """The events in order; lines that a power loss has torn are left out."""
        return read_json_lines(self.path / "events.jsonl")

    def announce(self, folder: Path, sha256: str) -> None:
        """Record the manifest's SHA-256 of a model that is about to appear in the run.

        Before and not after, so that a kill between the two leaves no model without its record: the
        newest record of a folder is always of what stands there, or of what is made again.
        """
        self.event("saved", folder=str(folder.relative_to(self.path)), sha256=sha256)
        sync(self.path / "events.jsonl")

    def announced(self, folder: Path) -> str | None:
        """The newest SHA-256 that `announce` recorded of a folder, or None."""
        name = str(folder.relative_to(self.path))
        saved = [mapped(event, reveal) for event in self.events() if event["event"] == "saved"]
        found = [event["sha256"] for event in saved if event["folder"] == name]
        return found[-1] if found else None

    def read_lock_json(self) -> dict[str, Any]:
        """lock.json: what the run's bytes depend on, `${NAME}` expanded from the environment."""
        table: dict[str, Any] = mapped(read_json(self.path / "lock.json") or {}, reveal)
        return table

    def update_lock_json(self, values: dict[str, Any]) -> None:
        """Merge `values` into lock.json, nested tables key by key, and write it whole."""
        self.write_lock_json(_merged(self.read_lock_json(), values))

    def write_lock_json(self, table: dict[str, Any]) -> None:
        """Write lock.json whole, in place of what was there."""
        write_json(self.path / "lock.json", self._concealed(table))

    def resolved(self) -> dict[str, Any]:
        """recipe.resolved.json: the recipe with all defaults, `${NAME}` as written."""
        return read_json(self.path / "recipe.resolved.json") or {}

    def loaded_recipe(self) -> "LoadedRecipe":
        """The recipe of the run as it was when the run was made, the environment expanded again."""
        from hone.recipe.load import load_resolved

        return load_resolved(self.resolved(), Path(self.read_lock_json()["recipe"]["folder"]))

    def conceal(self, text: str) -> str:
        """`text` with the values of the recipe's environment variables as `${NAME}` again."""
        return conceal(text, self._variables())

    def version_changes(self) -> list[str]:
        """How the installed versions differ from those the run began with, in words."""
        recorded = self.read_lock_json().get("versions", {})
        present = installed_versions()
        return [
            f"{package} {recorded[package] or 'missing'} -> {present.get(package) or 'missing'}"
            for package in recorded
            if recorded[package] != present.get(package)
        ]

    def verdicts(self) -> dict[str, Any] | None:
        """verify.json: {"schema", "passed", "checks"}; None where the run was never verified."""
        return read_json(self.path / VERDICTS)

    def lacks_verdicts(self) -> bool:
        """True where a finished run has not been verified, which its recipe asks for."""
        asked = self.done and self.resolved().get("verify") is not None
        return asked and self.verdicts() is None

    # Who works on it

    def holder(self) -> Holder | None:
        """The process that works on the run, or None; a lock left by a dead process is nobody's."""
        return find_holder(self.path / "process.lock")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only process that works on the run; UserError names the pid and host of another.

        The lock ends with the process, however that ends, and forked workers do not share it.
        """
        try:
            with held(self.path / "process.lock"):
                yield
        except Held as other:
            raise self._in_use(other.holder) from None

    @contextmanager
    def attempt(self) -> Iterator[int]:
        """One attempt to finish the run: lock, status, events, and DONE last. Yields its number.

        Leaving without an exception makes the run `succeeded`; StopRequested, or an error after a
        stop was asked for, makes it `stopped`, any other exception `failed` with its message, and
        both are raised on. Every state but `succeeded` can be resumed.
        """
        with self.lock():
            if self.done:
                raise UserError(
                    f"the run `{self.name}` is finished", hint=f"hone show {self.reference}"
                )
            number = 1 + sum(event["event"] == "attempt" for event in self.events())
            try:
                with stop_before_errors():
                    self._begin(number)
                    yield number
            except (StopRequested, KeyboardInterrupt) as stop:
                accept_stop()
                with suppress(OSError):  # where nothing can be written, the run counts as crashed
                    self._end("stopped", message=str(stop) or "stopped")
                raise
            except BaseException as error:
                with suppress(OSError):
                    self._fail(error, number)
                raise
            with uninterrupted():
                self._end("succeeded")
                write_whole(self.path / "DONE", "")

    def _begin(self, number: int) -> None:
        here = {"pid": os.getpid(), "host": socket.gethostname()}
        with uninterrupted():  # attempts are counted by their events
            self.write_status(
                "running", attempt=number, **here, started_at=_now(), ended_at=None, message=None
            )
            self.event("attempt", attempt=number, **here)
        if changes := self.version_changes():
            self.event("versions_changed", changes=changes)

    def _end(self, state: str, message: str | None = None) -> None:
        self.write_status(state, message=message, ended_at=_now(), pid=None, host=None)
        self.event(state, message=message)

    def _fail(self, error: BaseException, number: int) -> None:
        """Record a failure; what is not the person's leaves its traceback in log.txt and a note."""
        if isinstance(error, UserError):
            self._end("failed", message=error.message)
            return
        log = self.path / "log.txt"
        trace = "".join(traceback.format_exception(error))
        append_line(log, f"attempt {number}, {_now()}\n{self.conceal(trace)}")
        self._end("failed", message=f"{type(error).__name__}: {error}")
        error.add_note(f"{TRACEBACK_NOTE}{log}")

    def _in_use(self, holder: Holder) -> UserError:
        who, hint = "another process", "try again in a moment"
        if holder.pid:
            who = f"process {holder.pid} on host `{holder.host}`"
            there = "" if holder.host == socket.gethostname() else f" on {holder.host}"
            hint = f"wait until it ends, or stop it{there}: kill {holder.pid}"
        message = f"the run `{self.name}` is being worked on by {who}"
        return UserError(message, hint=hint, exit_code=2)

    # What must not enter the directory

    def _variables(self) -> list[tuple[str, str]]:
        """(name, value) of the environment variables the recipe names, long values first."""
        return variables_in(json.dumps(self.resolved()))

    def _concealed(self, values: dict[str, Any]) -> dict[str, Any]:
        variables = self._variables()
        concealed: dict[str, Any] = mapped(values, lambda text: conceal(text, variables))
        return concealed


TRACEBACK_NOTE = "the traceback is in "  # what the note on an unexpected exception begins with


# Making, opening, listing


def create_run(
    loaded: "LoadedRecipe",
    name: str | None,
    runs_folder: Path,
    *,
    stem: str = "run",
    lock: dict[str, Any] | None = None,
) -> Run:
    """Make a run directory, whole or not at all, that can be resumed from here on.

    Without a name it is `<stem>-<n>` with the next free number; `stem` is the recipe's file name.
    lock: what stands in lock.json from the beginning. Raises UserError for a name that is taken or
    cannot be one.
    """
    runs_folder = _runs_folder(runs_folder)
    if name is not None:
        check_name(name)
        run = _create(loaded, runs_folder / name, lock or {})
        if run is None:
            raise _taken(name, runs_folder)
        return run
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.")[:80] or "run"
    number = _next_number(stem, runs_folder)
    while (run := _create(loaded, runs_folder / f"{stem}-{number}", lock or {})) is None:
        number += 1  # another process took this one just now
    return run


def open_run(name_or_path: str | Path, runs_folder: Path) -> Run:
    """The run of that name in `runs_folder`, or at that path; UserError with the nearest name."""
    for path in (runs_folder / name_or_path, Path(name_or_path)):
        if is_run(path):
            return Run(path.resolve())
    names = [run.name for run in list_runs(runs_folder)]
    close = nearest(str(name_or_path), names)
    message = f"no run `{name_or_path}` in `{runs_folder}`"
    if not names:
        message += ": there are no runs there"
        raise UserError(message, hint="make one: hone run recipe.yaml", exit_code=2)
    newest = ", ".join(f"`{name}`" for name in names[-5:])
    message += f"; did you mean `{close}`?" if close else f"; there are {newest}"
    raise UserError(message, hint="list them: hone runs", exit_code=2)


def list_runs(runs_folder: Path) -> list[Run]:
    """The runs in a folder, oldest first; [] where there is no folder."""
    if not runs_folder.is_dir():
        return []
    paths = [path for path in runs_folder.iterdir() if not path.name.startswith(".")]
    return sorted((Run(path.resolve()) for path in paths if is_run(path)), key=_age)


def installed_versions() -> dict[str, str | None]:
    """Versions of Python, Hone and the recorded packages, read without importing them."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    versions["hone"] = hone.__version__
    for package in RECORDED_PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def _create(loaded: "LoadedRecipe", path: Path, lock: dict[str, Any]) -> Run | None:
    """Fill a folder under a hidden name and rename it; None where the name is taken."""
    if os.path.lexists(path):
        return None
    building = path.with_name(f".{path.name}.{os.getpid()}.new")
    with uninterrupted():
        try:
            building.mkdir()
            _fill(Run(building), loaded, lock)
            building.rename(path)
            sync(path.parent)
        except OSError:
            if os.path.lexists(path):
                return None
            raise
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return Run(path)


def _fill(run: Run, loaded: "LoadedRecipe", lock: dict[str, Any]) -> None:
    write_whole(run.path / "recipe.yaml", loaded.text)
    write_json(run.path / "recipe.resolved.json", loaded.resolved)
    recipe = {"folder": str(loaded.folder), "sha256": sha256(loaded.text.encode()).hexdigest()}
    machine = {"system": platform.system(), "machine": platform.machine()}
    made = {"recipe": recipe, "versions": installed_versions(), "platform": machine}
    run.update_lock_json({**lock, **made})
    run.event("created")
    run.write_status("created", created_at=_now())


def _runs_folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        message = f"`{path}` is a file, expected a folder for runs"
        raise UserError(message, hint="name another one: --runs FOLDER", exit_code=2) from None
    return path.resolve()


def check_name(name: str) -> None:
    """Raises UserError, with a name that is close, for one that no run can have."""
    if NAME.fullmatch(name):
        return
    valid = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:100] or "first"
    expected = "expected a letter or digit, then letters, digits, `.`, `_`, `-`"
    message = f"`{name}` cannot be the name of a run: {expected}"
    raise UserError(message, hint=f"--name {valid}", exit_code=2)


def _taken(name: str, runs_folder: Path) -> UserError:
    """The name exists: the ways on."""
    stem = re.sub(r"-\d{1,9}$", "", name)
    another = f"make another one: --name {stem}-{_next_number(stem, runs_folder)}"
    run = Run(runs_folder / name)
    if not is_run(run.path):
        return UserError(f"`{run.path}` exists and is no run", hint=another, exit_code=2)
    message = f"a run `{name}` exists already in `{runs_folder}`; runs are never overwritten"
    clean = "delete it and start anew: --clean, which asks"
    if run.trained_nothing():
        message = f"a run `{name}` exists already in `{runs_folder}`; it has trained no step yet"
        clean = "start it anew: --clean, which needs no question here"
    first = f"look at it: hone show {run.reference}"
    if not run.done:
        first = f"go on with it: hone resume {run.reference}"
    return UserError(message, hint=f"{first}\n      or {another}\n      or {clean}", exit_code=2)


def _next_number(stem: str, runs_folder: Path) -> int:
    pattern = re.compile(re.escape(stem) + r"-(\d{1,9})")
    matches = (pattern.fullmatch(path.name) for path in runs_folder.iterdir())
    return 1 + max((int(match[1]) for match in matches if match), default=0)


def _age(run: Run) -> tuple[str, str]:
    return (read_json(run.path / "status.json") or {}).get("created_at", ""), run.name


def is_run(path: Path) -> bool:
    """True where `create_run` has made this folder."""
    return (path / "recipe.resolved.json").is_file()


# Values


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for key, value in new.items():
        below = merged.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            merged[key] = _merged(below, value)
        else:
            merged[key] = value
    return merged
