"""A model as large as the memory takes, trained for real; under 5 min, without network.

HONE_E2E_MODEL names a folder or Hub id that is fine-tuned instead of a new model; it is downloaded
where it is not there yet.
"""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from hone.metrics import read_metrics
from tests.e2e.person import Person, judged
from tests.workbench import write_data

pytestmark = [pytest.mark.e2e_real_model, pytest.mark.timeout(600)]

GB = 10**9
# Where models are, before the tests take caches of their own.
HF_HOME = os.environ.get("HF_HOME", str(Path.home() / ".cache/huggingface"))


class Size(NamedTuple):
    """A Llama of this shape, and samples a step; memory: what has to be free for it."""

    memory: int
    hidden: int
    layers: int
    heads: int
    samples: int

    @property
    def config(self) -> dict[str, Any]:
        """As a recipe writes it."""
        return {
            "hidden_size": self.hidden,
            "intermediate_size": 8 * self.hidden // 3 // 8 * 8,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "tie_word_embeddings": True,
        }


# Training all weights takes 16 bytes for each, twice that with what is computed and saved.
SIZES = [
    Size(6 * GB, 576, 30, 9, 8),  # 120 M parameters, the shape of SmolLM2-135M
    Size(2 * GB, 512, 8, 8, 8),  # 26 M
    Size(0, 256, 4, 4, 4),  # 3 M
]


def free_bytes() -> int:
    """Memory that is free now, within the control group's limit."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return min(free, int(text)) if text.isdigit() else free


@pytest.mark.parametrize(
    ("free", "layers"), [(100 * GB, 30), (6 * GB, 30), (5 * GB, 8), (GB, 4), (0, 4)]
)
def test_the_size_goes_by_the_memory(free: int, layers: int) -> None:
    assert size_for(free).layers == layers


def size_for(free: int) -> Size:
    """The largest size that so much memory takes."""
    return next(size for size in SIZES if size.memory <= free)


SFT = """\
  - sft:
      data: chat.jsonl
      evaluation: {{share: 0.1, every: 20}}
      batch: {{samples: {samples}}}
      steps: 20
      learning_rate: 1e-3
      schedule: constant
      checkpoint: {{every: 10, keep: 1}}
"""
PRETRAIN = """\
  - pretrain:
      data: text.jsonl
      batch: {{samples: {samples}}}
      steps: 12
      learning_rate: 1e-3
      checkpoint: {{every: 12, keep: 1}}
"""


def test_a_model_learns_is_loaded_again_and_answers(person: Person, record_property: Any) -> None:
    person.all_cores = True
    write_data(person.folder)
    size = size_for(free_bytes())
    model: object = os.environ.get("HONE_E2E_MODEL")
    stages = SFT
    if model is None:
        tokenizer = {"train_on": "text.jsonl", "vocabulary": 512}
        model = {"architecture": "llama", "config": size.config, "tokenizer": tokenizer}
        stages = PRETRAIN + SFT
    else:
        person.settings = {"HF_HUB_OFFLINE": "0", "HF_HOME": HF_HOME}
    record_property("model", model)
    record_property("free_bytes", free_bytes())
    recipe = f"model: {json.dumps(model)}\nstages:\n{stages.format(samples=size.samples)}"
    (person.folder / "recipe.yaml").write_text(recipe)

    assert person.json("check", "recipe.yaml")["ok"]
    person.hone("run", "recipe.yaml", "--name", "real")
    (folder,) = (person.folder / "runs/real/stages").glob("*-sft")
    rows = read_metrics(folder / "metrics.jsonl")
    before, after = (row["loss"] for row in rows if row.get("split") == "evaluation")
    peak = max(row.get("peak_memory_bytes", 0) for row in rows)
    pace = max(row.get("tokens_per_s", 0) for row in rows)
    record_property("held_out_loss", [before, after])
    record_property("peak_memory_bytes", peak)
    record_property("tokens_per_s", pace)
    assert after < 0.8 * before

    prompt = "What is 3 plus 4?"
    (answer,) = person.json("generate", "real", "--prompt", prompt, "--max-tokens", "12")
    record_property("answer", answer)
    assert answer["completion"]
    judged(person, "real")
