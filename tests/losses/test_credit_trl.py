"""Credit against what TRL's trainers make of the same rewards, while they sample and score."""

import numpy as np
import pytest
import torch

from hone.credit import CREDIT, make_credit
from tests.test_trl_parity import tiny_tokenizer
from tests.tiny import make_model

REWARDS = np.array([[0.0, 1.0, 0.25, 1.0], [2.0, 2.0, 2.0, 2.001], [-1.0, 3.0, 0.5, 0.0]])
TRL = {"group": {"scale_rewards": "group"}, "mean": {"scale_rewards": "none"}, "leave_one_out": {}}


def fixed_rewards(completions, **_):
    assert len(completions) == REWARDS.size
    return REWARDS.reshape(-1).tolist()


def trl_advantages(name: str, folder) -> np.ndarray:
    """(groups, G), made by the trainer's own way from prompts to what its loss is given."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    kinds = (RLOOConfig, RLOOTrainer) if name == "leave_one_out" else (GRPOConfig, GRPOTrainer)
    config = kinds[0](
        output_dir=str(folder),
        num_generations=REWARDS.shape[1],
        per_device_train_batch_size=REWARDS.size,
        max_completion_length=2,
        beta=0.0,
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        report_to="none",
        **TRL[name],
    )
    rows = [{"prompt": f"w{n} w4"} for n in range(3, 3 + len(REWARDS))]
    trainer = kinds[1](
        model=make_model("llama"),
        reward_funcs=fixed_rewards,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
    )
    repeated = [row for row in rows for _ in range(REWARDS.shape[1])]
    with torch.no_grad():
        made = trainer._generate_and_score_completions(repeated)
    return made["advantages"].numpy().reshape(REWARDS.shape)


@pytest.mark.parametrize("name", TRL)
def test_credit_equals_trl(name, tmp_path):
    expected = trl_advantages(name, tmp_path)
    found = np.stack([make_credit(name)(rewards) for rewards in REWARDS])
    # TRL computes in fp32: the second group's rewards differ by little.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3 * found[1].std())
    np.testing.assert_allclose(found[[0, 2]], expected[[0, 2]], rtol=1e-5)
    for other in CREDIT.keys() - {name}:
        wrong = np.stack([CREDIT[other](rewards) for rewards in REWARDS])
        assert not np.allclose(wrong, expected, rtol=1e-2)
