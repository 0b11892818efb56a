"""After sft and dpo the saved result, loaded again in a fresh process, has learnt both.

Told by distances of log-probabilities between the base, the result of sft and that of dpo, each
read from its folder by transformers and PEFT alone. A result that lost the sft fails the same
check.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from hone.metrics import Row, read_metrics
from hone.recipe.load import load_recipe
from hone.records import Sample
from hone.runs import create_run
from hone.stages.run import prepare_stage
from tests.preferences import write_preferences
from tests.workbench import NEW_MODEL, work, write_data

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

RECIPE = """
model: base
threads: 1
stages:
  - sft:
      data: chat.jsonl
      steps: 30
      learning_rate: 1e-2
      precision: fp32
      adapter: SFT_ADAPTER
      checkpoint: {keep: 1}
  - dpo:
      data: preferences.jsonl
      steps: 6
      learning_rate: RATE
      precision: fp32
      adapter: DPO_ADAPTER
      evaluation: {data: preferences.jsonl, samples: 16}
      checkpoint: {keep: 1}
"""
LORA = "{type: lora, rank: 4}"
CHAINS = {  # both adapters, and the learning rate of dpo
    "continued": (LORA, LORA, "1.5e-3"),
    "merged": (LORA, "{type: lora, rank: 4, before: merge}", "1.5e-3"),
    "stacked": (LORA, "{type: lora, rank: 4, before: stack}", "1.5e-3"),
    "full": ("{type: full}", "{type: full}", "3e-4"),
    "full after an adapter": (LORA, "{type: full}", "3e-4"),
    "an adapter after full": ("{type: full}", LORA, "5e-4"),
}

# Reads each model from its folder, and the sums of log-probabilities of the chosen sides with it.
READER = """
import json, sys
import numpy as np, torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
asked = json.load(open(sys.argv[1]))
for name, folder in asked["models"].items():
    try:
        base = PeftConfig.from_pretrained(folder).base_model_name_or_path
    except ValueError:
        base = None
    model = AutoModelForCausalLM.from_pretrained(base or folder, dtype=torch.float32)
    if base:
        model = PeftModel.from_pretrained(model, folder)
    model.eval()
    logits, sums = [], []
    for prompt, completion in asked["pairs"]:
        with torch.no_grad():
            found = model(input_ids=torch.tensor([prompt + completion])).logits[0]
        there = found.log_softmax(-1)[len(prompt) - 1 : -1]
        mine = torch.arange(len(completion))
        trained = torch.tensor(asked["trained"][len(sums)])
        sums.append(float(there[mine, torch.tensor(completion)][trained].sum()))
        logits.append(there.numpy())
    np.savez(f"{sys.argv[2]}/{name}.npz", logits=np.concatenate(logits), sums=sums)
"""


@dataclass(frozen=True)
class Told:
    """What a reloaded model says. logits_PV: log-probabilities of all tokens at every position of
    the chosen sides. logprob: of the chosen sides, the mean over the pairs.
    """

    logits_PV: np.ndarray
    logprob: float


@dataclass(frozen=True)
class Chain:
    """A run's folders, and the evaluation rows of its dpo stage, the first and the last."""

    path: Path
    before: Row
    after: Row


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chain")
    write_data(folder)
    write_preferences(folder, 60)
    (folder / "base.yaml").write_text(
        NEW_MODEL + "stages:\n  - pretrain: {data: text.jsonl, steps: 20, learning_rate: 5e-3}\n"
    )
    made = create_run(load_recipe(folder / "base.yaml"), "base", folder / "made")
    work(made)
    (made.path / "stages/1-pretrain/model").rename(folder / "base")
    return folder


@pytest.fixture(scope="module")
def chains(folder: Path) -> dict[str, Chain]:
    found = {}
    for name, values in CHAINS.items():
        text = RECIPE
        for place, value in zip(("SFT_ADAPTER", "DPO_ADAPTER", "RATE"), values, strict=True):
            text = text.replace(place, value)
        (folder / "recipe.yaml").write_text(text)
        run = create_run(
            load_recipe(folder / "recipe.yaml"), name.replace(" ", "-"), folder / "runs"
        )
        work(run)
        rows = read_metrics(run.path / "stages/2-dpo/metrics.jsonl")
        held_out = [row for row in rows if row.get("split") == "evaluation"]
        found[name] = Chain(run.path, held_out[0], held_out[-1])
    return found


