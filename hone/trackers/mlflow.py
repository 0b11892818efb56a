"""MLflow: one run in a store, which is a database in a file, or a server.

A point has the same time whenever it is sent, and the store keeps a metric with the same key, time,
step and value once: sending it again does no harm. What was sent cannot be taken back. Passwords
come as `${NAME}` in the address or as MLFLOW_TRACKING_TOKEN and its kin.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any

from hone.errors import UserError
from hone.extras import import_extra
from hone.recipe.trackers import MLflow
from hone.trackers.records import About, Point

WISH = "trackers: mlflow"
SCHEMES = ("sqlite", "http", "https", "file", "postgresql", "mysql", "mssql", "databricks")
MOST_METRICS = 1000  # of one request
MOST_PARAMETERS = 100
LONGEST = 500  # characters of a parameter that every store takes

ENDS = {"succeeded": "FINISHED", "failed": "FAILED", "crashed": "FAILED"}  # else KILLED


def check(settings: MLflow) -> None:
    """Raises UserError for a store whose address has no known scheme."""
    uri = settings.uri
    if uri is None or "://" not in uri or uri.partition("://")[0].partition("+")[0] in SCHEMES:
        return
    raise UserError(
        f'trackers: mlflow: uri begins with "{uri.partition("://")[0]}://", '
        f"expected one of {', '.join(SCHEMES)}",
        hint="uri: sqlite:///mlflow.db, or leave it out",
        exit_code=2,
    )


def connect(settings: MLflow, about: About) -> "MLflowRun":
    """Find the run in the store, or make it there."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    local = f"sqlite:///{about.folder.parent / 'mlflow.db'}"
    uri = settings.uri or os.environ.get("MLFLOW_TRACKING_URI") or local
    tracking = import_extra("mlflow.tracking", "mlflow", WISH)
    client = tracking.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(settings.experiment)
    if experiment is None:
        place = str(about.folder.parent / "mlruns") if uri == local else None
        number = client.create_experiment(settings.experiment, artifact_location=place)
    else:
        number = experiment.experiment_id
    return MLflowRun(client, str(number), about)


class MLflowRun:
    """One run in a store."""

    def __init__(self, client: Any, experiment: str, about: About) -> None:
        self.client = client
        self.entities = import_extra("mlflow.entities", "mlflow", WISH)
        tag = "hone.run"
        found = client.search_runs([experiment], f"tags.`{tag}` = '{about.identity}'")
        self.anew = not found
        if found:
            self.run_id = found[0].info.run_id
            client.update_run(self.run_id, status="RUNNING")
        else:
            began = round(about.began_s * 1000)
            tags = {tag: about.identity}
            made = client.create_run(experiment, start_time=began, tags=tags, run_name=about.name)
            self.run_id = made.info.run_id
        self.remote = {"experiment_id": experiment, "run_id": self.run_id}
        self.describe(about)

    def describe(self, about: About) -> None:
        """Parameters, which never change, and versions, which may from one attempt to the next."""
        tags = [
            self.entities.RunTag(f"version.{name}", version)
            for name, version in about.versions.items()
        ]
        self.client.log_batch(self.run_id, tags=tags)
        parameters = [
            self.entities.Param(name, str(value)[:LONGEST])
            for name, value in about.parameters.items()
        ]
        for part in _parts(parameters, MOST_PARAMETERS):
            self.client.log_batch(self.run_id, params=part)

    def send(self, points: Sequence[Point]) -> None:
        """Log the numbers as `1-sft/loss`."""
        metrics = [
            self.entities.Metric(
                f"{point.stage}/{name}", value, round(point.time_s * 1000), point.step
            )
            for point in points
            for name, value in point.values.items()
        ]
        for part in _parts(metrics, MOST_METRICS):
            self.client.log_batch(self.run_id, metrics=part)

    def take_back(self, stage: str, step: int) -> bool:
        """A store keeps what it has."""
        return False

    def confirm(self) -> bool:
        """The store has answered to everything."""
        return True

    def close(self, state: str) -> None:
        """Set the run's status."""
        self.client.set_terminated(self.run_id, ENDS.get(state, "KILLED"))


def _parts(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
