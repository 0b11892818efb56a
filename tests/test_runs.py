"""The run directory: made whole, never overwritten, locked, and honest about how attempts end."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hone import signals
from hone.errors import UserError
from hone.recipe.load import LoadedRecipe, load_recipe
from hone.runs import TRACEBACK_NOTE, Run, create_run, list_runs, open_run
from hone.signals import StopRequested

pytestmark = pytest.mark.quick

RECIPE = """\
model: ${HONE_TEST_MODEL}
stages:
  - sft: {data: chat.jsonl, steps: 3}   # a comment that stays
"""

MODEL = "acme/secret-model"

# Holds the lock of the run named on the command line until it is killed.
HOLD = """
import sys, time
from pathlib import Path
from hone.runs import Run
with Run(Path(sys.argv[1])).attempt() as number:
    print(number, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedRecipe:
    monkeypatch.setenv("HONE_TEST_MODEL", MODEL)
    (tmp_path / "chat.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return load_recipe(tmp_path / "recipe.yaml")


@pytest.fixture
def run(loaded: LoadedRecipe, tmp_path: Path) -> Run:
    return create_run(loaded, "first", tmp_path / "runs")


def start_holder(run: Run) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, str(run.path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# Making and finding


def test_a_new_run_has_all_it_takes_to_resume(run: Run, tmp_path: Path) -> None:
    assert run.path == tmp_path / "runs" / "first"
    assert (run.path / "recipe.yaml").read_text() == RECIPE
    assert run.status()["state"] == "created"
    assert not run.done
    again = open_run("first", tmp_path / "runs").loaded_recipe()
    assert again.recipe.stages[0].settings.steps == 3
    assert again.recipe.model == MODEL
    assert Path(again.recipe.stages[0].settings.data.path) == tmp_path / "chat.jsonl"


def test_making_and_resuming_a_run_needs_no_torch(run: Run) -> None:
    script = (
        "import sys; from pathlib import Path; from hone.runs import open_run;"
        f"run = open_run('first', Path({str(run.path.parent)!r})); run.loaded_recipe();"
        "assert not {'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_names_are_derived_and_counted(loaded: LoadedRecipe, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    made = [create_run(loaded, None, runs, stem="my recipe").name for _ in range(2)]
    create_run(loaded, "my-recipe-7", runs)
    made.append(create_run(loaded, None, runs, stem="my recipe").name)
    assert made == ["my-recipe-1", "my-recipe-2", "my-recipe-8"]
    assert create_run(loaded, None, runs, stem="...").name == "run-1"


def test_a_run_is_never_overwritten(run: Run, loaded: LoadedRecipe, tmp_path: Path) -> None:
    before = {name: (run.path / name).read_bytes() for name in files_of(run.path)}
    with pytest.raises(UserError) as caught:
        create_run(loaded, "first", tmp_path / "runs")
    assert caught.value.exit_code == 2
    assert "`first` exists already" in caught.value.message
    assert caught.value.hint is not None
    assert "hone resume" in caught.value.hint
    assert "--name first-1" in caught.value.hint
    create_run(loaded, "first-1", tmp_path / "runs")
    with pytest.raises(UserError) as caught:
        create_run(loaded, "first-1", tmp_path / "runs")
    assert "--name first-2" in str(caught.value.hint)
    assert before == {name: (run.path / name).read_bytes() for name in files_of(run.path)}


def test_a_folder_that_is_no_run_is_left_alone(loaded: LoadedRecipe, tmp_path: Path) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="is no run"):
        create_run(loaded, "mine", tmp_path / "runs")
    assert files_of(tmp_path / "runs") == {"mine/thesis.txt"}


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "../up", "a b", "-x", "n" * 101])
def test_a_name_that_is_no_folder_name_is_refused(
    loaded: LoadedRecipe, tmp_path: Path, name: str
) -> None:
    with pytest.raises(UserError, match="cannot be the name") as caught:
        create_run(loaded, name, tmp_path / "runs")
    assert caught.value.hint is not None
    suggested = caught.value.hint.removeprefix("--name ")
    assert create_run(loaded, suggested, tmp_path / "runs").name == suggested


def test_a_file_in_the_place_of_the_folder_is_named(loaded: LoadedRecipe, tmp_path: Path) -> None:
    for folder in (tmp_path / "recipe.yaml", tmp_path / "recipe.yaml" / "runs"):
        with pytest.raises(UserError, match="is a file"):
            create_run(loaded, None, folder)


def test_no_run_is_made_where_it_cannot_be_written_whole(
    loaded: LoadedRecipe, tmp_path: Path
) -> None:
    unwritable = LoadedRecipe(**{**vars(loaded), "resolved": {"model": object()}})
    with pytest.raises(TypeError):
        create_run(unwritable, "half", tmp_path / "runs")
    assert list((tmp_path / "runs").iterdir()) == []
    assert create_run(loaded, "half", tmp_path / "runs").status()["state"] == "created"
    assert files_of(tmp_path / "runs" / "half") == {
        *("recipe.yaml", "recipe.resolved.json", "lock.json", "status.json", "events.jsonl")
    }


def test_runs_are_found_by_name_and_by_path(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert open_run("first", tmp_path / "runs") == run
    assert open_run(str(run.path), tmp_path / "elsewhere") == run
    monkeypatch.chdir(tmp_path)
    assert (open_run("runs/first", Path("elsewhere")), run.reference) == (run, "first")
    monkeypatch.chdir(run.path.parent)
    assert run.reference == "first"
    monkeypatch.chdir(run.path)
    assert (open_run(".", Path("runs")), run.reference) == (run, ".")


def test_an_unknown_run_offers_the_nearest(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean `first`") as caught:
        open_run("frist", tmp_path / "runs")
    assert caught.value.exit_code == 2
    with pytest.raises(UserError, match="there are `first`"):
        open_run("zzz", tmp_path / "runs")
    with pytest.raises(UserError, match="no runs there"):
        open_run("first", tmp_path / "nowhere")


def test_runs_are_listed_oldest_first(run: Run, loaded: LoadedRecipe, tmp_path: Path) -> None:
    create_run(loaded, "a-later-one", tmp_path / "runs")
    (tmp_path / "runs" / "notes").mkdir()
    (tmp_path / "runs" / "file.txt").touch()
    assert [found.name for found in list_runs(tmp_path / "runs")] == ["first", "a-later-one"]
    assert list_runs(tmp_path / "nowhere") == []


def test_stage_folders_are_in_order(run: Run) -> None:
    for index, method in [(9, "dpo"), (0, "pretrain"), (1, "sft")]:
        run.stage_folder(index, method).mkdir(parents=True)
    assert [path.name for path in run.stage_folders()] == ["1-pretrain", "2-sft", "10-dpo"]


# Attempts


def test_an_attempt_that_ends_well_is_done(run: Run) -> None:
    with run.attempt() as number:
        status = run.status()
        assert (number, status["state"], status["pid"]) == (1, "running", os.getpid())
        assert status["host"] == socket.gethostname()
        assert not run.done
    assert run.done
    assert run.status()["state"] == "succeeded"
    assert [event["event"] for event in run.events()] == ["created", "attempt", "succeeded"]


def test_a_stop_can_be_resumed(run: Run) -> None:
    with pytest.raises(StopRequested), run.attempt():
        raise StopRequested(signal.SIGTERM)
    assert run.status()["state"] == "stopped"
    assert not run.done
    with run.attempt() as number:
        assert number == 2
        assert "message" not in run.status()
    assert run.status()["state"] == "succeeded"


def test_an_error_after_a_stop_was_asked_for_leaves_the_run_stopped(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a library whose import was cut fails when it is tried again."""
    monkeypatch.setattr(signals._section, "requested", int(signal.SIGTERM))
    monkeypatch.setattr(signals._section, "accepted", False)
    with pytest.raises(StopRequested), run.attempt():
        raise ImportError("cannot load module more than once per process")
    assert run.status()["state"] == "stopped"


def test_a_mistake_is_told_without_a_traceback(run: Run) -> None:
    with pytest.raises(UserError), run.attempt():
        raise UserError("`chat.jsonl` has no rows")
    assert run.status()["state"] == "failed"
    assert run.status()["message"] == "`chat.jsonl` has no rows"
    assert not (run.path / "log.txt").exists()


def test_a_fault_leaves_its_traceback_in_the_run(run: Run) -> None:
    with pytest.raises(KeyError) as caught, run.attempt():
        raise KeyError("lost")
    assert run.status()["message"] == "KeyError: 'lost'"
    log = run.path / "log.txt"
    assert "test_runs.py" in log.read_text()
    assert caught.value.__notes__ == [f"{TRACEBACK_NOTE}{log}"]


def test_a_finished_run_is_not_begun_again(run: Run) -> None:
    with run.attempt():
        pass
    with pytest.raises(UserError, match="is finished"), run.attempt():
        raise AssertionError("this must not be reached")
    assert run.status()["state"] == "succeeded"


def test_status_fields_are_kept_and_taken_away(run: Run) -> None:
    run.write_status("created", stage="1-sft", steps=3)
    run.write_status("created", steps=None)
    status = run.status()
    assert status["stage"] == "1-sft"
    assert "steps" not in status
    assert status["created_at"] <= status["updated_at"]


def test_a_broken_status_does_not_hold_a_run_up(run: Run) -> None:
    (run.path / "status.json").write_bytes(b"\x00" * 40)
    assert run.status()["state"] == "crashed"
    with run.attempt() as number:
        assert number == 1
    assert run.status()["state"] == "succeeded"


# The lock


def test_a_second_process_is_refused_until_the_first_is_dead(run: Run) -> None:
    with start_holder(run) as process:
        try:
            assert run.status()["state"] == "running"
            with pytest.raises(UserError) as caught, run.attempt():
                raise AssertionError("two processes work on the run")
            assert f"process {process.pid} on host `{socket.gethostname()}`" in str(caught.value)
            assert caught.value.exit_code == 2
            assert run.status()["state"] == "running"
            assert [event["event"] for event in run.events()] == ["created", "attempt"]
        finally:
            process.kill()
    assert run.status()["state"] == "crashed"
    with run.attempt() as number:
        assert number == 2


def test_the_process_of_another_host_is_named_with_it(run: Run) -> None:
    # As on a folder that two machines share: the lock is held, and its text says from where.
    script = (
        "import fcntl, json, sys, time; file = open(sys.argv[1], 'a+b', buffering=0);"
        "fcntl.lockf(file, fcntl.LOCK_EX);"
        "file.write(json.dumps({'pid': 4711, 'host': 'elsewhere'}).encode());"
        "print(flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(run.path / "process.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            with pytest.raises(UserError, match="process 4711 on host `elsewhere`") as caught:
                run.lock().__enter__()
            assert caught.value.hint == "wait until it ends, or stop it on elsewhere: kill 4711"
        finally:
            process.kill()


def test_looking_at_the_lock_does_not_let_go_of_it(run: Run) -> None:
    probe = (
        "import sys; from pathlib import Path; from hone.runs import Run;"
        "sys.exit(Run(Path(sys.argv[1])).holder() is None)"
    )
    command = [sys.executable, "-c", probe, str(run.path)]
    with run.lock():
        assert run.holder() is not None
        assert Run(run.path).status()["state"] == "created"
        assert subprocess.run(command).returncode == 0
    assert subprocess.run(command).returncode == 1
    assert run.holder() is None


def test_a_forked_worker_does_not_keep_the_lock(run: Run) -> None:
    # The worker outlives its parent, which was killed; the run can go on all the same.
    script = HOLD.replace(
        "    print(number",
        "    import os\n    if os.fork() == 0: time.sleep(60); os._exit(0)\n    print(number",
    )
    command = [sys.executable, "-c", script, str(run.path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        assert run.holder() is not None
        process.kill()
        process.wait()
        assert run.holder() is None
        with run.lock():
            pass
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()  # type: ignore[union-attr]


# What a result depends on


def test_lock_json_is_merged_key_by_key(run: Run) -> None:
    run.update_lock_json({"stages": {"1-sft": {"token_budget": 4096}}, "threads": 2})
    run.update_lock_json({"stages": {"1-sft": {"cache_key": "abc"}, "2-dpo": {}}, "threads": 1})
    lock = run.read_lock_json()
    assert lock["stages"] == {"1-sft": {"token_budget": 4096, "cache_key": "abc"}, "2-dpo": {}}
    assert lock["threads"] == 1
    assert lock["versions"]["torch"]
    assert len(lock["recipe"]["sha256"]) == 64


def test_changed_versions_are_told_and_recorded(run: Run) -> None:
    assert run.version_changes() == []
    torch = run.read_lock_json()["versions"]["torch"]
    run.update_lock_json({"versions": {"torch": "1.0", "numpy": None}})
    changes = run.version_changes()
    assert f"torch 1.0 -> {torch}" in changes
    assert len(changes) == 2
    with run.attempt():
        pass
    assert {"versions_changed"} < {event["event"] for event in run.events()}
    assert run.read_lock_json()["versions"]["torch"] == "1.0"


def test_values_of_the_environment_never_enter_the_directory(run: Run) -> None:
    run.update_lock_json({"model": {"path": f"/models/{MODEL}/config.json", "size": 3}})
    run.event("loaded", model=MODEL, files=[f"{MODEL}/a", {"b": MODEL}])
    with pytest.raises(ValueError, match=MODEL), run.attempt():
        run.write_status("running", message=f"loading {MODEL}")
        raise ValueError(f"no model {MODEL}")
    for name in files_of(run.path):
        assert MODEL not in (run.path / name).read_text(), name
    assert "${HONE_TEST_MODEL}" in (run.path / "lock.json").read_text()
    assert "no model ${HONE_TEST_MODEL}" in (run.path / "log.txt").read_text()
    assert run.read_lock_json()["model"]["path"] == f"/models/{MODEL}/config.json"


def test_json_files_are_json(run: Run) -> None:
    with run.attempt():
        pass
    for name in ("recipe.resolved.json", "lock.json", "status.json"):
        assert isinstance(json.loads((run.path / name).read_text()), dict)
    lines = (run.path / "events.jsonl").read_text().splitlines()
    assert all("time" in json.loads(line) for line in lines)
