"""The check `parameters`: what was trained has moved, and what was not has not.

Where a stage began is derived again, as training made it: from the base, the seed and the result of
the stage before.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file

from hone.checkpoints import find_fault
from hone.device import choose_precision
from hone.errors import UserError
from hone.model_files import ADAPTER, some_of
from hone.models import LanguageModel
from hone.provenance import find_model_changes
from hone.recipe.training import Full
from hone.stacking import NEW, is_stacked
from hone.stages.start import Start, build_model, has_all_rows, open_tokenizer, plan_adapter
from hone.verify.bases import base_under, find_change, is_same_place
from hone.verify.subject import OWN_BASE, StageResult, Subject
from hone.verify.verdicts import Found, Part, join_parts, status_of
from hone.vocabulary import add_tokens

HOW = (
    "trained tensors against where their stage started, derived again; every file of the base "
    "against its SHA-256"
)

Tensors = dict[str, torch.Tensor]

# A tensor has moved where its change is more than this share of its norm. Ten times the rounding of
# fp32, which is all that another machine or thread count changes of a derived start; one update of
# 1e-7 on weights of 0.02 is 5e-6.
MOVED = 1e-6


@dataclass(frozen=True)
class Trained:
    """What a stage trained, before and after, and names of what it should have left alone but did
    not.
    """

    before: Tensors
    after: Tensors
    touched: tuple[str, ...] = ()


def check_parameters(subject: Subject) -> Found:
    """The share of each stage's trained tensors that moved, and every base, bit for bit."""
    parts = [examine_stage(subject, stage) for stage in subject.stages]
    return join_parts([*parts, examine_first_base(subject), *examine_own_bases(subject)])


def examine_stage(subject: Subject, stage: StageResult) -> Part:
    """How many tensors of those that the stage trains are not what they were."""
    subject.release()  # the start is another model
    found = read_trained(subject, stage)
    names = sorted(found.before)
    still = [name for name in names if not has_moved(found.before[name], found.after[name])]
    share, limit = 1 - len(still) / len(names), subject.settings.thresholds.parameters
    told = [f"{some_of(still)} did not move"] if still else []
    if found.touched:
        told.append(f"{some_of(found.touched)} should not have moved")
    passed = share > limit and not found.touched
    details = {"moved": len(names) - len(still), "tensors": len(names)}
    return Part(
        stage.name, status_of(passed), share, limit, len(names), "; ".join(told), details=details
    )


def has_moved(before: torch.Tensor, after: torch.Tensor) -> bool:
    """True where the change is more than rounding."""
    before, after = before.double(), after.double()
    return bool((after - before).norm() > MOVED * torch.maximum(before.norm(), after.norm()))


def read_trained(subject: Subject, stage: StageResult) -> Trained:
    """What the stage trained. Raises UserError where the result has other tensors."""
    start = Start.at(subject.sources[stage.index], subject.trust)
    model = build_start(subject, stage, start)
    if isinstance(model.module, PeftModel):
        before, after = adapter_tensors(model, stage.model)
        check_same(before, after)
        return Trained(before, after)
    before = {name: parameter.detach() for name, parameter in model.module.named_parameters()}
    result = subject.result(stage).module
    after = {name: parameter.detach() for name, parameter in result.named_parameters()}
    check_same(before, after)
    names = {name for name, _ in model.trainable()}
    frozen = before.keys() - names
    # A merged start is computed again, and may be rounded otherwise on another machine.
    differs = has_moved if start.adapter else lambda a, b: not torch.equal(a.float(), b.float())
    touched = [name for name in sorted(frozen) if differs(before[name], after[name])]
    return Trained(
        {name: before[name] for name in names},
        {name: after[name] for name in names},
        tuple(touched),
    )


def build_start(subject: Subject, stage: StageResult, start: Start) -> LanguageModel:
    """The model of a stage before its first step. Nothing is written: a base of the stage's own has
    to be there.
    """
    settings, trains = stage.settings, stage.settings.trains
    added = add_tokens(open_tokenizer(start), settings.add_tokens)
    if not isinstance(trains, Full):
        merges = plan_adapter(start, trains, added) == "merge"
        own = stage.folder / OWN_BASE
        if (merges or not has_all_rows(start, added)) and (fault := find_fault(own)):
            raise UserError(f"{own.relative_to(subject.run.path)}: {fault}")
    locked = subject.run.read_lock_json().get("stages", {}).get(str(stage.place), {})
    precision = choose_precision(
        locked.get("precision", settings.precision),
        subject.device,
        trains_weights=isinstance(trains, Full),
    )
    return build_model(
        start,
        None,
        trains,
        added=added,
        folder=stage.folder,
        precision=precision,
        device=subject.device,
        layout=settings.layout,
        seed=(subject.recipe.seed, stage.index),
    )


def adapter_tensors(model: LanguageModel, result: Path) -> tuple[Tensors, Tensors]:
    """The tensors of the start's new adapter and of the saved one, by the names in PEFT's files.

    Of a stacked adapter, saved with the one below as [A1; A2] and [B1, B2], the second factors.
    """
    module = model.module
    assert isinstance(module, PeftModel)
    before = get_peft_model_state_dict(module, adapter_name=NEW, save_embedding_layers=False)
    before = {name: tensor.detach().cpu() for name, tensor in before.items()}
    after = load_file(result / ADAPTER)
    if not is_stacked(module):
        return before, after
    rank = module.peft_config[NEW].r
    new = {
        name: tensor[-rank:] if ".lora_A." in name else tensor[:, -rank:]
        for name, tensor in after.items()
    }
    return before, {name: tensor for name, tensor in new.items() if name in before}


def check_same(before: Tensors, after: Tensors) -> None:
    """Raises UserError where a tensor is missing, is too much, or has another shape."""
    shapes = [{name: tuple(t.shape) for name, t in each.items()} for each in (before, after)]
    differing = {name for name, _ in shapes[0].items() ^ shapes[1].items()}
    if differing:
        raise UserError(f"{some_of(differing)} of the result are not what the stage trains")


def examine_first_base(subject: Subject) -> Part:
    """Every file of the model that the run began with, read again to its last byte."""
    base = subject.run.read_lock_json().get("base")
    if base is None:
        return Part("base", status_of(False), reason="lock.json has no hashes of the base")
    faults = [
        change.in_words()
        for model in base["models"]
        for change in find_model_changes(model, anew=True)
    ]
    files = sum(len(model["files"]) for model in base["models"])
    folder = subject.run.path / "base"
    if is_same_place(subject.sources[0], str(folder)):
        files += 1
        faults += [change] if (change := find_change(subject.run, folder)) else []
    return Part("base", status_of(not faults), n=files, reason="; ".join(faults))


def examine_own_bases(subject: Subject) -> list[Part]:
    """The models in the run that adapters stand on, as they were saved."""
    under = [base_under(subject, stage) for stage in subject.stages]
    stages = subject.run.path / "stages"
    parts = []
    for base in dict.fromkeys(base for base in under if base):
        if stages in Path(base).parents:
            change = find_change(subject.run, Path(base))
            of = str(Path(base).relative_to(stages))
            parts.append(Part(of, status_of(change is None), n=1, reason=change or ""))
    return parts
