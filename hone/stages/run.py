"""A whole recipe: the base, then one stage after another, each from the result of the one before.

Called by `hone run`, `resume`, `check`, `data show`, `generate` and `chat`. Stages that are
finished are passed over, so that calling `run_recipe` again is resuming.
"""

import datetime
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from hone.adapters import choose_targets
from hone.checkpoints import find_fault, write_folder
from hone.data.chat import Renderer
from hone.data.prepared import Prepared, default_cache_folder
from hone.data.tokenizer_texts import texts_of, tokenizer_key
from hone.data.tokenizer_training import train_tokenizer
from hone.device import (
    choose_device,
    count_cores,
    make_deterministic,
    seed_torch,
    use_threads,
)
from hone.errors import UserError
from hone.hub import find_model
from hone.models import first_line, load_tokenizer, new_model, save_model
from hone.recipe.load import LoadedRecipe
from hone.recipe.schema import Lora, NewModel, Recipe, TrainedTokenizer
from hone.runs import Run
from hone.sampling import Artifact, load_artifact
from hone.stages.start import Start
from hone.stages.supervised import (
    SupervisedStage,
    adapter_of,
    held_out_data,
    prepare_data,
    split_data,
)
from hone.trackers import check_trackers
from hone.trackers.supervise import tracked


@dataclass(frozen=True)
class Finding:
    """Something `hone check` found. severity: "error" or "note"."""

    severity: str
    message: str
    hint: str | None = None


def run_recipe(run: Run, *, console: Console) -> None:
    """Do all stages that are not finished. Raises UserError and StopRequested; the caller owns the
    run's state.
    """
    quieten_libraries()
    recipe = run.loaded_recipe().recipe
    lock_surroundings(run, recipe)
    device = choose_device(recipe.device)
    make_deterministic(device)
    with tracked(run, recipe.trackers, console):
        start = prepare_base(run, recipe, console)
        for index, stage in enumerate(recipe.stages):
            result = run.stage_folder(index, stage.method) / "model"
            if find_fault(result) is None:
                start = Start.at(str(result))
                continue
            run.event("stage", stage=index + 1, method=stage.method)
            start = SupervisedStage(run, recipe, index, console).execute(start, device)


def quieten_libraries() -> None:
    """Keep the libraries' own progress bars and notices off the person's screen; errors still
    raise.
    """
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    # PEFT asks transformers 5.23 by the old name.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)


def lock_surroundings(run: Run, recipe: Recipe) -> None:
    """Threads and date of the first attempt hold for all later ones."""
    locked = run.read_lock_json()
    threads = locked.get("threads") or recipe.threads or count_cores()
    date = locked.get("date") or datetime.date.today().isoformat()
    if (locked.get("threads"), locked.get("date")) != (threads, date):
        run.update_lock_json({"threads": threads, "date": date})
    use_threads(threads)


def prepare_base(run: Run, recipe: Recipe, console: Console) -> Start:
    """The base model as a folder or Hub id; a new one is made once, in the run's `base/`."""
    if isinstance(recipe.model, str):
        return Start.at(recipe.model)
    model, base = recipe.model, run.path / "base"
    if find_fault(base) is not None:
        tokenizer = base_tokenizer(model)
        seed_torch(recipe.seed, "base")
        rows = {"vocab_size": len(tokenizer)} | dict(model.config)
        module = new_model(model.architecture, rows)

        def write(folder: Path) -> None:
            save_model(module, folder)
            tokenizer.save_pretrained(folder)

        write_folder(base, write)
        size = sum(parameter.numel() for parameter in module.parameters())
        console.print(
            f"base: a new {model.architecture} model with {size:,} parameters and "
            f"{len(tokenizer):,} tokens",
            highlight=False,
        )
    return Start.at(str(base))


def base_tokenizer(model: NewModel | str) -> PreTrainedTokenizerBase:
    """The tokenizer of the base model; one that has to be made is kept in the cache."""
    if isinstance(model, str):
        return load_tokenizer(model)
    if not isinstance(model.tokenizer, TrainedTokenizer):
        return load_tokenizer(model.tokenizer)
    settings = model.tokenizer
    folder = default_cache_folder().parent / "tokenizers" / tokenizer_key(settings)
    if find_fault(folder) is not None:
        made = train_tokenizer(texts_of(settings), settings.vocabulary)
        write_folder(folder, lambda path: made.save_pretrained(path) and None)
    return load_tokenizer(str(folder))


