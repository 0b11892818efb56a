"""The estimate of memory beside what was measured, over a grid of recipes on the CPU.

    python -m benchmarks.estimate [--only NAME ...]

Prints a table; exits with 1 where an estimate is more than 10 % from the measured peak. Each recipe
is measured in a fresh process above its floor after the imports. Memory does not depend on speed,
so the machine need not be quiet.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

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
        columns = {"text": "completion"}
        stage["data"] = {"path": stage["data"], "format": "text", "columns": columns}
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


def measure_case(case: Case, place: Path) -> dict[str, Any]:
    """Estimate and measured figures of a case, as plain values."""
    from hone.estimate.examine import estimate_recipe
    from hone.estimate.measure import STEPS, measure_peak
    from hone.recipe.load import load_recipe

    loaded = load_recipe(write_recipe(case, place))
    (estimate,) = estimate_recipe(loaded, steps=STEPS)
    measured = measure_peak(loaded)
    error = estimate.peak / measured.peak - 1
    return {"estimate": estimate.as_json(), "measured": vars(measured), "error": error}


def make_table(found: dict[str, dict[str, Any]]) -> Table:
    """A row for each case, megabytes."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("recipe")
    table.add_column("model")
    for name in ("estimate", "measured", "error"):
        table.add_column(name, justify="right")
    table.add_column("highest in")
    for name, each in found.items():
        estimate, measured = each["estimate"], each["measured"]
        table.add_row(
            name,
            GRID[name].shape,
            f"{estimate['peak'] / 1e6:,.0f} MB",
            f"{measured['peak'] / 1e6:,.0f} MB",
            f"{each['error']:+.1%}",
            estimate["phase"],
        )
    return table


def main() -> int:
    """Measure the grid and print it; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=GRID, default=list(GRID), metavar="NAME")
    parser.add_argument("--json", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    from hone.stages.run import quieten_libraries

    quieten_libraries()
    console, found = Console(), {}
    with tempfile.TemporaryDirectory(prefix="hone-estimate-") as place:
        for name in arguments.only:
            with console.status(name):
                found[name] = measure_case(GRID[name], Path(place))
            console.print(f"{name}: {found[name]['error']:+.1%}", highlight=False)
    console.print(make_table(found))
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(found, indent=2))
    return int(any(abs(each["error"]) > LIMIT for each in found.values()))


if __name__ == "__main__":
    sys.exit(main())
