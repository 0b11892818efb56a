"""The stages `pretrain` and `sft`; what learns from other prepared samples builds on them."""

from pathlib import Path
from typing import Any, cast

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from hone.data.prepared import Prepared, open_prepared
from hone.errors import UserError
from hone.losses import LOSSES
from hone.recipe.data import Data
from hone.recipe.training import DataStage
from hone.stages.data import StageData, prepare_data, prepare_sources, split_data
from hone.stages.progress import StageProgress
from hone.stages.work import StageWork
from hone.training import Training


class SupervisedStage(StageWork[StageData]):
    """A stage whose samples are tokenised before it begins."""

    @property
    def data_settings(self) -> DataStage:
        """The stage's settings, with those of its data."""
        return cast(DataStage, self.settings)

    def equip(self, training: Training, material: StageData, progress: StageProgress) -> None:
        training.loss = LOSSES[self.method]
        training.samples_of = material.samples_of
        training.held_out = material.held_out

    def open_material(self, tokenizer: PreTrainedTokenizerBase) -> StageData:
        """The stage's data: of the cache a resumed run began with, or prepared now."""
        prepared, held_out = prepare_sources(
            self.data_settings, lambda name, data: self.open_source(name, data, tokenizer)
        )
        return split_data(self.data_settings, prepared, held_out, self.recipe.seed, self.index)

    def open_source(self, name: str, data: Data, tokenizer: PreTrainedTokenizerBase) -> Prepared:
        """One data source; its key and its files' hashes are kept in the run's lock."""
        locked = self.locked().get(name, {})
        found = open_prepared(locked["key"]) if locked else None
        if found is not None and sources_unchanged(locked["sources"]):
            return found
        title = f"{self.title} {name}"
        with StageProgress(self.console, None, title, None) as progress:
            prepared = prepare_data(
                self.data_settings,
                data,
                tokenizer,
                date=self.run.read_lock_json()["date"],
                progress=progress.advance_to,
            )
        if locked and locked["key"] != prepared.key:
            raise UserError(
                f"{name} of stage {self.index + 1}: `{data.path}` gives other samples than when "
                f"the run `{self.run.name}` began, so resuming could not be exact",
                hint="put file, template, tokenizer and versions back as they were, or start a new "
                "run",
            )
        self.lock({name: {"key": prepared.key, "sources": prepared.sources}})
        return prepared


def sources_unchanged(sources: list[dict[str, Any]]) -> bool:
    """True where all files have the size and time stamp they had when they were read."""
    for source in sources:
        path = Path(source["path"])
        if not path.exists():
            continue  # the cache holds what it said
        found = path.stat()
        if (found.st_size, found.st_mtime_ns) != (source["size"], source["mtime_ns"]):
            return False
    return True