def prepare_stage(loaded: LoadedRecipe, index: int) -> tuple[Prepared, PreTrainedTokenizerBase]:
    """The tokenised data of a stage as a run would see it today."""
    quieten_libraries()
    recipe = loaded.recipe
    settings = recipe.stages[index].settings
    tokenizer = base_tokenizer(recipe.model)
    for before in recipe.stages[:index]:  # each stage saves its template with its result
        template = Renderer(tokenizer, before.settings.data.template).template
        tokenizer.chat_template = template
    today = datetime.date.today().isoformat()
    return prepare_data(settings, settings.data, tokenizer, date=today), tokenizer


def check_recipe(loaded: LoadedRecipe) -> list[Finding]:
    """What would stop this recipe, found without loading weights: all faults of model and data, and
    what was derived.
    """
    findings: list[Finding] = []

    def attempt(work: object) -> object:
        try:
            return work()  # type: ignore[operator]
        except UserError as error:
            finding = Finding("error", error.message, error.hint)
            if finding not in findings:
                findings.append(finding)
            return None

    quieten_libraries()
    recipe = loaded.recipe
    attempt(lambda: choose_device(recipe.device))
    attempt(lambda: check_trackers(recipe.trackers))
    attempt(lambda: check_model(recipe))
    if attempt(lambda: base_tokenizer(recipe.model)) is None:
        return findings
    for index, stage in enumerate(recipe.stages):
        found = attempt(lambda index=index: check_stage(loaded, index))
        if isinstance(found, str):
            findings.append(Finding("note", f"stage {index + 1} {stage.method}: {found}"))
    return findings


def check_stage(loaded: LoadedRecipe, index: int) -> str:
    """Prepare a stage's data and count its steps; returns the counts in words."""
    settings = loaded.recipe.stages[index].settings
    prepared, tokenizer = prepare_stage(loaded, index)
    evaluation = None
    if (held_out := held_out_data(settings)) is not None:
        today = datetime.date.today().isoformat()
        evaluation = prepare_data(settings, held_out, tokenizer, date=today)
    data = split_data(settings, prepared, evaluation, loaded.recipe.seed, index)
    counts = prepared.report
    left_out = counts["dropped_overlong"] + counts["dropped_untrained"] + counts["skipped_rows"]
    return (
        f"{counts['samples']:,} samples, {counts['tokens']:,} tokens, "
        f"{counts['trained_tokens']:,} trained, {counts['truncated']:,} truncated, "
        f"{left_out:,} left out, {len(data.held_out):,} held out, {data.total_steps:,} steps"
    )


def check_model(recipe: Recipe) -> None:
    """The model's configuration and the adapters' targets on the meta device, without weights."""
    with torch.device("meta"):
        if isinstance(recipe.model, NewModel):
            model = new_model(recipe.model.architecture, dict(recipe.model.config))
        else:
            try:
                config = AutoConfig.from_pretrained(find_model(Start.at(recipe.model).base))
                model = AutoModelForCausalLM.from_config(config)
            except (OSError, ValueError, KeyError) as error:
                raise UserError(
                    f'model: "{recipe.model}" cannot be used: {first_line(error)}',
                    hint="expected a Hub id, or a folder with config.json of a causal language "
                    "model",
                    exit_code=2,
                ) from error
    for stage in recipe.stages:
        adapter = adapter_of(stage.settings)
        if isinstance(adapter, Lora):
            choose_targets(model, adapter.targets)


def load_result(run: Run, stage: int | str | None = None) -> Artifact:
    """The model of a finished stage: the last one, the one with this index, or "base" for where the
    run began.
    """
    quieten_libraries()
    recipe = run.loaded_recipe().recipe
    device = choose_device(recipe.device)
    if stage == "base":
        base = run.path / "base" if isinstance(recipe.model, NewModel) else recipe.model
        return load_artifact(str(base), device)
    results = [run.stage_folder(n, s.method) / "model" for n, s in enumerate(recipe.stages)]
    wanted = results if stage is None else [results[int(stage)]]
    for result in reversed(wanted):
        if result.exists():
            return load_artifact(str(result), device)
    raise UserError(
        f"the run `{run.name}` has no finished stage yet", hint=f"hone resume {run.reference}"
    )
