"""Answers before and after are those that transformers' own generate gives for saved results."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from hone.files import read_json
from hone.records import Sample, Segment
from hone.report.write import write_report
from hone.runs import Run
from hone.verify.answers import RESULT, SHOWN, _asked, write_answers
from hone.verify.subject import Subject

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def stages_of(run: Run) -> list[dict[str, Any]]:
    table = read_json(run.path / RESULT)
    assert table is not None
    stages: list[dict[str, Any]] = table["stages"]
    return stages


def greedy(model: Any, tokenizer: Any, prompt: str, ends: list[int]) -> str:
    """The answer of a model as transformers loaded it."""
    ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)])
    with torch.no_grad():
        drawn = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=64,
            do_sample=False,
            eos_token_id=ends,
            pad_token_id=ends[0],
        )
    text: str = tokenizer.decode(drawn[0, ids.shape[1] :], skip_special_tokens=True)
    return text.strip()


def test_answers_are_those_of_start_and_result(trained: Run) -> None:
    base, result = trained.path / "base", trained.path / "stages/1-sft/model"
    tokenizer = AutoTokenizer.from_pretrained(result)
    rendering = read_json(result / "hone.json")
    assert rendering is not None
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    (stage,) = [each for each in stages_of(trained) if each["stage"] == "1-sft"]
    ends = rendering["end_token_ids"]
    for row in stage["rows"][:2]:
        assert row["before"] == greedy(plain, tokenizer, row["prompt"], ends)
    adapted = PeftModel.from_pretrained(plain, result)
    for row in stage["rows"][:2]:
        assert row["after"] == greedy(adapted, tokenizer, row["prompt"], ends)
        assert row["before"] != row["after"]


def test_prompts_are_held_out_ones_with_what_was_expected(trained: Run) -> None:
    stages = stages_of(trained)
    assert [each["stage"] for each in stages] == ["1-sft", "2-dpo", "3-grpo"]
    sft, dpo, grpo = (each["rows"] for each in stages)
    assert (len(sft), len(dpo), len(grpo)) == (SHOWN, SHOWN, 4)
    chats = (trained.path.parents[1] / "chat.jsonl").read_text()
    for row in sft:
        question = row["prompt"].partition("user\n")[2].partition("<|im_end|>")[0]
        assert question in chats and row["expected"].startswith("It is ")
    assert all(row["rejected"] and row["expected"] != row["rejected"] for row in dpo)
    assert all("plus" in row["prompt"] and "rejected" not in row for row in grpo)


def test_they_are_the_same_when_asked_again(trained: Run) -> None:
    first = (trained.path / RESULT).read_bytes()
    write_answers(Subject(trained))
    assert (trained.path / RESULT).read_bytes() == first


def test_a_result_that_cannot_be_opened_is_told_and_the_others_answer(
    trained: Run, tmp_path: Path
) -> None:
    copy = Run(tmp_path / "copy")
    shutil.copytree(trained.path, copy.path)
    (copy.path / "stages/3-grpo/model/adapter_model.safetensors").write_bytes(b"no weights")
    write_answers(Subject(copy))
    *others, last = stages_of(copy)
    assert others == stages_of(trained)[:2]
    assert last["rows"] == [] and "afetensor" in last["failure"]
    page = write_report(copy).read_text()
    assert "They could not be made" in page and last["failure"][:20] in page


def test_what_is_asked_of_each_kind_of_sample() -> None:
    def segment(
        tokens: list[int], trained: list[int], parent: int = -1, **constants: Any
    ) -> Segment:
        mask = torch.tensor(trained, dtype=torch.bool).numpy()
        label = {name: torch.tensor([each]).numpy() for name, each in constants.items()}
        return Segment(torch.tensor(tokens).numpy(), mask, parent, label)

    talk = segment([1, 2, 3, 4, 5, 6, 7], [0, 0, 1, 0, 0, 1, 1])
    assert _asked(Sample(0, (talk,)))[:2] == ([1, 2, 3, 4, 5], [6, 7]), "the last answer"
    closed = segment([1, 2, 3, 4, 5], [0, 0, 1, 1, 0])
    assert _asked(Sample(0, (closed,)))[:2] == ([1, 2], [3, 4])
    text = segment([9, 1, 2, 3, 4, 5], [0, 1, 1, 1, 1, 1])
    assert _asked(Sample(0, (text,)))[:2] == ([9, 1, 2], [3, 4, 5])
    prompt, answer = segment([1, 2], [0, 0]), segment([3], [1], 0)
    other = segment([4], [1], 0)
    assert _asked(Sample(0, (prompt, answer, other))) == ([1, 2], [3], [4], None)
    wanted, unwanted = (segment([3], [1], 0, label=each) for each in (1.0, 0.0))
    assert _asked(Sample(0, (prompt, wanted))) == ([1, 2], [3], None, None)
    assert _asked(Sample(0, (prompt, unwanted))) == ([1, 2], [], [3], None)
