"""The check `artifacts`: the saved results are whole, this run's own, and load everywhere alike."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from transformers import AutoTokenizer, GenerationConfig

from hone.architecture import first_line
from hone.checkpoints import find_fault, list_checkpoints
from hone.concealing import reveal
from hone.errors import UserError
from hone.model_files import (
    ADAPTER_CONFIG,
    check_adapter_files,
    check_tokenizer_files,
    check_weight_files,
)
from hone.models import PROBE_LIMIT, relative_distance
from hone.quantisation import QUANTISATION, read_quantisation
from hone.recipe.training import QLora
from hone.sampling import RENDERING, Rendering, load_rendering
from hone.verify.bases import base_under, find_change, is_same_place
from hone.verify.distances import compute_logits, texts_of
from hone.verify.plain_load import load_plainly
from hone.verify.subject import OWN_BASE, StageResult, Subject
from hone.verify.verdicts import (
    FAILED,
    NOT_APPLICABLE,
    Found,
    Part,
    join_parts,
    not_applicable,
    status_of,
)

HOW = (
    "files against their manifests and the run's record of what it saved; bases, tokenizer, "
    "template and end tokens; logits loaded by transformers and PEFT alone against Hone's"
)

GENERATION = "generation_config.json"


def check_artifacts(subject: Subject) -> Found:
    """For each stage: its folders by their manifests, the base its adapter names, what belongs
    beside the weights, and logits after loading by transformers and PEFT alone and by Hone.
    """
    parts = []
    base = subject.run.path / "base"
    if is_same_place(subject.sources[0], str(base)):
        change = find_change(subject.run, base)
        parts.append(Part("base files", status_of(change is None), n=1, reason=change or ""))
    for stage in subject.stages:
        for name, examine in (
            ("logits", examine_logits),
            ("files", examine_files),
            ("base", examine_base),
            ("companions", examine_companions),
        ):
            parts.append(attempt(f"{stage.name} {name}", partial(examine, subject, stage)))
    return join_parts(parts)


def attempt(of: str, examine: Callable[[str], Part]) -> Part:
    """A part that fails where it cannot be made, so that the others are made all the same."""
    try:
        return examine(of)
    except UserError as error:
        return Part(of, FAILED, reason=error.message)
    except Exception as error:  # broken files break libraries in every way
        return Part(of, FAILED, reason=f"{type(error).__name__}: {first_line(error)}")


def examine_files(subject: Subject, stage: StageResult, of: str) -> Part:
    """Result and own base are what was saved, and the newest checkpoint is whole."""
    own = stage.folder / OWN_BASE
    models = [stage.model, own] if own.exists() else [stage.model]
    faults = [change for model in models if (change := find_change(subject.run, model))]
    newest = list_checkpoints(stage.folder / "checkpoints")[-1:]
    for checkpoint in newest:
        if fault := find_fault(checkpoint):
            faults.append(f"{checkpoint.relative_to(subject.run.path)}: {fault}")
    return Part(of, status_of(not faults), n=len(models) + len(newest), reason="; ".join(faults))


def examine_base(subject: Subject, stage: StageResult, of: str) -> Part:
    """The result is an adapter where the recipe trains one, and names the base it stands on."""
    expected, path = base_under(subject, stage), stage.model / ADAPTER_CONFIG
    if expected is None:
        check_weight_files(stage.model, "the result", subject.trust)
        return not_applicable(of, "the result has whole weights")
    check_adapter_files(stage.model, subject.trust)
    named = reveal(str(json.loads(path.read_text())["base_model_name_or_path"]))
    faults = []
    if not is_same_place(named, expected):
        faults.append(f"{ADAPTER_CONFIG} names `{named}`, and it was trained on `{expected}`")
    packed, trained = read_quantisation(stage.model), bits_of(stage)
    if packed != trained:
        faults.append(f"{QUANTISATION} says {packed} bits, and it was trained beside {trained}")
    return Part(of, status_of(not faults), reason="; ".join(faults))


def bits_of(stage: StageResult) -> int | None:
    """To how many bits the recipe packs the weights under the stage's adapter; None: not."""
    trains = stage.settings.trains
    return trains.bits if isinstance(trains, QLora) else None


def examine_companions(subject: Subject, stage: StageResult, of: str) -> Part:
    """Tokenizer, chat template, generation config with the end tokens, and how prompts are
    rendered.
    """
    faults = [
        f"{name} is missing"
        for name in (RENDERING, GENERATION)
        if not (stage.model / name).is_file()
    ]
    check_tokenizer_files(stage.model, "the result")
    tokenizer = AutoTokenizer.from_pretrained(
        stage.model, trust_remote_code=subject.trust.remote_code
    )
    if not faults:
        _, rendering = load_rendering(str(stage.model), subject.trust)
        if not rendering.plain and tokenizer.chat_template != rendering.template:
            faults.append(f"the tokenizer's chat template is not that of {RENDERING}")
        faults += _wrong_ends(stage.model, rendering)
    return Part(of, status_of(not faults), reason="; ".join(faults))


def _wrong_ends(folder: Path, rendering: Rendering) -> list[str]:
    ends = GenerationConfig.from_pretrained(folder).eos_token_id
    found = {ends} if isinstance(ends, int) else set(ends or ())
    if found == set(rendering.end_token_ids):
        return []
    expected = rendering.end_token_ids
    return [f"{GENERATION} ends with tokens {sorted(found)}, {RENDERING} with {sorted(expected)}"]


def examine_logits(subject: Subject, stage: StageResult, of: str) -> Part:
    """What the result says on texts of its stage, loaded in both ways; the distance is relative to
    the spread of the logits, its limit that of the probe of a model's layout.
    """
    texts = texts_of(subject.material(stage))
    subject.release()  # so that one model is held at a time
    plain = compute_logits(
        load_plainly(stage.model, subject.device, subject.trust.remote_code), texts
    )
    distance = relative_distance(compute_logits(subject.result(stage).module, texts), plain)
    limit = PROBE_LIMIT[torch.float32]
    if (bits := bits_of(stage)) is None:
        reason = "" if distance <= limit else "loaded by Hone it says something else"
        return Part(of, status_of(distance <= limit), distance, limit, len(texts), reason)
    reason = (
        f"both ways load; the adapter was trained beside weights packed to {bits} bits, which Hone "
        "packs again and PEFT alone does not, so that the distance is told and not judged"
    )
    return Part(of, NOT_APPLICABLE, distance, None, len(texts), reason)
