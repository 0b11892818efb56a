"""A whole recipe: the base, then one stage after another, each from the result of the one before.

Called by `hone run`, `resume`, `check`, `data show`, `generate` and `chat`. Stages that are
finished are passed over, so that calling `run_recipe` again is resuming.
"""

import datetime
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from rich.console import Console
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from hone.architecture import first_line
from hone.checkpoints import find_fault, write_folder
from hone.data.chat import Renderer
from hone.data.joined import Joined
from hone.data.prepared import LEFT_OUT, Prepared, default_cache_folder
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
from hone.extras import check_extra
from hone.memory import check_limit, in_words, is_out_of_memory, use_memory_limit
from hone.model_files import NOTHING, Trust
from hone.models import load_tokenizer, new_model, save_model
from hone.optim import describe_cut_warmup
from hone.recipe.data import Data
from hone.recipe.load import LoadedRecipe
from hone.recipe.policy import Grpo
from hone.recipe.schema import NewModel, Recipe, Stage, TrainedTokenizer
from hone.recipe.training import AdamW8bit, DataStage, Full, QLora
from hone.runs import Run
from hone.sampling import Artifact, load_artifact
from hone.stages.data import (
    check_ids,
    describe_repeats,
    describe_sets,
    prepare_data,
    prepare_sources,
    prepare_training,
    result_template,
    split_data,
)
from hone.stages.methods import WORK
from hone.stages.progress import StageProgress
from hone.stages.start import Start, check_adapters, check_start
from hone.stages.surroundings import lock_device
from hone.stages.tasks import Tasks, check_code, check_gold_answers, open_tasks
from hone.stages.work import Reached, stop_there
from hone.trackers import check_trackers
from hone.trackers.supervise import tracked
from hone.vocabulary import add_tokens, check_rows, check_sizes


@dataclass(frozen=True)
class Finding:
    """Something `hone check` found. severity: "error" or "note"."""

    severity: str
    message: str
    hint: str | None = None


def run_recipe(
    run: Run,
    *,
    console: Console,
    until: tuple[int, int] | None = None,
    reached: Reached = stop_there,
    tracks: bool = True,
) -> None:
    """Do all stages that are not finished. Raises UserError and StopRequested; the caller owns the
    run's state.

    until: (stage from 1, step) after which StepReached is raised, or what else `reached` does.
    tracks: whether the recipe's trackers follow.
    """
    quieten_libraries()
    recipe = run.loaded_recipe().recipe
    check_extras(recipe)
    lock_surroundings(run, recipe)
    device = choose_device(recipe.device)
    make_deterministic(device)
    for change in lock_device(run, recipe, device):
        run.event("device_changed", change=change)
        message = f"warning: the result may differ, the device has changed: {change}"
        console.print(message, highlight=False, soft_wrap=True, markup=False)
    # Trackers begin outside: the limit is not theirs.
    trackers = recipe.trackers if tracks else []
    with tracked(run, trackers, console), memory_limit(recipe, device):
        start = prepare_base(run, recipe, console)
        for index, stage in enumerate(recipe.stages):
            result = run.stage_folder(index, stage.method) / "model"
            if find_fault(result) is None:
                start = Start.at(str(result), start.trust)
                continue
            check_start(start)
            run.event("stage", stage=index + 1, method=stage.method)
            last_step = until[1] if until and until[0] == index + 1 else None
            work = WORK[stage.method](run, recipe, index, console, last_step)
            work.reached = reached
            start = work.execute(start, device)


@contextmanager
def memory_limit(recipe: Recipe, device: torch.device) -> Iterator[None]:
    """Around the work of a run: what does not fit and cannot be cut is the
    person's to decide.
    """
    limit = use_memory_limit(recipe.memory, device)
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"the memory limit of {in_words(limit)} does not suffice: {first_line(error)}",
            hint="raise `memory: {limit: ...}`, or take a smaller model, or an adapter instead of "
            "full weights",
        ) from error


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
    date = locked.get("date") or today()
    if (locked.get("threads"), locked.get("date")) != (threads, date):
        run.update_lock_json({"threads": threads, "date": date})
    use_threads(threads)


def prepare_base(run: Run, recipe: Recipe, console: Console) -> Start:
    """The base model as a folder or Hub id; a new one is made once, in the run's `base/`."""
    trust = Trust.of(recipe.trust)
    if isinstance(recipe.model, str):
        return Start.at(recipe.model, trust)
    model, base = recipe.model, run.path / "base"
    if find_fault(base) is not None:
        tokenizer = base_tokenizer(model, trust)
        seed_torch(recipe.seed, "base")
        rows = {"vocab_size": len(tokenizer)} | dict(model.config)
        module = new_model(model.architecture, rows)

        def write(folder: Path) -> None:
            save_model(module, folder)
            tokenizer.save_pretrained(folder)

        write_folder(base, write, run.announce)
        size = sum(parameter.numel() for parameter in module.parameters())
        console.print(
            f"base: a new {model.architecture} model with {size:,} parameters and "
            f"{len(tokenizer):,} tokens",
            highlight=False,
        )
    return Start.at(str(base), trust)


