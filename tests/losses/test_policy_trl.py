"""Policy losses and every gradient against TRL's trainers: same model, rollouts, advantages and old
log-probabilities, at a temperature, where the ratio is far from 1 and both clips are at work.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from hone.adapters import add_lora
from hone.losses import LossFunction
from hone.losses.policy import PolicySettings, make_policy_loss
from hone.recipe.training import Lora
from hone.records import Sample
from tests.losses.rollouts import (
    engine_step,
    joined,
    random_groups,
    with_past,
)
from tests.test_models import distance, gradients
from tests.test_trl_parity import tiny_tokenizer
from tests.tiny import make_model

TEMPERATURE = 0.7
LONGEST = 12  # longer than any completion, as the room that Dr. GRPO divides by
LIMIT = 1e-5

SETTINGS = PolicySettings(clip=0.15, clip_high=0.3, beta=0.0, completion_tokens=LONGEST)
WITH_KL = replace(SETTINGS, beta=0.4)
PLAIN_KL = replace(WITH_KL, unbiased_kl=False)


@dataclass(frozen=True)
class Case:
    """A loss and what TRL calls it."""

    name: str
    trl: dict[str, Any]
    settings: PolicySettings = SETTINGS


CASES = {
    "grpo": Case("grpo", {"loss_type": "grpo"}),
    "grpo, one clip": Case("grpo", {"loss_type": "grpo"}, replace(SETTINGS, clip_high=None)),
    "grpo, two-sided": Case("grpo", {"loss_type": "grpo"}, replace(WITH_KL, delta=1.5)),
    "grpo, kl": Case("grpo", {"loss_type": "grpo"}, WITH_KL),
    "grpo, plain kl": Case("grpo", {"loss_type": "grpo"}, PLAIN_KL),
    "dapo": Case("dapo", {"loss_type": "dapo"}),
    "dapo, kl": Case("dapo", {"loss_type": "dapo"}, WITH_KL),
    "dr_grpo": Case("dr_grpo", {"loss_type": "dr_grpo"}),
    "dr_grpo, kl": Case("dr_grpo", {"loss_type": "dr_grpo"}, WITH_KL),
    "gspo": Case("gspo", {"loss_type": "grpo", "importance_sampling_level": "sequence"}),
    "gspo, plain kl": Case(
        "gspo", {"loss_type": "grpo", "importance_sampling_level": "sequence"}, PLAIN_KL
    ),
    "cispo": Case("cispo", {"loss_type": "cispo"}),
    "cispo, kl": Case("cispo", {"loss_type": "cispo"}, WITH_KL),
    "rloo": Case("rloo", {}),
}
SHARES = {
    "clip_share": "clip_ratio/region_mean",
    "clip_share_low": "clip_ratio/low_mean",
    "clip_share_high": "clip_ratio/high_mean",
}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Folders of a base model and of an adapter that is at zero nowhere."""
    folder = tmp_path_factory.mktemp("start")
    make_model("llama").save_pretrained(folder / "base")
    adapted = add_lora(make_model("llama"), Lora(rank=4, alpha=8))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    adapted.save_pretrained(folder / "adapter")
    return folder


def load(start, kind: str):
    """The transformers model, and the module whose weights are trained."""
    base = AutoModelForCausalLM.from_pretrained(start / "base", dtype=torch.float32)
    if kind == "full":
        return base, base
    return base, PeftModel.from_pretrained(base, str(start / "adapter"), is_trainable=True)


@pytest.fixture(scope="module")
def rollouts(start):
    """The groups with their past, the same for all losses of a kind of training."""
    return cache(lambda kind: with_past(random_groups(), load(start, kind)[1], TEMPERATURE))


def no_reward(completions, **_):
    return [0.0] * len(completions)


def make_trainer(case: Case, module, folder):
    """TRL's trainer, which is asked for its loss alone."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    kinds = (RLOOConfig, RLOOTrainer) if case.name == "rloo" else (GRPOConfig, GRPOTrainer)
    settings, high = case.settings, case.settings.clip_high
    if case.name == "cispo":  # there the bound itself is given, not its distance from 1
        assert high is not None
        high = 1 + high
    of_grpo = {"delta": settings.delta, "use_bias_correction_kl": settings.unbiased_kl}
    config = kinds[0](
        output_dir=str(folder),
        epsilon=settings.clip,
        epsilon_high=high,
        beta=settings.beta,
        temperature=TEMPERATURE,
        max_completion_length=LONGEST,
        num_generations=2,
        per_device_train_batch_size=2,
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        report_to="none",
        **({} if case.name == "rloo" else of_grpo),
        **case.trl,
    )
    trainer = kinds[1](
        model=module,
        reward_funcs=no_reward,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": "w3 w4"}] * 2),
        processing_class=tiny_tokenizer(),
    )
    trainer.current_gradient_accumulation_steps = 1  # its training loop would say so
    return trainer


def trl_inputs(groups: list[Sample]) -> dict[str, torch.Tensor]:
    """Rows of a prompt padded on the left and a completion padded on the right."""
    rows = [(group.segments[0], one) for group in groups for one in group.segments[1:]]
    prompts, completions = (max(len(row[n].tokens) for row in rows) for n in (0, 1))

    def right(values) -> torch.Tensor:
        return torch.tensor(np.stack([np.pad(v, (0, completions - len(v))) for v in values]))

    def left(values) -> torch.Tensor:
        return torch.tensor(np.stack([np.pad(v, (prompts - len(v), 0)) for v in values]))

    mask = right([np.ones(len(one.tokens), dtype=np.int64) for _, one in rows])
    past = {
        name: right([one.constants[name] for _, one in rows]).float()
        for name in ("old", "reference")
    }
    return {
        "prompt_ids": left([prompt.tokens.astype(np.int64) for prompt, _ in rows]),
        "prompt_mask": left([np.ones(len(prompt.tokens), dtype=np.int64) for prompt, _ in rows]),
        "completion_ids": right([one.tokens.astype(np.int64) for _, one in rows]),
        "completion_mask": mask,
        "advantages": torch.tensor([one.constants["advantage"][0] for _, one in rows]).float(),
        "old_per_token_logps": past["old"],
        "old_logps": past["old"].sum(1),  # what the trainer of RLOO reads; zero where padded
        "ref_per_token_logps": past["reference"],
        "num_items_in_batch": mask.sum(),
    }


@dataclass(frozen=True)
class Result:
    """One side's loss, gradients and metrics."""

    loss: float
    gradients: dict[str, torch.Tensor]
    metrics: dict[str, float]

    def distance(self, other: "Result") -> float:
        """Of loss and gradients, the largest relative one."""
        return max(
            abs(self.loss - other.loss) / abs(other.loss),
            distance(self.gradients, other.gradients),
        )


