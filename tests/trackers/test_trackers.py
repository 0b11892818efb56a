"""Each tracker, with its real library and without network: every row arrives once.

What is read back is compared with the rows of `metrics.jsonl`. Runs are directories with metrics
that the test writes; the trackers' processes are real ones.
"""

import json
import os
import resource
import shutil
import signal
import socket
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hone.errors import UserError
from hone.extras import EXTRAS, Extra
from hone.metrics import MetricsWriter, read_metrics
from hone.recipe.load import load_recipe
from hone.recipe.trackers import MLflow, TensorBoard, WandB
from hone.runs import Run, create_run
from hone.trackers import check_trackers
from hone.trackers.__main__ import conceal
from hone.trackers.follow import everything_sent
from hone.trackers.supervise import Follower
from tests.trackers.reading import (
    Series,
    read_mlflow,
    read_tensorboard,
    read_texts,
    read_wandb,
    records_of,
)

# MLflow's own use of its database library.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")

SETTINGS = {
    "tensorboard": "tensorboard",
    "wandb": '{type: wandb, mode: offline, group: "${HONE_TEST_GROUP}", tags: [a, b]}',
    "mlflow": "mlflow",
}
TIMINGS = ("step_s", "tokens_per_s", "peak_memory_bytes")


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key, no server, and no file of the person's."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_TR"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HONE_TEST_GROUP", "the-group")


@pytest.fixture(scope="module")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store: making one takes MLflow several seconds."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}")
    return path


@pytest.fixture
def place(tmp_path: Path, mlflow_store: Path) -> Path:
    """A folder whose runs have a store beside them."""
    (tmp_path / "runs").mkdir()
    shutil.copy(mlflow_store, tmp_path / "runs")
    return tmp_path


@pytest.fixture
def silent_server() -> Iterator[str]:
    """The address of a server that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def make_run(folder: Path, *trackers: str) -> Run:
    """A run that has begun with one stage, `1-sft`."""
    (folder / "chat.jsonl").write_text("{}\n")
    (folder / "recipe.yaml").write_text(
        "model: acme/tiny\nstages:\n  - sft: {data: chat.jsonl}\n"
        f"trackers: [{', '.join(trackers)}]\n"
    )
    run = create_run(load_recipe(folder / "recipe.yaml"), "first", folder / "runs")
    run.event("stage", stage=1, method="sft")
    return run


def writer(run: Run) -> MetricsWriter:
    return MetricsWriter(run.stage_folder(0, "sft") / "metrics.jsonl")


def write_steps(metrics: MetricsWriter, first: int, last: int, *, pace: float = 1.0) -> None:
    """Rows as `fit` writes them, an evaluation after every second step; values follow from the
    step, timings from `pace`.
    """
    for step in range(first, last + 1):
        row = {"step": step, "time_s": step * pace, "loss": 1 / step, "tokens": 10 * step}
        metrics.write(row | {"grad_norm": float("nan"), "step_s": pace})
        if step % 2 == 0:
            metrics.write({"step": step, "split": "evaluation", "loss": 2 / step, "time_s": step})


def settings_of(run: Run) -> Any:
    return run.loaded_recipe().recipe.trackers[0]


def follow(run: Run, state: str = "succeeded") -> list[str]:
    """Let a tracker send what there is; returns the warnings."""
    warnings: list[str] = []
    follower = Follower(run, settings_of(run), warnings.append)
    follower.ask_to_finish(state)
    follower.wait(120)
    return warnings


def held_by(run: Run) -> Series:
    """What the run's tracker holds."""
    name = settings_of(run).type
    if name == "tensorboard":
        return read_tensorboard(run.path / "trackers" / "tensorboard")
    if name == "wandb":
        return read_wandb(run.path / "trackers" / "wandb")
    remote = json.loads((run.path / "trackers" / "mlflow.json").read_text())["remote"]
    return read_mlflow(f"sqlite:///{run.path.parent / 'mlflow.db'}", remote["run_id"])


