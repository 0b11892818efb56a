"""The check `stages`: what a stage has taught is still there after the next one."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hone.records import Sample, Segment
from hone.runs import Run
from hone.sampling import Artifact
from hone.stages.tasks import Tasks
from hone.verify import distances
from hone.verify.distances import answered_texts, compute_distance, compute_logits, compute_spread
from hone.verify.subject import Subject
from tests.verify.ground import copy_of
from tests.verify.tampering import Tensors, accept, edit_tensors, examine, red, told


def test_three_stages_are_green(green: Run) -> None:
    """sft, dpo and grpo; the distances are those of the models' own forwards."""
    (found,) = examine(green, "stages").values()
    assert found.status == "passed", found.reason
    assert [part.of for part in found.parts] == ["2-dpo", "3-grpo"]
    assert all(part.value is not None and part.value > 0.5 for part in found.parts)
    details = found.parts[0].details
    way, moved, whole = (
        details[name]
        for name in ("1-sft from its start", "2-dpo from 1-sft", "2-dpo from the start of 1-sft")
    )
    assert found.parts[0].value == pytest.approx((way**2 + whole**2 - moved**2) / (2 * way**2))
    assert moved < whole  # what a share of more than a half says
    assert 0 < details["noise"] < moved / 100


def test_a_stage_that_puts_back_the_one_before(green: Run, tmp_path: Path) -> None:
    """The adapter of the last stage without what dpo had done: its factors minus those of dpo's
    update.
    """
    copy = copy_of(green, tmp_path)
    sft, dpo, grpo = (
        copy.path / "stages" / name / "model" for name in ("1-sft", "2-dpo", "3-grpo")
    )
    known: list[Tensors] = []
    for folder in (sft, dpo):
        edit_tensors(folder, lambda tensors: known.append(dict(tensors)) or tensors)  # type: ignore[func-returns-value]
        accept(copy, folder)
    before, after = known
    edit_tensors(grpo, lambda tensors: {n: t - after[n] + before[n] for n, t in tensors.items()})
    accept(copy, grpo)
    found = examine(copy)
    assert red(found) == {"stages"}
    assert "3-grpo is nearer to the start of 2-dpo" in told(found["stages"])
    assert [part.status for part in found["stages"].parts] == ["passed", "failed"]


def test_the_answers_of_a_stage_with_tasks(green: Run) -> None:
    """Prompts with the greedy answers of a result, looked at from the prompt's last token on."""
    subject = Subject(green)
    tasks, artifact = subject.material(subject.stages[2]), subject.result(subject.stages[2])
    assert isinstance(tasks, Tasks) and isinstance(artifact, Artifact)
    texts = answered_texts(tasks, artifact, 8)
    assert len(texts) == distances.TEXTS
    logits = compute_logits(artifact.module, texts)
    ends = set(artifact.rendering.end_token_ids)
    begin = 0
    for text, question in zip(texts, tasks.held_out.questions, strict=False):
        prompt = len(question.ids)
        assert text.ids[:prompt].tolist() == question.ids
        assert text.places.tolist() == list(range(prompt - 1, len(text.ids)))
        likeliest = logits[begin : begin + len(text.places)].argmax(-1).tolist()
        assert likeliest[:-1] == text.ids[prompt:].tolist()
        assert likeliest[-1] in ends or len(text.ids) - prompt == 8
        begin += len(text.places)


def segment(ids: list[int], trained: str, parent: int = -1) -> Segment:
    """trained: a 1 for each trained token."""
    return Segment(np.array(ids, np.int32), np.array([c == "1" for c in trained]), parent)


@pytest.mark.quick
def test_paths_and_places() -> None:
    """Places are those before a trained token; the last trained token itself is not read."""
    pair = Sample(
        0, (segment([1, 2], "00"), segment([3, 4, 5], "110", 0), segment([6, 7], "11", 0))
    )
    first, second = distances._paths(pair)
    assert (first.ids.tolist(), first.places.tolist()) == ([1, 2, 3], [1, 2])
    assert (second.ids.tolist(), second.places.tolist()) == ([1, 2, 6], [1, 2])
    assert list(distances._paths(Sample(0, (segment([1, 2], "10"),)))) == []


@pytest.mark.quick
def test_long_texts_keep_their_end() -> None:
    length = distances.LONGEST + 100
    (text,) = distances._paths(
        Sample(0, (segment(list(range(length)), "0" * 50 + "1" * (length - 50)),))
    )
    assert text.ids.tolist() == list(range(99, length - 1))
    assert len(text.places) == distances.PLACES
    assert (text.places[0], text.places[-1]) == (0, len(text.ids) - 1)
    assert (np.diff(text.places) > 30).all()


@pytest.mark.quick
def test_the_distance_is_that_of_its_formula() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(5, 7), torch.randn(5, 7)
    p, q = (np.exp(each.double().numpy()) for each in (first, second))
    p, q = (each / each.sum(1, keepdims=True) for each in (p, q))
    expected = np.sqrt(((np.log(p) - np.log(q)) ** 2).mean())
    assert compute_distance(first, second) == pytest.approx(expected, rel=1e-5)
    assert compute_distance(first, first + 3) == pytest.approx(0, abs=1e-6)
    assert compute_spread(first) == pytest.approx(np.log(p).std(), rel=1e-5)
    # Tokens that one of them lacks do not count.
    more = torch.cat([first, torch.full((5, 2), 9.0)], dim=1)
    assert compute_distance(more, second) == pytest.approx(expected, rel=1e-5)