@pytest.fixture(scope="module")
def trl(start, rollouts, tmp_path_factory):
    """What TRL makes of a case, computed once."""

    def run(name: str, kind: str) -> Result:
        module = load(start, kind)[1]
        trainer = make_trainer(CASES[name], module, tmp_path_factory.mktemp("trl"))
        trainer.model.train()
        loss = trainer._compute_loss(trainer.model, trl_inputs(rollouts(kind)))
        loss.backward()
        measured = {key: values[-1] for key, values in trainer._metrics["train"].items()}
        return Result(loss.item(), gradients(module), measured)

    return cache(run)


def with_hone(start, kind: str, groups: list[Sample], loss: LossFunction) -> Result:
    base, module = load(start, kind)
    model = joined(module, TEMPERATURE, base)
    output = engine_step(model, groups, loss, budget=30)
    return Result(float(output.total), gradients(module), dict(output.metrics))


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_equal_trl(name, kind, start, rollouts, trl):
    case, expected = CASES[name], trl(name, kind)
    found = with_hone(start, kind, rollouts(kind), make_policy_loss(case.name, case.settings))
    assert found.distance(expected) < LIMIT
    assert found.metrics["entropy"] == pytest.approx(expected.metrics["entropy"], rel=1e-5)
    if "plain kl" in name:  # TRL weighs what it logs, too
        assert found.metrics["kl"] == pytest.approx(expected.metrics["kl"], rel=1e-5)
    if case.name == "cispo":
        assert 0.1 < found.metrics["clip_share"] < 0.9
        return
    for ours, theirs in SHARES.items():
        assert found.metrics[ours] == pytest.approx(expected.metrics[theirs], rel=1e-5)
        assert found.metrics[ours] >= 0.099, "the clip has to be at work"


def wrong_means() -> dict[str, LossFunction]:
    """GRPO with denominators that are not its own."""

    def by_batch(logprobs_P, batch):
        """Each micro-batch is divided by its own completions."""
        own = replace(batch.counts, completions=batch.num_completions)
        return make_policy_loss("grpo", WITH_KL)(logprobs_P, replace(batch, counts=own))

    def by_samples(logprobs_P, batch):
        """Divided by prompts instead of completions."""
        own = replace(batch.counts, completions=batch.counts.samples)
        return make_policy_loss("grpo", WITH_KL)(logprobs_P, replace(batch, counts=own))

    def by_tokens(logprobs_P, batch):
        return make_policy_loss("dapo", WITH_KL)(logprobs_P, batch)

    return {each.__name__: each for each in (by_batch, by_samples, by_tokens)}


@pytest.mark.parametrize("name", wrong_means())
def test_wrong_denominators_are_caught(name, start, rollouts, trl):
    found = with_hone(start, "lora", rollouts("lora"), wrong_means()[name])
    assert found.distance(trl("grpo, kl", "lora")) > 100 * LIMIT


@pytest.mark.parametrize(
    "changed",
    [{"clip": 0.3}, {"clip_high": 0.15}, {"beta": 0.1}, {"delta": 1.5}, {"unbiased_kl": False}],
    ids=lambda changed: next(iter(changed)),
)
def test_each_setting_has_its_effect(changed, start, rollouts, trl):
    """A loss that did not read one of them would equal TRL with another value of it."""
    loss = make_policy_loss("grpo", replace(WITH_KL, **changed))
    found = with_hone(start, "lora", rollouts("lora"), loss)
    assert found.distance(trl("grpo, kl", "lora")) > 100 * LIMIT


def test_another_temperature_is_caught(start, rollouts, trl):
    base, module = load(start, "lora")
    output = engine_step(
        joined(module, 1.0, base), rollouts("lora"), make_policy_loss("grpo", WITH_KL)
    )
    found = Result(float(output.total), gradients(module), {})
    assert found.distance(trl("grpo, kl", "lora")) > 100 * LIMIT