def expected(run: Run, *, timings: bool = True) -> Series:
    """What the metrics say."""
    series: Series = defaultdict(list)
    for folder in run.stage_folders():
        for row in read_metrics(folder / "metrics.jsonl"):
            split = f"{row['split']}/" if "split" in row else ""
            for key, value in row.items():
                if key not in ("step", "split", "time_s") and value is not None:
                    series[f"{folder.name}/{split}{key}"].append((row["step"], value))
    return dict(series) if timings else without_timings(dict(series))


def without_timings(series: Series) -> Series:
    return {key: values for key, values in series.items() if not key.endswith(TIMINGS)}


def check_same(found: Series, wished: Series) -> None:
    """TensorBoard keeps values in 32 bits."""
    assert sorted(found) == sorted(wished)
    for key, values in wished.items():
        assert [step for step, _ in found[key]] == [step for step, _ in values], key
        assert [value for _, value in found[key]] == pytest.approx(
            [value for _, value in values], rel=1e-6
        )


def wait_for(condition: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


def has_sent_something(run: Run) -> bool:
    """The tracker has confirmed rows, or, as W&B confirms nothing before its end, begun."""
    name = settings_of(run).type
    path = run.path / "trackers" / f"{name}.json"
    if not path.exists():
        return False
    return name == "wandb" or json.loads(path.read_text())["points"] > 0


@pytest.mark.parametrize("name", SETTINGS)
def test_every_row_arrives_once(name: str, place: Path) -> None:
    run = make_run(place, SETTINGS[name])
    with writer(run) as metrics:
        write_steps(metrics, 1, 450)  # more than goes at once
    assert follow(run) == []
    assert "1-sft/grad_norm" not in held_by(run)
    check_same(held_by(run), expected(run))
    assert everything_sent(run, name, "succeeded")
    assert not everything_sent(run, name, "failed")


@pytest.mark.parametrize("name", SETTINGS)
def test_rows_that_a_resumed_stage_did_again_are_not_doubled(name: str, place: Path) -> None:
    run = make_run(place, SETTINGS[name])
    with writer(run) as metrics:
        write_steps(metrics, 1, 6)
    assert follow(run, "stopped") == []
    with writer(run) as metrics:
        metrics.resumed_from(3)
        write_steps(metrics, 4, 9, pace=3.0)
    assert not everything_sent(run, name, "stopped")
    assert follow(run) == []
    check_same(without_timings(held_by(run)), expected(run, timings=False))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_killed_tracker_is_one_warning_and_can_go_on(name: str, place: Path) -> None:
    run = make_run(place, SETTINGS[name])
    warnings: list[str] = []
    with writer(run) as metrics:
        write_steps(metrics, 1, 5)
        follower = Follower(run, settings_of(run), warnings.append)
        wait_for(lambda: has_sent_something(run))
        follower.process.kill()
        write_steps(metrics, 6, 9)  # the run goes on
        follower.ask_to_finish("succeeded")
        follower.wait(10)
        assert warnings == [f"tracker {name} ended without a word"]
    assert not everything_sent(run, name, "succeeded")
    assert follow(run) == []
    check_same(held_by(run), expected(run))


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_tracker_that_never_answers_is_one_warning(
    name: str, tmp_path: Path, silent_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", silent_server)
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    own = {"mlflow": f"uri: '{silent_server}'", "wandb": "mode: online"}[name]
    run = make_run(tmp_path, f"{{type: {name}, answer_within_s: 4.0, {own}}}")
    with writer(run) as metrics:
        write_steps(metrics, 1, 3)
    warnings: list[str] = []
    follower = Follower(run, settings_of(run), warnings.append)
    follower.ask_to_finish("succeeded")
    follower.wait(60)
    assert warnings == [f"tracker {name} has not answered for 4 s"]
    assert follower.process.returncode == -signal.SIGKILL
    assert not everything_sent(run, name, "succeeded")


def test_at_the_end_a_tracker_has_so_long(tmp_path: Path, silent_server: str) -> None:
    run = make_run(tmp_path, f"{{type: mlflow, uri: '{silent_server}'}}")
    warnings: list[str] = []
    follower = Follower(run, settings_of(run), warnings.append)
    began = time.monotonic()
    follower.ask_to_finish("succeeded")
    follower.wait(0.3)
    assert time.monotonic() - began < 5
    assert warnings == ["tracker mlflow was not finished within 0.3 s"]
    assert follower.process.returncode == -signal.SIGKILL


def test_a_folder_that_cannot_be_written_is_one_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = make_run(tmp_path, "{type: tensorboard, folder: file/below}")
    (warning,) = follow(run)
    assert warning.startswith("tracker tensorboard failed: NotADirectoryError:")
    assert "Traceback" in (run.path / "trackers" / "tensorboard.log").read_text()


def test_a_disk_that_takes_no_more_is_one_warning_and_nothing_is_lost(tmp_path: Path) -> None:
    run = make_run(tmp_path, "tensorboard")
    warnings: list[str] = []
    with writer(run) as metrics:
        write_steps(metrics, 1, 20)
        follower = Follower(run, settings_of(run), warnings.append)
        wait_for(lambda: has_sent_something(run))
        resource.prlimit(follower.process.pid, resource.RLIMIT_FSIZE, (20_000, 20_000))
        write_steps(metrics, 21, 600)
        follower.ask_to_finish("succeeded")
        follower.wait(60)
    assert warnings == ["tracker tensorboard failed: OSError: [Errno 27] File too large"]
    assert follow(run) == []
    check_same(held_by(run), expected(run))


def test_a_failure_tells_no_value_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HONE_TEST_PLACE", "very-secret-place")
    (tmp_path / "very-secret-place").write_text("")
    run = make_run(tmp_path, '{type: tensorboard, folder: "${HONE_TEST_PLACE}/below"}')
    (warning,) = follow(run)
    assert "${HONE_TEST_PLACE}" in warning
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert run.path / "trackers" / "tensorboard.log" in files
    assert [path for path in files if b"very-secret-place" in path.read_bytes()] == []


def test_ctrl_c_is_for_the_run_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path, "tensorboard")
    warnings: list[str] = []
    with writer(run) as metrics:
        write_steps(metrics, 1, 2)
        follower = Follower(run, settings_of(run), warnings.append)
        wait_for(lambda: has_sent_something(run))
        assert os.getpgid(follower.process.pid) != os.getpgid(0)
        follower.process.send_signal(signal.SIGINT)
        write_steps(metrics, 3, 4)
    follower.ask_to_finish("stopped")
    follower.wait(60)
    assert warnings == []
    check_same(held_by(run), expected(run))
    assert read_texts(run.path / "trackers" / "tensorboard")["state"] == "stopped"


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_rows_that_came_out_otherwise_replace_the_old_ones(name: str, place: Path) -> None:
    """TensorBoard forgets them; MLflow keeps its history and shows the newest."""
    run = make_run(place, name)
    warnings: list[str] = []
    with writer(run) as metrics:
        for step in (1, 2, 3):
            metrics.write({"step": step, "loss": 1.0, "time_s": step})
        follower = Follower(run, settings_of(run), warnings.append)
        wait_for(lambda: has_sent_something(run))
        metrics.resumed_from(1)
        metrics.write({"step": 2, "loss": 5.0, "time_s": 7.0})
    follower.ask_to_finish("succeeded")
    follower.wait(60)
    assert warnings == []
    series = held_by(run)["1-sft/loss"]
    if name == "tensorboard":
        assert series == [(1, 1.0), (2, 5.0)]
    else:
        assert sorted(series) == [(1, 1.0), (2, 1.0), (2, 5.0), (3, 1.0)]


def test_tensorboard_has_recipe_versions_and_state(tmp_path: Path) -> None:
    run = make_run(tmp_path, "tensorboard")
    follow(run, "failed")
    texts = read_texts(run.path / "trackers" / "tensorboard")
    recipe = json.loads(texts["recipe"].strip("`").removeprefix("json\n"))
    assert recipe["stages"] == run.resolved()["stages"]
    assert run.read_lock_json()["versions"]["torch"] in texts["versions"]
    assert texts["state"] == "failed"


def test_mlflow_has_parameters_versions_and_state(tmp_path: Path, mlflow_store: Path) -> None:
    from mlflow.tracking import MlflowClient

    shutil.copy(mlflow_store, tmp_path / "own.db")
    run = make_run(tmp_path, "{type: mlflow, experiment: mine, uri: 'sqlite:///own.db'}")
    follow(run, "failed")
    remote = json.loads((run.path / "trackers" / "mlflow.json").read_text())["remote"]
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'own.db'}")
    found = client.get_run(remote["run_id"])
    assert client.get_experiment(found.info.experiment_id).name == "mine"
    assert (found.info.run_name, found.info.status) == ("first", "FAILED")
    assert found.data.params["stages/1/sft/learning_rate"] == "0.0002"
    assert found.data.tags["version.torch"] == run.read_lock_json()["versions"]["torch"]
    follow(run)
    assert client.get_run(remote["run_id"]).info.status == "FINISHED"
    assert len(client.search_runs([found.info.experiment_id])) == 1


