"""What is verified: a finished run, opened again from its folder.

Places are counted as results are made: 0 is the base, 1 the result of the first stage, 2 that of
the second. Models are loaded when a check asks for them; the last two stay.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from hone.checkpoints import find_fault
from hone.device import choose_device
from hone.errors import UserError
from hone.model_files import Trust
from hone.recipe.schema import Recipe
from hone.recipe.training import TrainingStage
from hone.recipe.verify import Verify
from hone.runs import Run
from hone.sampling import Artifact, load_artifact, load_rendering
from hone.stages.data import StageData
from hone.stages.methods import WORK
from hone.stages.run import find_result, quieten_libraries
from hone.stages.start import Start, open_tokenizer
from hone.stages.tasks import Tasks
from hone.vocabulary import add_tokens

OWN_BASE = "base"  # the folder of a stage that stands on a model of its own


@dataclass(frozen=True, eq=False)
class StageResult:
    """A stage that is done. index: from 0. folder: the stage's; model: its result in there."""

    index: int
    method: str
    settings: TrainingStage
    folder: Path

    @property
    def name(self) -> str:
        """As its folder is called: 1-sft."""
        return self.folder.name

    @property
    def place(self) -> int:
        """The place of its result; it started from the one before."""
        return self.index + 1

    @property
    def model(self) -> Path:
        """The folder of the result."""
        return self.folder / "model"


class Subject:
    """A run to be verified. Raises UserError for one that has not all its results.

    told: hears what is being done.
    """

    def __init__(self, run: Run, told: Callable[[str], None] = lambda text: None) -> None:
        quieten_libraries()
        self.run = run
        self.told = told
        self.recipe: Recipe = run.loaded_recipe().recipe
        self.settings: Verify = self.recipe.verify or Verify()
        self.device: torch.device = choose_device(self.recipe.device)
        self.trust = Trust.of(self.recipe.trust)
        self.stages = [
            StageResult(n, stage.method, stage.settings, run.stage_folder(n, stage.method))
            for n, stage in enumerate(self.recipe.stages)
        ]
        for stage in self.stages:
            if not stage.model.is_dir():
                raise UserError(
                    f"the run `{run.name}` has no result of its stage {stage.name} yet",
                    hint=f"hone resume {run.reference}",
                    exit_code=2,
                )
        self.load = lru_cache(maxsize=2)(self._load)
        self.material = lru_cache(maxsize=None)(self._material)

    @cached_property
    def sources(self) -> list[str]:
        """The folder (of the base, perhaps the Hub id) of each place."""
        return [find_result(self.run, "base"), *(str(stage.model) for stage in self.stages)]

    def start_source(self, stage: StageResult) -> str:
        """Where a stage started: the place before, with the rows for its added tokens."""
        own = stage.folder / OWN_BASE
        return str(own) if find_fault(own) is None else self.sources[stage.index]

    def start(self, stage: StageResult) -> Artifact:
        """The model as the stage began; it renders prompts and ends answers as its result does."""
        return self.load(self.start_source(stage), as_result=stage)

    def result(self, stage: StageResult) -> Artifact:
        """The stage's result."""
        return self.load(str(stage.model))

    def _load(self, source: str, as_result: StageResult | None = None) -> Artifact:
        artifact = load_artifact(source, self.device, trust=self.trust)
        if as_result is None:
            return artifact
        renderer, rendering = load_rendering(str(as_result.model), self.trust)
        return replace(artifact, renderer=renderer, rendering=rendering)

    def _material(self, stage: StageResult) -> StageData | Tasks:
        """What the stage learned from, opened as it was when the run began."""
        tokenizer = open_tokenizer(Start.at(self.sources[stage.index], self.trust))
        add_tokens(tokenizer, stage.settings.add_tokens)
        work: Any = WORK[stage.method](self.run, self.recipe, stage.index, Console(quiet=True))
        material: StageData | Tasks = work.open_material(tokenizer)
        return material
