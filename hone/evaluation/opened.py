"""The model that a person names, and what an evaluation depends on, as hashes and plain values.

Called by `hone evaluate`. A name is a run's (in the folder of runs, or its path), a model's or
adapter's folder, or a Hub id, in this order.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from hone.choosing import SamplingSettings
from hone.data.sources import HUB_ID, open_source
from hone.device import choose_device
from hone.errors import UserError
from hone.evaluation.stored import FOLDER, What
from hone.hub import find_model
from hone.model_files import NOTHING, Trust
from hone.own_code import own_file
from hone.provenance import FileRecord, record_files, record_model
from hone.recipe.data import Data
from hone.recipe.rewards import Custom, FromFile, Reward
from hone.recipe.schema import Recipe
from hone.rewards.lane import RewardSource
from hone.runs import Run, installed_versions, is_run, open_run
from hone.sampling import Artifact, base_of_adapter, load_artifact
from hone.stages.run import find_result, quieten_libraries


@dataclass(frozen=True)
class Model:
    """A model that can be loaded. run, stage: where it is a run's; stage is None for the last
    result.
    """

    source: str
    device: torch.device
    trust: Trust = NOTHING
    run: Run | None = None
    stage: str | None = None

    def load(self) -> Artifact:
        """The model, ready to answer."""
        quieten_libraries()
        return load_artifact(self.source, self.device, trust=self.trust)

    def evaluations(self, asked: str) -> tuple[Path, str]:
        """(the folder for its evaluations, the name of one on what is `asked`)."""
        if self.run is None:
            folder, parts = Path(FOLDER), [Path(self.source).name, asked]
        else:
            number = "" if self.stage in (None, "base") else "stage-"
            folder, parts = self.run.path / FOLDER, [asked, f"{number}{self.stage or ''}"]
        name = re.sub(r"[^\w.-]+", "-", "-".join(filter(None, parts))).strip("-.")
        return folder, name or "answers"

    def what(self) -> dict[str, Any]:
        """Where it is, and a hash of its files' content and of its base's. Downloads a Hub id."""
        find_model(self.source, weights=True, trust=self.trust)
        found: dict[str, Any] = {"source": self.source, "sha256": _model_hash(self.source)}
        folder = Path(self.source)
        base = base_of_adapter(folder) if folder.is_dir() else None
        if base:
            find_model(base, weights=True, trust=self.trust)
            found["base"] = {"source": base, "sha256": _model_hash(base)}
        return found


def open_model(name: str, runs: Path, stage: str | None = None) -> Model:
    """The model of that name. stage: of a run, from 1, or `base`. Raises UserError."""
    if is_run(runs / name) or is_run(Path(name)):
        run = open_run(name, runs)
        recipe = run.loaded_recipe().recipe
        source = find_result(run, _stage_index(run, recipe, stage))
        return Model(source, choose_device(recipe.device), Trust.of(recipe.trust), run, stage)
    if stage is not None:
        message = f"`--stage {stage}`: `{name}` is no run, and only runs have stages"
        raise UserError(message, exit_code=2)
    if not Path(name).is_dir():
        _check_hub_id(name, runs)
    return Model(name, choose_device("auto"))


def rewards_of(recipe: Recipe) -> list[RewardSource]:
    """What scores answers in the last stage of a recipe that has such a thing."""
    for stage in reversed(recipe.stages):
        environment = getattr(stage.settings, "environment", None)
        functions = getattr(stage.settings, "rewards", [])
        if environment is not None or functions:
            return [*([environment] if environment is not None else []), *functions]
    return []


def what_of(
    model: Model,
    data: Data | None,
    rewards: Sequence[RewardSource],
    settings: SamplingSettings,
    more: dict[str, Any],
) -> What:
    """All that an evaluation's bytes depend on. data: None for the tasks of the first reward."""
    what = {
        "model": model.what(),
        "data": None if data is None else _data_what(data),
        "rewards": [_reward_what(source) for source in rewards],
        "settings": {**more, **vars(settings)},
        "device": model.device.type,
        "threads": torch.get_num_threads(),
        "versions": installed_versions(),
    }
    plain: What = json.loads(json.dumps(what))  # as it will be read again
    return plain


def _stage_index(run: Run, recipe: Recipe, stage: str | None) -> int | str | None:
    if stage is None or stage == "base":
        return stage
    if not stage.isdecimal() or not 1 <= int(stage) <= len(recipe.stages):
        last = len(recipe.stages)
        raise UserError(
            f"`--stage {stage}`: the run `{run.name}` has {last} stages; expected a number from 1 "
            f"to {last}, or `base`",
            exit_code=2,
        )
    return int(stage) - 1


def _check_hub_id(name: str, runs: Path) -> None:
    """Raises UserError, with the nearest run, for what is no folder and cannot be downloaded."""
    try:
        if not HUB_ID.fullmatch(name):
            raise UserError(f"there is no folder `{name}`", exit_code=2)
        find_model(name)
    except UserError as error:
        if "/" in name.strip("/"):
            raise
        try:
            open_run(name, runs)
        except UserError as no_run:
            raise UserError(
                f"{no_run.message}; nor a folder or a model on the Hub: {error.message}",
                hint="hone runs lists the runs",
                exit_code=2,
            ) from error


def _model_hash(source: str) -> str:
    return _joined_hash(record_model(source)["files"])


def _data_what(data: Data) -> dict[str, Any]:
    files = record_files(open_source(data.path, data.split).files)
    return {**data.model_dump(mode="json"), "sha256": _joined_hash(files)}


def _reward_what(source: RewardSource) -> dict[str, Any]:
    """A reward's settings, and the content of the files that it reads."""
    files: list[Path] = []
    if isinstance(source, Reward):
        files = [own_file(source.function)]
    elif isinstance(source, Custom):
        files = [own_file(source.code)]
    elif isinstance(source, FromFile):
        for part in (source.data, source.evaluation):
            files += open_source(part.path, part.split).files if part else []
    return {**source.model_dump(mode="json"), "sha256": _joined_hash(record_files(files))}


def _joined_hash(files: Iterable[FileRecord]) -> str:
    """A hash of names and contents, wherever the files are."""
    lines = sorted(f"{file['sha256']} {Path(file['path']).name}" for file in files)
    return sha256("\n".join(lines).encode()).hexdigest()
