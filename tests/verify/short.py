"""Short runs on the common ground, and second computations of what is said of them."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM

from hone.recipe.load import load_recipe
from hone.records import Sample
from hone.runs import Run, create_run
from hone.verify.subject import Subject
from hone.verify.verdicts import Part
from tests.workbench import work

SFT = {
    "data": "sft.jsonl",
    "adapter": {"rank": 16, "alpha": 32},
    "precision": "fp32",
    "batch": {"samples": 16},
    "steps": 40,
    "learning_rate": 0.005,
    "evaluation": {"data": "sft-held.jsonl", "every": 1000},
}


def short_run(folder: Path, name: str, model: str = "base", **changes: Any) -> Run:
    """A run of one supervised stage in a workshop."""
    return run_stage(folder, name, {"sft": {**SFT, **changes}}, model)


def mix_answers(folder: Path) -> None:
    """Every row of sft.jsonl gets the answer of another question."""
    path = folder / "sft.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    answers = [row["messages"][1] for row in rows]
    for row, answer in zip(rows, answers[37:] + answers[:37], strict=True):
        row["messages"][1] = answer
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run_stage(folder: Path, name: str, stage: dict[str, Any], model: Any = "base") -> Run:
    """A run of one stage, as it stands in a recipe."""
    recipe = {"model": model, "seed": 7, "threads": 1, "stages": [stage], "verify": {}}
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(recipe))
    run = create_run(load_recipe(path), name, folder / "runs")
    work(run)
    return run


def with_settings(run: Run, **settings: Any) -> Subject:
    """A run opened with other settings of `verify:` than it was made with."""
    subject = Subject(run)
    subject.settings = subject.settings.model_validate(
        {**subject.settings.model_dump(), **settings}
    )
    return subject


def part_of(parts: tuple[Part, ...], of: str) -> Part:
    """The part with this name."""
    (found,) = [part for part in parts if part.of == of]
    return found


def load_plainly(folder: str) -> torch.nn.Module:
    """A result by transformers and PEFT alone."""
    try:
        base = PeftConfig.from_pretrained(folder).base_model_name_or_path
    except ValueError:
        base = None
    model = AutoModelForCausalLM.from_pretrained(base or folder, dtype=torch.float32)
    return (PeftModel.from_pretrained(model, folder) if base else model).eval()


def logprobs_of(model: torch.nn.Module, sample: Sample, segment: int = 0) -> list[float]:
    """log p of the trained tokens of a segment behind what it hangs on, from one forward."""
    mine = sample.segments[segment]
    before = sample.segments[mine.parent].tokens.tolist() if mine.parent >= 0 else []
    ids = before + mine.tokens.tolist()
    with torch.no_grad():
        logprobs = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    places = [len(before) + n for n, trained in enumerate(mine.trained) if trained]
    return [float(logprobs[place - 1, ids[place]]) for place in places if place]
