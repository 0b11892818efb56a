"""Which samples a preference stage has a reference for, and how it is kept."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from hone.annotate import annotate
from hone.checkpoints import CheckpointState, save_checkpoint
from hone.data.joined import Joined
from hone.data.prepare import prepare
from hone.device import Precision
from hone.errors import UserError
from hone.models import join_model
from hone.recipe.data import Data
from hone.recipe.preference import Dpo
from hone.records import Sample
from hone.signals import StopRequested
from hone.stages.data import StageData, split_data
from hone.stages.mismatched import Mismatched, mismatch
from hone.stages.preference import Visited, describe_losses
from hone.stages.reference import PART, REFERENCE, Reference
from hone.training import Training
from tests.data.tokenizers import shared
from tests.preferences import random_judged, random_pairs
from tests.tiny import make_model

pytestmark = pytest.mark.quick


def tokens_of(sample: Sample) -> list[list[int]]:
    return [segment.tokens.tolist() for segment in sample.segments]


# --- Which samples -------------------------------------------------------------------------------


def stage_data(
    folder: Path, sizes: tuple[int, ...], held_out: int, **settings: object
) -> StageData:
    """Labelled completions of several data sets, with held-out ones of their own; all differ."""
    sets, tokenizer = [], shared("byte_level")
    for number, size in enumerate((*sizes, held_out)):
        path = folder / f"{number}.jsonl"
        rows = [
            {"prompt": f"{number} {i}", "completion": f" {i * i}", "label": i % 2 == 0}
            for i in range(size)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        sets.append(
            prepare(
                Data(path=str(path)),
                tokenizer,
                max_tokens=99,
                overlong="drop",
                train_on="completions",
                kind="unpaired",
                cache_folder=folder / "cache",
            )
        )
    weighted = [{"path": f"{i}.jsonl", "weight": i + 1} for i in range(len(sizes))]
    recipe = Dpo.model_validate(
        {
            "data": weighted if len(sizes) > 1 else weighted[0]["path"],
            "loss": "kto",
            "evaluation": {"data": "held.jsonl"},
            **settings,
        }
    )
    return split_data(recipe, Joined(tuple(sets[:-1])), Joined((sets[-1],)), 3, 0)


@pytest.mark.parametrize(
    ("sizes", "settings"),
    [
        ((9,), {"batch": {"samples": 4}, "epochs": 2.5}),
        ((50,), {"batch": {"samples": 4}, "steps": 3}),
        ((5, 12), {"batch": {"tokens": 60}, "epochs": 3}),
    ],
    ids=["three epochs", "a part of one", "a mixture"],
)
def test_every_sample_of_the_plan_is_there_once(sizes, settings, tmp_path: Path) -> None:
    material = stage_data(tmp_path, sizes, 7, **settings)
    visited, mixed = Visited(material), Mismatched(material)
    of_steps = {
        sample.index
        for step in range(1, material.total_steps + 1)
        for sample in material.samples_of(step)
    }
    assert len(visited) == len(of_steps) + 7
    seen = 0
    for step in (*range(1, material.total_steps + 1), None):
        samples = material.samples_of(step) if step else list(material.held_out)
        numbers = visited.numbers_of(samples, step)
        assert [tokens_of(visited.sample(n)) for n in numbers] == [*map(tokens_of, samples)]
        expected = mismatch(samples, material.settings.max_tokens)
        assert [tokens_of(mixed.sample(n)) for n in mixed.numbers_of(step)] == [
            *map(tokens_of, expected)
        ]
        seen += len(samples)
    assert seen == len(mixed)


def test_mismatched_samples_have_the_completion_of_the_next() -> None:
    samples = random_judged(4)
    mixed = mismatch(samples, 100)
    for n, each in enumerate(mixed):
        following = samples[(n + 1) % 4]
        assert tokens_of(each) == [tokens_of(samples[n])[0], tokens_of(following)[1]]
    room = len(samples[0].segments[0].tokens) + 1
    cut = mismatch(samples, room)[0].segments[1]
    assert len(cut.tokens) == len(cut.trained) == len(cut.constants["label"]) == 1


# --- How it is kept ------------------------------------------------------------------------------

SAMPLES = random_pairs(2 * PART + 5)


def training(folder: Path) -> Training:
    fp32 = Precision(torch.float32, torch.float32, "for the test")
    model = join_model(make_model("llama"), fp32, layout="forest")
    return Training(
        model=model,
        optimizer=torch.optim.SGD(model.module.parameters()),
        settings=Dpo(data=Data(path="unused")),
        folder=folder,
        seed=0,
        stage=0,
        total_steps=1,
        token_budget=2000,
        epoch_of=float,
        keep_budgets=lambda budgets: None,
    )


def open_reference(folder: Path, source: str = "pairs", count: int = len(SAMPLES)) -> Reference:
    return Reference(folder / REFERENCE, count, SAMPLES.__getitem__, source)


def bytes_of(folder: Path) -> dict[str, bytes]:
    files = sorted((folder / REFERENCE).rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.is_file()}


def test_the_reference_is_what_the_model_says(tmp_path: Path) -> None:
    here, reference = training(tmp_path), open_reference(tmp_path)
    told: list[int] = []
    reference.compute(here, told.append)
    assert told == [0, PART, 2 * PART, len(SAMPLES)]
    numbers = [PART - 1, PART, 3, len(SAMPLES) - 1]
    found = reference.put([SAMPLES[n] for n in numbers], numbers)
    expected = annotate(here, [SAMPLES[n] for n in numbers], 0, REFERENCE)
    for mine, theirs in zip(found, expected, strict=True):
        assert tokens_of(mine) == tokens_of(theirs)
        for segment, other in zip(mine.segments, theirs.segments, strict=True):
            assert segment.constants[REFERENCE] == pytest.approx(
                other.constants[REFERENCE], abs=1e-5
            )
    again: list[int] = []
    open_reference(tmp_path).compute(here, again.append)
    assert again == [len(SAMPLES)], "nothing is computed a second time"


class Stopped(StopRequested):
    def __init__(self) -> None:
        BaseException.__init__(self, "stopped")


@contextmanager
def forwards(here: Training, limit: int = 10**9, after: int = 10**9) -> Iterator[list[int]]:
    """The tokens of each forward. A machine on which more than `limit` do not fit; after so many
    forwards somebody stops it.
    """
    seen: list[int] = []

    def look(module: torch.nn.Module, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        seen.append(kwargs["input_ids"].shape[-1])
        if len(seen) > after:
            raise Stopped
        if seen[-1] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = here.model.causal.base_model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def test_memory_that_runs_out_leaves_the_parts_before_as_they_are(tmp_path: Path) -> None:
    """The smaller budget has the moment of its part: stopped and resumed, every part is cut as it
    was, and the bytes are the same.
    """
    roomy = 10**9
    whole = training(tmp_path / "whole")
    with forwards(whole) as seen:
        open_reference(tmp_path / "one", count=PART).compute(whole, lambda done: None)
    in_part = len(seen)

    def compute(here: Training, folder: Path) -> None:
        """The first part on a roomy machine, the others where less fits."""
        for limit, after in ((roomy, in_part), (1100, roomy)):
            with forwards(here, limit, after), suppress(Stopped):
                open_reference(folder).compute(here, lambda done: None)

    compute(whole, tmp_path / "whole")
    (moment, budget), *more = whole.smaller_budgets
    assert 0 < moment < 0.5 and budget <= 1100 and not more
    assert whole.budget_at(0) == 2000 and whole.budget_at(0.5) == budget

    killed = training(tmp_path / "killed")
    with forwards(killed, after=in_part), pytest.raises(Stopped):
        open_reference(tmp_path / "killed").compute(killed, lambda done: None)
    with forwards(killed, 1100, after=in_part), pytest.raises(Stopped):
        open_reference(tmp_path / "killed").compute(killed, lambda done: None)
    resumed = training(tmp_path / "killed")
    resumed.smaller_budgets += killed.smaller_budgets
    with forwards(resumed, 1100) as seen:
        open_reference(tmp_path / "killed").compute(resumed, lambda done: None)
    assert max(seen) <= 1100, "it is not tried again"
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")


def test_a_reference_of_other_data_is_not_used(tmp_path: Path) -> None:
    """As after `--accept-changed-data`: computed again, but never with weights that moved on."""
    here, warned = training(tmp_path), list[str]()
    here.warn = warned.append
    open_reference(tmp_path, count=3).compute(here, lambda done: None)
    open_reference(tmp_path, "other pairs", 3).compute(here, lambda done: None)
    assert warned == [
        "reference/part_000000 cannot be used, it is of other data: it is computed again"
    ]
    save_checkpoint(here.checkpoints, CheckpointState(1, evaluated=True), lambda folder: None)
    open_reference(tmp_path, "other pairs", 3).compute(here, lambda done: None)
    with pytest.raises(UserError, match="it is of other data; and the stage has gone on"):
        open_reference(tmp_path, count=3).compute(here, lambda done: None)


def test_losses_are_described_with_what_they_were_derived_to() -> None:
    data = Data(path="unused")
    assert describe_losses(Dpo(data=data)) == "loss sigmoid (DPO, arXiv:2305.18290, beta 0.1)"
    both = Dpo(data=data, loss={"simpo": 1.0, "sft": 0.5}, gamma=0.3)
    assert describe_losses(both) == (
        "loss 1 x simpo (SimPO, arXiv:2405.14734, beta 2, gamma 0.3) + "
        "0.5 x sft (the chosen side's negative log-likelihood)"
    )


def test_a_stage_without_a_reference_says_nothing_of_one() -> None:
    for name in ("simpo", "cpo", "orpo", "sft"):
        assert not Dpo(data=Data(path="unused"), loss=name).needs_reference
    both = Dpo(data=Data(path="unused"), loss={"sft": 1.0, "ipo": 1.0})
    assert both.needs_reference and both.leading == "ipo" and both.sample_kind == "pairs"
    assert np.isclose(both.parameters_of("ipo")["beta"], 0.1)
