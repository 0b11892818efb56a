"""Masks of saved results: rows rendered again, and what turns the check red."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from hone.data.prepared import array_path, default_cache_folder
from hone.runs import Run
from hone.verify.masks import check_masks
from hone.verify.subject import Subject
from hone.verify.verdicts import (
    FAILED,
    NOT_APPLICABLE,
    PASSED,
    Found,
    NotApplicableError,
)
from tests.verify.ground import copy_of, read_rows, seal, write_rows
from tests.verify.short import part_of, short_run, with_settings

OTHER = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_what_the_result_renders_is_what_was_trained(green: Run) -> None:
    found = check_masks(with_settings(green, samples=20))
    assert found.passed and found.value == found.threshold == 1.0 and found.n == 20
    assert [part.of for part in found.parts] == ["1-sft data", "2-dpo data", "3-grpo"]
    for part in found.parts[:2]:
        assert part.details == {"by_transformers": 20, "not_by_transformers": {}}


@pytest.mark.parametrize("which", ["both", "hone.json", "chat_template.jinja"])
def test_a_swapped_template_turns_it_red(green: Run, tmp_path: Path, which: str) -> None:
    copy = copy_of(green, tmp_path)
    for stage in Subject(copy).stages:
        if which != "hone.json":
            (stage.model / "chat_template.jinja").write_text(OTHER)
        if which != "chat_template.jinja":
            path = stage.model / "hone.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"template": OTHER}))
        seal(stage.model)
    found = check_masks(with_settings(copy, samples=5))
    assert not found.passed and [part.status for part in found.parts] == [FAILED] * 3
    for part in found.parts[:2]:
        if which == "both":
            assert part.value == 0.0 and "other tokens than were trained" in part.reason
        else:
            assert "chat template is not the one in hone.json" in part.reason


def tamper(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    """A cache of one's own in which the masks of all samples from `first` on are shifted by one."""
    cache = folder / "cache"
    shutil.copytree(default_cache_folder(), cache / "data")
    key = run.read_lock_json()["stages"]["1"]["data"]["key"]
    path = array_path(cache / "data" / key, "trained")
    mask = np.fromfile(path, dtype=np.uint8)
    offsets = np.fromfile(array_path(cache / "data" / key, "offsets"), dtype=np.int64)
    begin = offsets[first]
    mask[begin:] = np.roll(mask[begin:], 1)
    mask.tofile(path)
    monkeypatch.setenv("HONE_CACHE", str(cache))


def test_a_mask_shifted_by_one_turns_it_red_twice(
    green: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what is rendered again and by what transformers says: all samples, or the only one."""
    tamper(green, tmp_path, monkeypatch, 0)
    found = check_masks(with_settings(green, samples=20))
    part = part_of(found.parts, "1-sft data")
    assert part.status == FAILED and part.value == 0.0
    assert "another mask than was trained" in part.reason
    assert part_of(found.parts, "2-dpo data").status == PASSED


def test_one_wrong_mask_among_all_is_found_by_both(
    green: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = len(read_rows(Path(Subject(green).recipe.stages[0].settings.data.path)))
    tamper(green, tmp_path, monkeypatch, count - 1)
    part = part_of(check_masks(with_settings(green, samples=count)).parts, "1-sft data")
    assert part.status == FAILED and part.value == pytest.approx(1 - 2 / count)
    assert "2 differences" in part.reason
    assert "another mask than was trained" in part.reason and "is not trained" in part.reason


@pytest.fixture(scope="module")
def mixed(ground: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on conversations of several turns beside two texts and plain text, one row of it too
    long.
    """
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "base").symlink_to(ground / "base")
    for name in ("sft-held", "sft"):
        shutil.copy(ground / f"{name}.jsonl", folder)
    rows = read_rows(ground / "talk.jsonl")
    pairs = zip(rows[0::2], rows[1::2], strict=True)
    system = [{"role": "system", "content": "Be kind."}]
    talks = [{"messages": [*system, *a["messages"], *b["messages"]]} for a, b in pairs]
    talks[3]["messages"][1]["content"] *= 40
    write_rows(folder / "talks.jsonl", [{"messages": [{"role": "odd"}]}, *talks])
    write_rows(
        folder / "sums.jsonl", [{"prompt": f"{n} and", "completion": " 1"} for n in range(9)]
    )
    write_rows(folder / "texts.jsonl", [{"text": f"So it is {n}."} for n in range(9)])
    data = [
        {"path": "talks.jsonl", "on_bad_row": "skip"},
        {"path": "sums.jsonl"},
        {"path": "texts.jsonl"},
    ]
    return short_run(folder, "mixed", data=data, steps=1, max_tokens=100)


def checked(run: Run) -> Found:
    return check_masks(Subject(run))


def test_all_kinds_of_rows_are_rendered_again(mixed: Run) -> None:
    talks, sums, texts = checked(mixed).parts
    assert [part.status for part in (talks, sums, texts)] == [PASSED] * 3
    assert talks.n == talks.details["by_transformers"] > 60
    assert sums.n == texts.n == 9 and sums.details["by_transformers"] == 9


def test_sources_that_are_gone_or_changed_are_never_passed(mixed: Run) -> None:
    """Some rows that a check cannot read again make it not applicable, for that data set only."""
    folder = mixed.path.parents[1]
    rows = read_rows(folder / "sums.jsonl")
    (folder / "texts.jsonl").rename(folder / "away.jsonl")
    write_rows(folder / "sums.jsonl", rows[:-1])
    try:
        talks, sums, texts = checked(mixed).parts
    finally:
        (folder / "away.jsonl").rename(folder / "texts.jsonl")
        write_rows(folder / "sums.jsonl", rows)
    assert talks.status == PASSED and sums.status == texts.status == NOT_APPLICABLE
    assert "has changed since it was trained on" in sums.reason
    assert "there is no file or folder" in texts.reason


def test_a_cache_that_is_gone_is_not_applicable(
    mixed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HONE_CACHE", str(tmp_path))
    with pytest.raises(NotApplicableError, match="no longer in the cache"):
        checked(mixed)
