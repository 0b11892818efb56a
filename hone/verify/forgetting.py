"""The check `forgetting`: what the model knew before is not lost in the final result.

Sets: those of `verify.forgetting` under the base, and what earlier stages held out under their
results; after it, all under the final result. Both are loaded from their folders and computed by
plain forwards. What got worse is shown, set by set and with the samples that lost most. Left out:
what the last stage held out itself (loss.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hone.data.prepare import prepare
from hone.intervals import Measure, bootstrap_of
from hone.recipe.data import Data
from hone.recipe.schema import NewModel
from hone.recipe.training import DataStage
from hone.records import Sample
from hone.sampling import Artifact, load_rendering
from hone.verify.likelihoods import Reals, Table, tabulate
from hone.verify.loss import CHOSEN, held_out
from hone.verify.subject import StageResult, Subject
from hone.verify.verdicts import (
    Found,
    NotApplicableError,
    Part,
    join_parts,
    not_applicable,
    status_of,
)

HOW = (
    "loss and token accuracy on `verify.forgetting` and on what earlier stages held out, under "
    "the base or that stage's result and under the final result; rise in nats per token"
)
WORST = 3  # samples that are shown
SHOWN = 160  # characters of them
NEW_MODEL = "the run's base is a new model of random weights, which has nothing to forget"


@dataclass(frozen=True)
class KnownSet:
    """Samples that a model knew. before: where that model is."""

    name: str
    before: str
    samples: Sequence[Sample]


def check_forgetting(subject: Subject) -> Found:
    """On no set the loss rose by more than the threshold."""
    return join_parts(list(_parts(subject)))


def _parts(subject: Subject) -> Iterator[Part]:
    asked = subject.settings.forgetting
    if not asked:
        yield not_applicable(
            "base",
            "no evaluation set of the base is named; to have one checked, put `verify: "
            "{forgetting: [base_set.jsonl]}` into the recipe",
        )
    for data in asked:
        yield _part_or_reason(subject, data.path, lambda data=data: _set_of_recipe(subject, data))
    for stage in subject.stages[:-1]:
        of = f"{stage.name} held out"
        yield _part_or_reason(subject, of, lambda stage=stage: _set_of_stage(subject, stage))


def _part_or_reason(subject: Subject, of: str, make: Any) -> Part:
    try:
        return _check_set(subject, make())
    except NotApplicableError as reason:
        return not_applicable(of, str(reason))


def _set_of_recipe(subject: Subject, data: Data) -> KnownSet:
    """One of the base's own evaluation sets, in the tokens of the final result, which are those of
    the base and perhaps more.
    """
    if isinstance(subject.recipe.model, NewModel):
        raise NotApplicableError(NEW_MODEL)
    renderer, rendering = load_rendering(str(subject.stages[-1].model), subject.trust)
    template = rendering.template if data.template == "auto" else data.template
    longest = [
        stage.settings.max_tokens
        for stage in subject.stages
        if isinstance(stage.settings, DataStage)
    ]
    prepared = prepare(
        data.model_copy(update={"template": template}),
        renderer.tokenizer,
        max_tokens=max(longest, default=DataStage.model_fields["max_tokens"].default),
        overlong="keep_start",
        train_on="completions",
        date=subject.run.read_lock_json()["date"],
    )
    count = min(len(prepared), subject.settings.samples)
    samples = [prepared.sample(n) for n in range(count)]
    return KnownSet(data.path, subject.start_source(subject.stages[0]), samples)


def _set_of_stage(subject: Subject, stage: StageResult) -> KnownSet:
    """What a stage before the last one held out; of preferences the wanted answers."""
    samples = [wanted for each in held_out(subject, stage) if (wanted := wanted_part(each))]
    if not samples:
        raise NotApplicableError("no held-out answer is a wanted one")
    return KnownSet(f"{stage.name} held out", str(stage.model), samples)


def wanted_part(sample: Sample) -> Sample | None:
    """The sample without rejected and unwanted answers; None where nothing is left."""
    if len(sample.segments) == 1:
        return sample
    label = sample.segments[CHOSEN].constants.get("label")
    kept = sample.segments[: CHOSEN + 1]
    return replace(sample, segments=kept) if label is None or label.any() else None


def _check_set(subject: Subject, known: KnownSet) -> Part:
    before_model = subject.load(known.before)
    after_model = subject.result(subject.stages[-1])
    _check_tokens(known, before_model)
    before, after = (tabulate(model, known.samples) for model in (before_model, after_model))
    rise = compute_rise(before, after, subject.recipe.seed)
    threshold = subject.settings.thresholds.forgetting
    return Part(
        known.name,
        status_of(rise.mean <= threshold),
        rise.mean,
        threshold,
        len(known.samples),
        f"loss {before.loss:.4g} to {after.loss:.4g} nats per token ({rise.mean:+.3g}, 95 %: "
        f"{rise.low:+.3g} to {rise.high:+.3g}), token accuracy {before.accuracy:.1%} to "
        f"{after.accuracy:.1%}",
        {
            "loss_before": before.loss,
            "loss_after": after.loss,
            "low": rise.low,
            "high": rise.high,
            "accuracy_before": before.accuracy,
            "accuracy_after": after.accuracy,
            "tokens": int(before.counts.sum()),
            "worst": _worst(known, before, after, after_model),
        },
    )


def compute_rise(before: Table, after: Table, seed: int) -> Measure:
    """By how much the loss of the same samples rose, in nats per token, with its interval."""
    table = np.stack([after.losses - before.losses, before.counts], axis=1)
    return bootstrap_of(table, lambda means: means[..., 0] / means[..., 1], seed)


def _check_tokens(known: KnownSet, model: Artifact) -> None:
    """Raises NotApplicableError for tokens that came after the model that knew the set."""
    rows = len(model.model.head.weight_VD)
    highest = max(int(s.tokens.max()) for each in known.samples for s in each.segments)
    if highest >= rows:
        raise NotApplicableError(
            f"it holds the token {highest}, and the model before has only {rows} embeddings"
        )


def _worst(known: KnownSet, before: Table, after: Table, model: Artifact) -> list[dict[str, Any]]:
    """The samples whose loss per token rose most, those that rose at all."""
    rises: Reals = (after.losses - before.losses) / before.counts
    shown = [int(n) for n in np.argsort(-rises, kind="stable")[:WORST] if rises[n] > 0]
    decode = model.renderer.tokenizer.decode
    return [
        {
            "text": "".join(decode(s.tokens.tolist()) for s in known.samples[n].segments)[:SHOWN],
            "before": float(before.losses[n] / before.counts[n]),
            "after": float(after.losses[n] / after.counts[n]),
        }
        for n in shown
    ]
