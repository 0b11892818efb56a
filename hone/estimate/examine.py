"""What a recipe takes: each stage's peak of memory by phase, and its room on the disk.

Called by `hone estimate`, `hone check`, `hone run` and the check `memory` of `hone verify`. Nothing
is loaded; the modules are those of the model's own configuration, the data are tokenised as for a
run. Stages are seen from the recipe's model: what an earlier one leaves has the same size.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from hone.adapters import Kind, choose_before, found_kind, wished_kind
from hone.architecture import empty_model
from hone.device import Precision, choose_device, choose_precision
from hone.estimate.allocator import resident
from hone.estimate.phases import state_bytes, trace
from hone.estimate.pieces import Pieces, find_pieces
from hone.estimate.shadow import make_shadow, prepare
from hone.estimate.storages import counted
from hone.forecast import DiskForecast, forecast_disk
from hone.model_files import Trust
from hone.models import LARGEST_BUDGET, LanguageModel, choose_token_budget, new_model
from hone.recipe.load import LoadedRecipe
from hone.recipe.policy import Grpo
from hone.recipe.schema import NewModel, Recipe
from hone.recipe.training import Full, QLora, TrainingStage
from hone.stages.data import StageData, prepare_data, prepare_sources, split_data
from hone.stages.run import base_tokenizer, data_settings, stage_tasks, stage_tokenizer, today
from hone.stages.start import Start
from hone.stages.tasks import Tasks

# What is told of `phases.Parts`.
PARTS = (
    *("weights", "adapter", "optimizer", "gradients", "activations", "projection"),
    *("keys_and_values", "reference"),
)


@dataclass(frozen=True)
class StageEstimate:
    """What a stage takes, in bytes above what the process holds before.

    phases: the peak of each; peak: the highest; parts: what the step's peak is made of. budget:
    tokens computed at once; tokens: those of the largest micro-batch.
    """

    title: str
    device: str
    precision: str
    layout: str
    budget: int
    tokens: int
    phases: dict[str, int]
    parts: dict[str, int]
    disk: DiskForecast | None = None

    @property
    def phase(self) -> str:
        """The phase that takes the most."""
        return max(self.phases, key=lambda name: self.phases[name])

    @property
    def peak(self) -> int:
        """The most of all phases."""
        return self.phases[self.phase]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        disk = vars(self.disk) if self.disk else None
        return {**vars(self), "peak": self.peak, "phase": self.phase, "disk": disk}


@dataclass
class Subject:
    """A stage of a recipe that is estimated. config: of its base. before: the kind of the adapter
    that stays frozen beside its own. vocabulary: tokens of the base's tokenizer.
    """

    loaded: LoadedRecipe
    index: int
    settings: TrainingStage
    device: torch.device
    config: PreTrainedConfig
    before: Kind | None
    vocabulary: int
    material: StageData | Tasks | None = field(default=None, repr=False)

    @property
    def recipe(self) -> Recipe:
        return self.loaded.recipe

    @property
    def title(self) -> str:
        """As the run says it."""
        return f"{self.index + 1} {self.recipe.stages[self.index].method}"

    def meta(self) -> PreTrainedModel:
        """The base on the meta device, made anew."""
        trusted = Trust.of(self.recipe.trust).remote_code
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                copy.deepcopy(self.config), trust_remote_code=trusted
            )

    def with_settings(self, **changes: Any) -> "Subject":
        """The same stage with other settings."""
        return replace(self, settings=self.settings.model_copy(update=changes))


def base_model(recipe: Recipe, vocabulary: int) -> PreTrainedModel:
    """The recipe's model on the meta device. vocabulary: tokens of a new one."""
    trust = Trust.of(recipe.trust)
    if isinstance(recipe.model, NewModel):
        with torch.device("meta"):
            rows = {"vocab_size": vocabulary} | dict(recipe.model.config)
            return new_model(recipe.model.architecture, rows)
    return empty_model(Start.at(recipe.model, trust).base, trust)


def subjects(loaded: LoadedRecipe, device: str | None = None) -> Iterator[Subject]:
    """The stages of a recipe, each with the adapter that the one before leaves.

    device: another one than the recipe's; "cuda" needs no GPU.
    """
    recipe = loaded.recipe
    place = torch.device(device) if device else choose_device(recipe.device)
    trust = Trust.of(recipe.trust)
    vocabulary = len(base_tokenizer(recipe.model, trust))
    model = base_model(recipe, vocabulary)
    found: Kind | None = None
    if isinstance(recipe.model, str) and (start := Start.at(recipe.model, trust)).adapter:
        found = found_kind(start.adapter, model)
    for index, stage in enumerate(recipe.stages):
        adapter, stacked = stage.settings.trains, None
        if isinstance(adapter, Full):
            found = None
        else:
            wished = wished_kind(adapter, model)
            done = choose_before(found, wished, adapter.before)
            stacked = found if done == "stack" else None
            found = wished.on(stacked) if stacked else wished
        yield Subject(loaded, index, stage.settings, place, model.config, stacked, vocabulary)