def base_tokenizer(model: NewModel | str, trust: Trust = NOTHING) -> PreTrainedTokenizerBase:
    """The tokenizer of the base model; one that has to be made is kept in the cache."""
    if isinstance(model, str):
        return load_tokenizer(model, trust)
    if not isinstance(model.tokenizer, TrainedTokenizer):
        return load_tokenizer(model.tokenizer, trust)
    settings = model.tokenizer
    folder = default_cache_folder().parent / "tokenizers" / tokenizer_key(settings)
    if find_fault(folder) is not None:
        made = train_tokenizer(texts_of(settings), settings.vocabulary)
        write_folder(folder, lambda path: made.save_pretrained(path) and None)
    return load_tokenizer(str(folder))


def stage_tokenizer(loaded: LoadedRecipe, index: int) -> PreTrainedTokenizerBase:
    """The tokenizer of a stage, with its tokens, and the chat template that the stages before it
    leave.
    """
    recipe = loaded.recipe
    tokenizer = base_tokenizer(recipe.model, Trust.of(recipe.trust))
    for before in recipe.stages[:index]:  # each stage saves its tokens and template with its result
        add_tokens(tokenizer, before.settings.add_tokens)
        if isinstance(before.settings, DataStage):
            tokenizer.chat_template = result_template(before.settings, tokenizer, date=today())
        elif isinstance(before.settings, Grpo):
            tokenizer.chat_template = Renderer(tokenizer, before.settings.template).template
    add_tokens(tokenizer, recipe.stages[index].settings.add_tokens)
    return tokenizer


def data_settings(stage: Stage) -> DataStage:
    """The settings of a stage that learns from prepared data. Raises UserError for another one."""
    if isinstance(stage.settings, DataStage):
        return stage.settings
    raise UserError(
        f"a `{stage.method}` stage has no samples to look at: it makes them while it trains",
        hint="name another one with --stage N",
        exit_code=2,
    )


def prepare_stage(loaded: LoadedRecipe, index: int) -> tuple[Joined, PreTrainedTokenizerBase]:
    """The tokenised data of a stage as a run would see it today."""
    quieten_libraries()
    tokenizer = stage_tokenizer(loaded, index)
    settings = data_settings(loaded.recipe.stages[index])
    return prepare_training(settings, tokenizer, date=today()), tokenizer


@dataclass(frozen=True)
class PreparedSource:
    """A data set of a stage. name: `data`, `data[1]`, `evaluation`. made: it was tokenised now."""

    stage: str
    settings: DataStage
    name: str
    data: Data
    prepared: Prepared
    made: bool


def prepare_recipe(loaded: LoadedRecipe, console: Console) -> list[PreparedSource]:
    """Tokenise the data of all stages into the cache, with a progress bar for each set."""
    quieten_libraries()
    found: list[PreparedSource] = []
    for index, stage in enumerate(loaded.recipe.stages):
        if isinstance(stage.settings, DataStage):
            found += _prepare_with_bars(loaded, index, console)
    return found


def _prepare_with_bars(loaded: LoadedRecipe, index: int, console: Console) -> list[PreparedSource]:
    stage = loaded.recipe.stages[index]
    settings = data_settings(stage)
    title = f"{index + 1} {stage.method}"
    tokenizer = stage_tokenizer(loaded, index)
    found: list[PreparedSource] = []

    def prepare_one(name: str, data: Data) -> Prepared:
        batches: list[int] = []
        with StageProgress(console, None, f"{title} {name}", None) as bar:

            def advance(done: int, total: int | None) -> None:
                batches.append(done)
                bar.advance_to(done, total)

            prepared = prepare_data(settings, data, tokenizer, date=today(), progress=advance)
        found.append(PreparedSource(title, settings, name, data, prepared, made=bool(batches)))
        return prepared

    prepare_sources(settings, prepare_one)
    return found


def today() -> str:
    """The date that templates print: YYYY-MM-DD."""
    return datetime.date.today().isoformat()


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
    attempt(lambda: check_limit(recipe.memory, choose_device(recipe.device)))
    attempt(lambda: check_extras(recipe))
    model = attempt(lambda: check_model(recipe))
    if attempt(lambda: base_tokenizer(recipe.model, Trust.of(recipe.trust))) is None:
        return findings
    rows = len(model.get_input_embeddings().weight) if isinstance(model, PreTrainedModel) else None
    for index, stage in enumerate(recipe.stages):
        rows = None if stage.settings.add_tokens else rows  # the model may grow
        found = attempt(lambda index=index, rows=rows: check_stage(loaded, index, rows))
        if isinstance(found, list):
            findings += [
                Finding("note", f"stage {index + 1} {stage.method}: {line}") for line in found
            ]
    return findings