@pytest.fixture(scope="module")
def told(folder: Path, chains: dict[str, Chain]) -> dict[str, Told]:
    """What the base says, every chain after sft and after dpo, and the chain that lost its sft."""
    models = {"base": folder / "base", "lost": lost_sft(folder, chains["merged"])}
    for name, chain in chains.items():
        for stage in ("1-sft", "2-dpo"):
            models[f"{name} {stage}"] = chain.path / "stages" / stage / "model"
    samples = held_out_samples(folder)
    asked = {
        "models": {name: str(path) for name, path in models.items()},
        "pairs": [[s.segments[n].tokens.tolist() for n in (0, 1)] for s in samples],
        "trained": [s.segments[1].trained.tolist() for s in samples],
    }
    place = folder / "asked.json"
    place.write_text(json.dumps(asked))
    subprocess.run([sys.executable, "-c", READER, str(place), str(folder)], check=True)
    found = {}
    for name in models:
        with np.load(folder / f"{name}.npz") as said:
            found[name] = Told(said["logits"], float(said["sums"].mean()))
    return found


def held_out_samples(folder: Path) -> list[Sample]:
    """The pairs that the dpo stages are evaluated on."""
    prepared, _ = prepare_stage(load_recipe(folder / "recipe.yaml"), 1)
    return [prepared.sample(n) for n in range(16)]


def lost_sft(folder: Path, chain: Chain) -> Path:
    """The adapter that dpo trained on the merged model, put on the bare base."""
    made = shutil.copytree(chain.path / "stages/2-dpo/model", folder / "lost")
    path = made / "adapter_config.json"
    config = json.loads(path.read_text())
    assert config["base_model_name_or_path"] == str(chain.path / "stages/2-dpo/base")
    path.write_text(json.dumps(config | {"base_model_name_or_path": str(folder / "base")}))
    return made


def distance(first: Told, second: Told) -> float:
    """The mean difference of a log-probability."""
    return float(np.abs(first.logits_PV - second.logits_PV).mean())


def check_chain(base: Told, sft: Told, aligned: Told) -> None:
    """Both stages moved the model, and the result of dpo is near that of sft, far from the base."""
    base_sft, sft_aligned, base_aligned = (
        distance(*pair) for pair in ((base, sft), (sft, aligned), (base, aligned))
    )

    assert base_sft > 0.1, "sft has taught nothing"
    assert sft_aligned > 0.005, "dpo has taught nothing"
    assert sft_aligned < base_sft / 3, "the result of dpo is far from that of sft"
    assert base_aligned > base_sft / 2, (
        "the result of dpo is as near to the base as if sft had not been"
    )


@pytest.mark.parametrize("name", CHAINS)
def test_the_result_has_learnt_both(name: str, told: dict[str, Told]) -> None:
    check_chain(told["base"], told[f"{name} 1-sft"], told[f"{name} 2-dpo"])


def test_a_chain_that_lost_its_sft_is_caught(told: dict[str, Told]) -> None:
    """The negative control: the same adapter, but not on what it was trained on."""
    with pytest.raises(AssertionError, match="far from that of sft"):
        check_chain(told["base"], told["merged 1-sft"], told["lost"])
    assert distance(told["base"], told["lost"]) < distance(told["base"], told["merged 1-sft"]) / 2


def test_a_chain_without_dpo_is_caught(told: dict[str, Told]) -> None:
    with pytest.raises(AssertionError, match="dpo has taught nothing"):
        check_chain(told["base"], told["full 1-sft"], told["full 1-sft"])


@pytest.mark.parametrize("name", CHAINS)
def test_what_was_measured_is_what_was_saved(
    name: str, chains: dict[str, Chain], told: dict[str, Told]
) -> None:
    """dpo begins at the saved result of sft, and its own saved result is where it ended."""
    chain = chains[name]
    assert chain.before["logprob_chosen"] == pytest.approx(told[f"{name} 1-sft"].logprob, rel=1e-5)
    assert chain.after["logprob_chosen"] == pytest.approx(told[f"{name} 2-dpo"].logprob, rel=1e-5)
    assert chain.before["accuracy"] <= 0.75 < chain.after["accuracy"]
    assert (
        chain.before["loss"] == pytest.approx(np.log(2), abs=1e-4) and chain.before["margin"] < 1e-4
    )