def open_material(subject: Subject) -> StageData | Tasks:
    """What the stage learns from, tokenised now or from the cache."""
    loaded, index = subject.loaded, subject.index
    if isinstance(subject.settings, Grpo):
        return stage_tasks(loaded, index)[0]
    settings = data_settings(loaded.recipe.stages[index])
    tokenizer = stage_tokenizer(loaded, index)
    prepared, held_out = prepare_sources(
        settings, lambda _, data: prepare_data(settings, data, tokenizer, date=today())
    )
    return split_data(settings, prepared, held_out, loaded.recipe.seed, index)


def estimate_recipe(
    loaded: LoadedRecipe, *, device: str | None = None, steps: int | None = None
) -> list[StageEstimate]:
    """The estimate of every stage; steps: only of the first so many of each."""
    found = []
    for subject in subjects(loaded, device):
        subject.material = open_material(subject)
        found.append(estimate_stage(subject, steps=steps))
    return found


def standing_bytes(subject: Subject) -> int:
    """Bytes of weights, adapter, gradients and optimizer, without which no step can be made."""
    settings = subject.settings
    precision = precision_of(subject)
    module = prepare(subject.meta(), settings, precision, subject.before)
    parameters = list(module.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    frozen = sum(each.numel() for each in parameters if not each.requires_grad)
    packed = sum(each.nbytes for name, each in module.named_buffers() if name.endswith("packed"))
    states = 8 * sum(each.numel() for each in trained) + state_bytes(trained, settings.optimizer)
    return frozen * precision.weights.itemsize + packed + states


def precision_of(subject: Subject) -> Precision:
    """The stage's number formats on its device; a GPU that is not there multiplies bf16 fast."""
    settings = subject.settings
    full = isinstance(settings.trains, Full)
    auto = settings.precision == "auto" and is_absent(subject.device)
    wished = "bf16" if auto else settings.precision
    return choose_precision(wished, subject.device, trains_weights=full)


def is_absent(device: torch.device) -> bool:
    """True for a GPU that this machine does not have."""
    return device.type == "cuda" and not torch.cuda.is_available()


def budget_of(model: LanguageModel, settings: TrainingStage, device: torch.device) -> int:
    """Tokens computed at once, as the run chooses them; those of a large GPU where it is absent."""
    if is_absent(device):
        return settings.token_budget or LARGEST_BUDGET[device.type]
    return choose_token_budget(model, settings, device)


def pieces_of(subject: Subject) -> Pieces:
    """The largest pieces of a stage's data as a run would cut them."""
    assert subject.material is not None, "the stage's data are not known"
    settings, device = subject.settings, subject.device
    precision = precision_of(subject)
    causal = subject.meta()
    module = prepare(causal, settings, precision, subject.before)
    with counted():
        model = make_shadow(module, causal, settings, precision)
        budget = budget_of(model, settings, device)
        layout = model.layout
        del model
    return find_pieces(subject.material, settings, budget, layout, subject.material.total_steps)


def estimate_stage(
    subject: Subject,
    *,
    steps: int | None = None,
    budget: int | None = None,
    pieces: Pieces | None = None,
) -> StageEstimate:
    """The estimate of a stage. budget: other tokens at once than the run's; pieces: other work than
    that of its data.
    """
    settings, device = subject.settings, subject.device
    precision = precision_of(subject)
    causal = subject.meta()
    file_bytes = sum(parameter.nbytes for parameter in causal.parameters())
    # Packed weights leave the files mapped as long as another tensor of them is used as it is.
    packed = isinstance(settings.trains, QLora) and causal.dtype == precision.weights
    mapped = file_bytes if packed and device.type == "cpu" else 0
    module = prepare(causal, settings, precision, subject.before)
    with counted() as storages:
        model = make_shadow(module, causal, settings, precision)
        at_once = budget or budget_of(model, settings, device)
        material = subject.material
        if pieces is None and material is not None:
            total = min(steps or material.total_steps, material.total_steps)
            pieces = find_pieces(material, settings, at_once, model.layout, total)
        assert pieces is not None, "neither data nor pieces are known"
        parts = trace(storages, model, settings, pieces)
        if mapped:  # what is not packed lies there
            mapped -= sum(p.nbytes for p in causal.parameters() if not p.requires_grad)
        layout = model.layout
        total = material.total_steps if material is not None else 1
        disk = forecast_disk(model.module, settings, total, Path())
        del model
    phases = resident(parts, device, subject.vocabulary, file_bytes=file_bytes, mapped=mapped)
    kept = {name: getattr(parts, name) for name in PARTS if getattr(parts, name)}
    name = "bf16" if precision.compute == torch.bfloat16 else "fp32"
    tokens = sum(sample.num_tokens for sample in pieces.step)
    return StageEstimate(
        subject.title, device.type, name, layout, at_once, tokens, phases, kept, disk
    )