def check_stage(loaded: LoadedRecipe, index: int, rows: int | None) -> list[str]:
    """Prepare a stage's data and count its steps; returns what was found, line by line.

    rows: the embeddings that the model has, None where that is not known yet.
    """
    found = loaded.recipe.stages[index].settings
    if isinstance(found, Grpo):
        return check_tasks(loaded, index, rows)
    settings = data_settings(loaded.recipe.stages[index])
    tokenizer = stage_tokenizer(loaded, index)
    prepared, held_out = prepare_sources(
        settings, lambda _, data: prepare_data(settings, data, tokenizer, date=today())
    )
    data = split_data(settings, prepared, held_out, loaded.recipe.seed, index)
    if rows is not None:
        check_ids(data, rows)
    counts = prepared.report
    left_out = sum(counts[name] for name in LEFT_OUT)
    return [
        f"{counts['samples']:,} samples, {counts['tokens']:,} tokens, "
        f"{counts['trained_tokens']:,} trained, {counts['truncated']:,} truncated, "
        f"{left_out:,} left out, {len(data.held_out):,} held out, {data.total_steps:,} steps",
        *describe_sets(settings, data),
        *describe_repeats(data),
        *filter(None, [describe_cut_warmup(settings, data.total_steps)]),
    ]


def stage_tasks(loaded: LoadedRecipe, index: int) -> tuple[Tasks, PreTrainedTokenizerBase]:
    """The tasks of a policy stage as a run would ask them today."""
    quieten_libraries()
    settings, tokenizer = loaded.recipe.stages[index].settings, stage_tokenizer(loaded, index)
    assert isinstance(settings, Grpo), "only a policy stage has tasks"
    seed = loaded.recipe.seed
    return open_tasks(settings, tokenizer, date=today(), seed=seed, stage=index), tokenizer


def check_tasks(loaded: LoadedRecipe, index: int, rows: int | None) -> list[str]:
    """Read and render a stage's tasks, have its rewards imported and its gold answers scored;
    returns what was found, line by line.
    """
    tasks, _ = stage_tasks(loaded, index)
    if rows is not None:
        tasks.check(rows)
    rewards = f"rewards: {', '.join(check_code(tasks))}; {tasks.total_steps:,} steps"
    lines = [*tasks.describe(), rewards, *check_gold_answers(tasks)]
    return [*lines, *filter(None, [describe_cut_warmup(tasks.settings, tasks.total_steps)])]


def check_model(recipe: Recipe) -> PreTrainedModel:
    """The model without weights, after a look at its files, its configuration, and what the
    adapters train of it.
    """
    trust = Trust.of(recipe.trust)
    if isinstance(recipe.model, NewModel):
        tokenizer = base_tokenizer(recipe.model, trust)
        rows = {"vocab_size": len(tokenizer)} | dict(recipe.model.config)
        with torch.device("meta"):
            model = new_model(recipe.model.architecture, rows)
        check_sizes(model, tokenizer)
        start = None
    else:
        start = Start.at(recipe.model, trust)
        model = check_start(start)
    check_adapters(model, start, [stage.settings.trains for stage in recipe.stages])
    for stage in recipe.stages:
        if stage.settings.add_tokens and not isinstance(stage.settings.trains, Full):
            check_rows(model)
    return model


def check_extras(recipe: Recipe) -> None:
    """Raises UserError where the recipe asks for a package that is not installed."""
    for stage in recipe.stages:
        if isinstance(stage.settings.trains, QLora):
            check_extra("bitsandbytes", "`adapter.type: qlora`")
        if isinstance(stage.settings.optimizer, AdamW8bit):
            check_extra("bitsandbytes", "`optimizer.type: adamw_8bit`")


def load_result(run: Run, stage: int | str | None = None) -> Artifact:
    """The model of a finished stage: the last one, the one with this index, or "base" for where the
    run began.
    """
    quieten_libraries()
    recipe = run.loaded_recipe().recipe
    device, trust = choose_device(recipe.device), Trust.of(recipe.trust)
    return load_artifact(find_result(run, stage), device, trust=trust)


def find_result(run: Run, stage: int | str | None = None) -> str:
    """The folder (of a base, perhaps the Hub id) of what `load_result` loads."""
    recipe = run.loaded_recipe().recipe
    if stage == "base":
        return str(run.path / "base") if isinstance(recipe.model, NewModel) else recipe.model
    results = [run.stage_folder(n, s.method) / "model" for n, s in enumerate(recipe.stages)]
    wanted = results if stage is None else [results[int(stage)]]
    for result in reversed(wanted):
        if result.exists():
            return str(result)
    raise UserError(
        f"the run `{run.name}` has no finished stage yet", hint=f"hone resume {run.reference}"
    )
