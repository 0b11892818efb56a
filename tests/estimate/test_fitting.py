"""What `hone check` refuses, that its suggestions are true, and figures without a GPU."""

import json
import re
from pathlib import Path

import pytest

from hone.errors import UserError
from hone.estimate.examine import (
    Subject,
    estimate_recipe,
    estimate_stage,
    open_material,
    pieces_of,
    standing_bytes,
    subjects,
)
from hone.estimate.fitting import check_memory, fits, held_bytes, refusal, suggestions
from hone.estimate.pieces import alone
from tests.estimate.conftest import write_recipe
from tests.workbench import hone


def opened(folder: Path, *overrides: str) -> Subject:
    """The only stage of a recipe, with its data."""
    (subject,) = subjects(write_recipe(folder, *overrides, data="long.jsonl"))
    subject.material = open_material(subject)
    return subject


def test_what_has_room_is_not_refused(folder: Path) -> None:
    assert check_memory(write_recipe(folder), with_data=True) == []


def test_weights_that_have_no_room_are_refused_without_data(folder: Path) -> None:
    subject = opened(folder, "sft.adapter=full")
    limit = held_bytes(subject.device) + standing_bytes(subject) // 2
    loaded = write_recipe(folder, "sft.adapter=full", f"memory={limit // 10**6}MB")
    with pytest.raises(UserError, match=r"take at least .* and the run may hold") as caught:
        check_memory(loaded, with_data=False)
    assert "`adapter: lora` needs at least" in str(caught.value.hint)


def test_suggestions_are_true(folder: Path) -> None:
    """Whatever is suggested fits by the same model, what is not does not."""
    subject = opened(folder, "sft.adapter=full")
    pieces = pieces_of(subject)
    smallest = estimate_stage(subject, pieces=alone(pieces))
    room = int(0.7 * smallest.peak)
    assert not fits(smallest, room)
    found = list(suggestions(subject, pieces, room))
    error = refusal(subject, pieces, smallest, room, room)
    assert "the longest sample alone, 404 tokens" in error.message
    assert any("adapter: lora" in words for words in found)
    for words in found:
        key, value = re.findall(r"`(\w+): (\w+)`", words)[0]
        changed = opened(folder, "sft.adapter=full", f"sft.{key}={value}")
        changed_pieces = pieces_of(changed)
        assert fits(estimate_stage(changed, pieces=alone(changed_pieces)), room), words


def test_more_tokens_at_once_take_more(folder: Path) -> None:
    subject = opened(folder)
    peaks = [estimate_stage(subject, budget=budget).peak for budget in (400, 1300)]
    assert peaks == sorted(set(peaks))


def test_cuda_needs_no_gpu(folder: Path) -> None:
    (cpu,) = estimate_recipe(write_recipe(folder))
    same = write_recipe(folder, f"sft.token_budget={cpu.budget}")
    (cuda,) = estimate_recipe(same, device="cuda")
    assert cuda.device == "cuda" and cuda.parts["weights"] == cpu.parts["weights"]
    assert 0 < cuda.peak < cpu.peak  # no libraries and no holes in it


def test_the_command_prints_the_same_as_json(folder: Path) -> None:
    write_recipe(folder)
    printed = hone(folder, "estimate", "recipe.yaml", "--json")
    (stage,) = json.loads(printed[printed.index("{") :])["stages"]
    assert stage["peak"] == max(stage["phases"].values()) == stage["phases"][stage["phase"]]
    assert stage["disk"]["result"] > 0