def test_wandb_has_what_the_recipe_says_and_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    run = make_run(tmp_path, SETTINGS["wandb"])
    follow(run, "failed")
    (path,) = (run.path / "trackers" / "wandb").glob("offline-run-*/*.wandb")
    records = list(records_of(path))
    begun = next(record.run for record in records if record.HasField("run"))
    config = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert (begun.project, begun.display_name, begun.run_group) == ("hone", "first", "the-group")
    assert list(begun.tags) == ["a", "b"]
    assert config["stages/1/sft/learning_rate"] == 0.0002
    assert config["version/torch"] == run.read_lock_json()["versions"]["torch"]
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [1]
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert [path for path in files if b"0123456789" * 4 in path.read_bytes()] == []


def test_a_wrong_key_is_one_warning_and_in_no_file(
    tmp_path: Path, silent_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", silent_server)
    monkeypatch.setenv("WANDB_API_KEY", "wrong key of mine")
    run = make_run(tmp_path, "wandb")
    (warning,) = follow(run)
    assert warning.startswith("tracker wandb failed: AuthenticationError: WANDB_API_KEY invalid")
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert run.path / "trackers" / "wandb.log" in files
    assert [path for path in files if b"wrong key of mine" in path.read_bytes()] == []
    quoted = conceal(run, "401 for user me with password wrong key of mine")
    assert quoted == "401 for user me with password ${WANDB_API_KEY}"


@pytest.mark.quick
def test_what_could_not_be_begun_is_refused_before(monkeypatch: pytest.MonkeyPatch) -> None:
    check_trackers([TensorBoard(), WandB(mode="offline"), MLflow()])
    with pytest.raises(UserError, match="WANDB_API_KEY is not set"):
        check_trackers([WandB()])
    with pytest.raises(UserError, match='begins with "htp://"'):
        check_trackers([MLflow(uri="htp://host")])
    monkeypatch.setitem(EXTRAS, "mlflow", Extra(("no_such_module",), "nothing"))
    with pytest.raises(UserError, match="trackers: mlflow needs no_such_module") as caught:
        check_trackers([TensorBoard(), MLflow()])
    assert caught.value.hint == "pip install 'hone-llm[mlflow]'"


@pytest.mark.quick
def test_a_stored_key_is_a_key(tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password secret\n")
    check_trackers([WandB()])
