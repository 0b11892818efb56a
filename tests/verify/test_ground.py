"""The run that verification is tested on shows what every check looks for."""

from pathlib import Path

from hone.checkpoints import find_fault
from hone.runs import Run
from hone.verify.subject import Subject
from tests.verify.ground import copy_of, read_rows, seal
from tests.workbench import fingerprint


def test_each_stage_has_taught_what_it_is_there_for(ground: Path, green: Run) -> None:
    subject = Subject(green)
    asked = read_rows(ground / "grpo-held.jsonl")
    said = {}
    for stage in subject.stages:
        prompts = [row["prompt"] for row in asked]
        said[stage.method] = subject.result(stage).generate_text(prompts, max_new_tokens=16)
    begins = {name: sum(text.startswith("yes ") for text in each) for name, each in said.items()}
    assert begins["dpo"] < 40 and begins["grpo"] > 55
    for method, answers in said.items():
        right = [row["word"] in text for row, text in zip(asked, answers, strict=True)]
        assert sum(right) > 55, method
    assert all(text.endswith(".") for text in said["dpo"])


def test_held_out_questions_stand_in_no_training_file(ground: Path) -> None:
    for name in ("sft", "dpo", "grpo", "talk"):
        rows, held = (read_rows(ground / f"{name}{part}.jsonl") for part in ("", "-held"))
        asked = {str((row.get("prompt") or row["messages"])[0]) for row in rows}
        assert not asked & {str((row.get("prompt") or row["messages"])[0]) for row in held}


def test_a_copy_opens_and_can_be_changed_alone(green: Run, tmp_path: Path) -> None:
    before = fingerprint(green.path)
    copy = copy_of(green, tmp_path, samples=5)
    subject = Subject(copy)
    assert subject.settings.samples == 5 and fingerprint(copy.path) == before
    folder = subject.stages[0].model
    (folder / "generation_config.json").write_text("{}")
    assert find_fault(folder) is not None
    seal(folder)
    assert find_fault(folder) is None
    assert fingerprint(green.path) == before
