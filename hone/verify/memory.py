"""Whether an adapter saves the memory that it is taken for: both are measured, nothing is assumed.

A few steps of the stage as the recipe has it, and of the same stage with all weights trained, each
in a fresh process above what it held after its imports. Where activations make up most of the peak
there is little that an adapter could save; the estimate says so before anything is measured.
"""

from typing import Any

from hone.device import choose_device
from hone.estimate.examine import StageEstimate, estimate_stage, subjects
from hone.estimate.fitting import held_bytes
from hone.estimate.measure import STEPS, Measured, measure_peak
from hone.memory import in_words, limit_bytes
from hone.recipe.load import LoadedRecipe
from hone.recipe.training import Full
from hone.verify.subject import StageResult, Subject
from hone.verify.verdicts import Found, Part, join_parts, not_applicable, status_of

HOW = "peak of a few steps with the adapter beside full fine-tuning, both in fresh processes"

PARAMETER_STATE = 0.5  # the least part of full fine-tuning's peak for the check to mean something
OF_THE_RUN = ("token_budget", "precision", "layout")  # what a stage locked beside its data
FULL = {"adapter": {"type": "full"}}


def check_memory(subject: Subject) -> Found:
    """One part for each method and kind of adapter, the first stage that has them."""
    firsts: dict[tuple[str, str], StageResult] = {}
    for stage in subject.stages:
        firsts.setdefault((stage.method, stage.settings.trains.type), stage)
    return join_parts([check_stage(subject, stage) for stage in firsts.values()])


def check_stage(subject: Subject, stage: StageResult) -> Part:
    """Measure a stage's adapter and full fine-tuning, where that means something."""
    if isinstance(stage.settings.trains, Full):
        return not_applicable(stage.name, "it trains the weights themselves")
    loaded = subject.run.loaded_recipe()
    full = estimate_full(subject, loaded, stage)
    state = sum(full.parts.get(name, 0) for name in ("weights", "gradients", "optimizer"))
    if state < PARAMETER_STATE * full.peak:
        return not_applicable(
            stage.name,
            f"weights, gradients and optimizer of full fine-tuning are {in_words(state)} of its "
            f"predicted {in_words(full.peak)}: activations decide, which an adapter needs as well",
        )
    device = choose_device(loaded.recipe.device)
    limit = limit_bytes(loaded.recipe.memory, device)
    if full.peak + held_bytes(device) > limit:
        return not_applicable(
            stage.name,
            f"full fine-tuning would need about {in_words(full.peak)} of {in_words(limit)}, so it "
            "was not measured",
        )
    return compare(
        subject, stage, measure(subject, loaded, stage), measure(subject, loaded, stage, FULL)
    )


def estimate_full(subject: Subject, loaded: LoadedRecipe, stage: StageResult) -> StageEstimate:
    """What full fine-tuning of the stage would take."""
    found = list(subjects(loaded))[stage.index].with_settings(adapter=Full())
    found.material = subject.material(stage)
    return estimate_stage(found, steps=STEPS)


def measure(
    subject: Subject,
    loaded: LoadedRecipe,
    stage: StageResult,
    changes: dict[str, Any] | None = None,
) -> Measured:
    """A few steps of the stage from where it started, with the data and the cuts of the run."""
    subject.told(f"memory: measuring {stage.name}{' with all weights trained' if changes else ''}")
    locked = subject.run.read_lock_json()
    own = {
        name: value
        for name, value in locked.get("stages", {}).get(str(stage.index + 1), {}).items()
        if name in OF_THE_RUN or isinstance(value, dict)
    }
    lock = {"threads": locked["threads"], "date": locked["date"], "stages": {"1": own}}
    start = subject.start_source(stage)
    return measure_peak(loaded, stage.index, start=start, changes=changes, lock=lock)


def compare(subject: Subject, stage: StageResult, adapter: Measured, full: Measured) -> Part:
    """The part of full fine-tuning's peak that the adapter saves."""
    saved, threshold = 1 - adapter.peak / full.peak, subject.settings.thresholds.memory
    kind = stage.settings.trains.type
    return Part(
        stage.name,
        status_of(saved >= threshold),
        round(saved, 4),
        threshold,
        STEPS,
        f"{kind} took {in_words(adapter.peak)}, full fine-tuning {in_words(full.peak)}",
        {"adapter": vars(adapter), "full": vars(full)},
    )
