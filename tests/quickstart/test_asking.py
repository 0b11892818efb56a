"""What the quickstart asks a saved result, and what it makes of the answers."""

from pathlib import Path

import pytest
import torch

from hone.environments import make_environment
from hone.evaluation.examples import Question
from hone.quickstart.asking import ask, is_right, is_well_formed, measure_reward, most_reward
from hone.recipe.rewards import Arithmetic
from hone.sampling import load_artifact
from tests.evaluation.ground import write_model, write_rows


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
    assert is_right(answer, expected) == right


@pytest.mark.quick
def test_well_formed_is_from_end_to_end() -> None:
    assert is_well_formed("Paris. Happy to help!")
    assert is_well_formed("1+2=0+3=3. Happy to help!\n")
    for answer in ("Paris", "Paris. Happy to help", ". Happy to help!", "Happy to help! Paris"):
        assert not is_well_formed(answer)


@pytest.mark.quick
def test_rewards_are_of_the_sums_and_weighed() -> None:
    settings = Arithmetic(marker="####", weights={"format": 0.5})
    assert most_reward(settings) == 1.5
    task = make_environment(settings).tasks("evaluation")[0]
    questions = [
        Question(n, "", task.prompt, columns={**task.columns, "kind": kind})
        for n, kind in enumerate(["arithmetic", "capital", "arithmetic"])
    ]
    assert task.gold is not None
    measure = measure_reward(settings, questions, [task.gold, task.gold, "#### none"])
    assert (measure.mean, measure.count) == (0.75, 2)


def test_a_model_is_asked_everything(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"What is {n} + 1?", "answer": str(n + 1)}
        | {"chosen": f"{n + 1}.", "rejected": "x" * (n % 7 + 1)}
        | {"kind": ("arithmetic", "capital")[n % 2]}
        for n in range(10)
    ]
    artifact = load_artifact(str(write_model(tmp_path, plain=False)), torch.device("cpu"))
    file = write_rows(tmp_path / "rows.jsonl", rows)
    found = ask(artifact, file, Arithmetic())
    prompts = [row["prompt"] for row in rows]
    assert found.answers == artifact.generate_text(prompts, max_new_tokens=32)
    counts = {name: measure.count for name, measure in found.measures.items()}
    assert counts == {
        "accuracy/arithmetic": 5,
        "accuracy/capital": 5,
        "accuracy": 10,
        "format": 10,
        "preference": 10,
        "reward": 5,
    }
    right = [float(is_right(a, row["answer"])) for a, row in zip(found.answers, rows, strict=True)]
    assert found.measures["accuracy"].mean == sum(right) / 10
