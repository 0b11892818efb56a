"""Measures and their intervals, against second computations."""

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from hone.data.chat import CHATML
from hone.environments import make_environment
from hone.evaluate import (
    Criteria,
    answer_logprobs,
    is_right,
    is_well_formed,
    measure_answers,
    measure_preference,
    measure_reward,
    most_reward,
)
from hone.quickstart.styles import FORMAT, SAID
from hone.recipe.rewards import Arithmetic
from hone.sampling import load_artifact
from tests.data.tokenizers import byte_level

CRITERIA = Criteria(said=SAID, format=FORMAT, rewarded="sums")


@pytest.mark.quick
@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        (" Paris\n", "Paris", True),
        ("Paris. Happy to help!", "Paris", True),
        ("Paris, I guess", "Paris", True),
        ("Washington, D.C., I think", "Washington, D.C.", True),
        ("47+38=70+15=85", "85", True),
        ("47+38=70+15=85. Happy to help!", "85", True),
        ("47+38=70+15=75. Happy to help!", "85", False),
        ("47+38=70+15=85..... Happy to help!", "85", False),
        ("paris", "Paris", False),
        ("Not Paris, I guess", "Paris", False),
        ("185. Happy to help!", "85", False),
        ("a b a b a, I think", "b a b a", False),
        ("", "Paris", False),
    ],
)
def test_what_an_answer_says_is_what_counts(answer: str, expected: str, right: bool) -> None:
    assert is_right(answer, expected, SAID) == right


@pytest.mark.quick
def test_well_formed_is_from_end_to_end() -> None:
    assert is_well_formed("Paris. Happy to help!", FORMAT)
    assert is_well_formed("1+2=0+3=3. Happy to help!\n", FORMAT)
    for answer in ("Paris", "Paris. Happy to help", ". Happy to help!", "Happy to help! Paris"):
        assert not is_well_formed(answer, FORMAT)


@pytest.mark.quick
def test_measures_of_known_answers() -> None:
    kinds = ["sums", "sums", "cities", "cities"]
    rows = [{"kind": kind, "answer": "12", "prompt": "?"} for kind in kinds]
    answers = ["12. Happy to help!", "12, I think", "13. Happy to help!", "12"]
    found = measure_answers(rows, answers, CRITERIA)
    environment = Arithmetic(weights={"correct": 0.5, "format": 0.0})
    found |= measure_reward(environment, rows, answers, "sums")
    assert {name: (measure.mean, measure.count) for name, measure in found.items()} == {
        "accuracy/sums": (1.0, 2),
        "accuracy/cities": (0.5, 2),
        "accuracy": (0.75, 4),
        "format": (0.5, 4),
        "reward": (0.5, 2),  # only of the sums, each of which has its number last
    }


@pytest.mark.quick
def test_the_most_there_is_weighs_the_rewards() -> None:
    settings = Arithmetic(marker="####", weights={"format": 0.5})
    assert most_reward(settings) == 1.5
    task = make_environment(settings).tasks("evaluation")[0]
    row = {"kind": "sums", "prompt": task.prompt, **task.columns}
    assert measure_reward(settings, [row], [task.gold], "sums")["reward"].mean == 1.5


@pytest.mark.parametrize("plain", [True, False], ids=["text", "chat"])
def test_the_preferred_answer_is_the_likelier_one(tmp_path: Path, plain: bool) -> None:
    """Against log-probabilities of one answer at a time, without batches and padding."""
    folder = write_model(tmp_path, plain)
    artifact = load_artifact(str(folder), torch.device("cpu"))
    assert artifact.rendering.plain == plain
    draw = random.Random(0)
    rows = [
        {"prompt": f"{draw.random():.{n % 7}f}?", "chosen": "x" * (n % 5 + 1), "rejected": "no"}
        for n in range(70)
    ]
    sides = []
    for side in ("chosen", "rejected"):
        found = answer_logprobs(artifact, [(row["prompt"], row[side]) for row in rows])
        slow = [logprob_alone(artifact, row["prompt"], row[side]) for row in rows]
        assert found == pytest.approx(slow, rel=1e-5)
        sides.append(slow)
    share = sum(a > b for a, b in zip(*sides, strict=True)) / len(rows)
    measure = measure_preference(artifact, rows)["preference"]
    assert (measure.mean, measure.count) == (share, 70)
    assert 0 < share < 1


def write_model(folder: Path, plain: bool) -> Path:
    """A random model of plain text or of chats."""
    torch.manual_seed(0)
    tokenizer = byte_level(chat_template=None if plain else CHATML)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), intermediate_size=16, **shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def logprob_alone(artifact, prompt: str, answer: str) -> float:
    if artifact.rendering.plain:
        before = artifact.renderer.prompt(prompt)
        text, end = prompt + answer, [artifact.renderer.tokenizer.eos_token_id]
        ids = artifact.renderer.tokenizer(text, add_special_tokens=False)["input_ids"] + end
    else:
        before = artifact.renderer.prompt([{"role": "user", "content": prompt}])
        ends = artifact.renderer.end_token_ids[:1]
        ids = before + artifact.renderer.tokenizer(answer, add_special_tokens=False)["input_ids"]
        ids += ends
    with torch.no_grad():
        logits = artifact.module(input_ids=torch.tensor([ids])).logits[0]
    logprobs = logits.log_softmax(-1)
    return sum(logprobs[n - 1, ids[n]].item() for n in range(len(before), len(ids)))
