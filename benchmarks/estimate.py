"""The estimate of memory beside what was measured, over a grid of recipes on the CPU.

    python -m benchmarks.estimate [--only NAME ...]

Prints a table; exits with 1 where an estimate is more than 10 % from the measured peak. Each recipe
is measured in a fresh process above its floor after the imports. Memory does not depend on speed,
so the machine need not be quiet.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import reward
from benchmarks.workload import Shape, Workload, write_workload

LIMIT = 0.10
SAMPLES = 64
RESULTS = Path(__file__).parent / "results" / "estimate.json"
SHAPES = {
    "9m": Shape(256, 6, 4, 704, 8_000),
    "21m": Shape(512, 4, 8, 1408, 16_000),
    "42m": Shape(512, 8, 8, 1408, 32_000),
    "80m": Shape(768, 8, 12, 2048, 32_000),
}


@dataclass(frozen=True)
class Case:
    """A recipe of the grid: a model's size, a method and the settings of its stage."""

    shape: str
    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    samples: int = 8


LORA, FULL = {"type": "lora", "rank": 16}, {"type": "full"}
GRID = {
    "sft lora fp32": Case("42m", "sft", {"adapter": LORA, "precision": "fp32"}),
    "sft lora bf16": Case("42m", "sft", {"adapter": LORA, "precision": "bf16"}),
    "sft lora 256 tokens": Case(
        "42m", "sft", {"adapter": LORA, "precision": "fp32", "token_budget": 256}
    ),
    "sft lora checkpointing": Case(
        "42m",
        "sft",
        {"adapter": LORA, "precision": "fp32", "gradient_checkpointing": True},
    ),
    "sft lora padded": Case(
        "42m", "sft", {"adapter": LORA, "precision": "fp32", "layout": "padded"}
    ),
    "sft dora": Case("21m", "sft", {"adapter": {**LORA, "dora": True}, "precision": "fp32"}),
    "sft qlora": Case("42m", "sft", {"adapter": {"type": "qlora"}, "precision": "fp32"}),
    "sft lora 80m": Case("80m", "sft", {"adapter": LORA, "precision": "fp32"}, 16),
    "sft full fp32": Case("42m", "sft", {"adapter": FULL, "precision": "fp32"}),
    "sft full bf16": Case("42m", "sft", {"adapter": FULL, "precision": "bf16"}),
    "sft full sgd": Case(
        "21m", "sft", {"adapter": FULL, "precision": "fp32", "optimizer": {"type": "sgd"}}
    ),
    "sft full adafactor": Case(
        "42m", "sft", {"adapter": FULL, "precision": "fp32", "optimizer": {"type": "adafactor"}}
    ),
    "sft full 8 bit": Case(
        "42m", "sft", {"adapter": FULL, "precision": "fp32", "optimizer": {"type": "adamw_8bit"}}
    ),
    "sft full 9m": Case("9m", "sft", {"adapter": FULL, "precision": "fp32"}),
    "dpo lora fp32": Case("42m", "dpo", {"adapter": LORA, "precision": "fp32"}),
    "dpo lora bf16": Case("42m", "dpo", {"adapter": LORA, "precision": "bf16"}),
    "dpo full fp32": Case("21m", "dpo", {"adapter": FULL, "precision": "fp32"}),
    "sft full 80m": Case("80m", "sft", {"adapter": FULL, "precision": "fp32"}),
    "sft qlora bf16": Case("80m", "sft", {"adapter": {"type": "qlora"}, "precision": "bf16"}),
    "dpo checkpointing": Case(
        "80m", "dpo", {"adapter": LORA, "precision": "bf16", "gradient_checkpointing": True}
    ),
    "pretrain": Case("21m", "pretrain", {"precision": "bf16"}),
    "grpo lora fp32": Case("42m", "grpo", {"adapter": LORA, "precision": "fp32"}, 4),
    "grpo lora kl": Case("21m", "grpo", {"adapter": LORA, "precision": "fp32", "beta": 0.1}, 4),
}


def write_recipe(case: Case, place: Path) -> Path:
    """The case's recipe, with its model and data in `place` where they are not there yet."""
    method = "sft" if case.method == "pretrain" else case.method
    workload = Workload(SHAPES[case.shape], SAMPLES, case.samples, method)
    folder = place / f"{case.shape}-{method}"
    if not folder.exists():
        folder.mkdir()
        write_workload(workload, folder)
    stage: dict[str, Any] = {
        "data": str(folder / "data.jsonl"),
        "steps": 8,
        "batch": {"samples": case.samples},
        **case.settings,
    }
    if case.method == "pretrain":
        stage["data"] = {"path": stage["data"], "format": "text", "columns": {"text": "prompt"}}
    if case.method == "grpo":
        stage |= {
            "rewards": [f"{Path(reward.__file__).resolve()}:{reward.even.__name__}"],
            "group": 8,
            "completion_tokens": 64,
        }
    else:
        stage["max_tokens"] = 512
    recipe = {"model": str(folder / "model"), "threads": 1, "stages": [{case.method: stage}]}
    path = place / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    return path
