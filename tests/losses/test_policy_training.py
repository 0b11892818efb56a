"""Policy losses with everything that is trained, at a temperature, and in steps of `fit`."""

import copy
from dataclasses import replace

import pytest
import torch

from hone.adapters import add_lora, use_fast_forward
from hone.checkpoints import CheckpointState
from hone.fit import fit
from hone.losses.policy import PolicySettings, make_policy_loss
from hone.metrics import read_metrics
from hone.models import LanguageModel
from hone.optim import make_optimizer
from hone.recipe.data import Data, Evaluation
from hone.recipe.schema import Sft
from hone.recipe.training import SGD, BatchSize, Checkpoint, Lora
from hone.training import Training
from hone.vocabulary import AddedTokens, trained_rows, use_fast_rows, with_rows
from tests.losses.rollouts import (
    by_hand,
    engine_step,
    joined,
    random_groups,
    separate,
    with_past,
)
from tests.test_models import distance, gradients
from tests.tiny import VOCABULARY, make_model

TEMPERATURE = 0.6
SETTINGS = PolicySettings(clip=0.1, clip_high=0.3, beta=0.2, completion_tokens=16)
ROWS = AddedTokens(ids=(40, 61), rows_before=VOCABULARY)
KINDS = {"lora": {}, "dora": {"dora": True}, "rows": {}}
LIMIT = {"lora": 1e-5, "dora": 1e-4, "rows": 1e-5}  # DoRA divides by norms of fp32 weights


def adapted(family: str, kind: str) -> LanguageModel:
    """A model with adapters, and trained rows where asked, that are away from where they start."""
    model = joined(make_model(family), TEMPERATURE)
    rows = trained_rows(model.causal, ROWS) if kind == "rows" else None
    model.module = add_lora(model.causal, Lora(rank=4, **KINDS[kind]), rows)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.trainable():
            if "lora_B" in name or "token" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            if "magnitude" in name:
                parameter.mul_(1.2)
    return model


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("llama", "lora"),
        ("llama", "dora"),
        ("llama", "rows"),
        ("llama-tied", "rows"),
        ("granite", "rows"),  # multiplies its logits
        ("gpt2", "dora"),
        ("gemma3", "lora"),
        ("bloom", "dora"),  # padded
        ("gemma2", "lora"),  # padded, with a soft-cap
    ],
)
def test_every_kind_of_adapter_by_hand(family, kind):
    model = adapted(family, kind)
    plainly = copy.deepcopy(model.module)
    plainly.get_base_model().set_attn_implementation("eager")
    groups = with_past(random_groups(), plainly, TEMPERATURE)
    expected = by_hand(plainly, "grpo", groups, SETTINGS, TEMPERATURE)
    expected.backward()
    wanted = gradients(plainly)
    use_fast_forward(model.module)
    use_fast_rows(model.module)
    model.head = with_rows(model.head, model.causal)
    assert model.head.temperature == TEMPERATURE
    for samples in (groups, separate(groups)):
        output = engine_step(model, samples, make_policy_loss("grpo", SETTINGS))
        assert float(output.total) == pytest.approx(expected.item(), rel=LIMIT[kind])
        assert distance(gradients(model.module), wanted) < LIMIT[kind]


def rows_of_fit(folder, token_budget: int, wants_entropy: bool = True) -> list[dict]:
    """The metrics of two steps with an evaluation."""
    plainly = make_model("llama", torch.float64)
    groups = with_past(random_groups(), plainly, TEMPERATURE)
    model = joined(make_model("llama", torch.float64), TEMPERATURE)
    settings = Sft(
        data=Data(path="unused"),
        batch=BatchSize(samples=len(groups)),
        steps=2,
        learning_rate=1e-4,
        schedule="constant",
        optimizer=SGD(),
        max_grad_norm=None,
        checkpoint=Checkpoint(every=10),
        evaluation=Evaluation(share=0.5, every=2),
    )
    folder.mkdir()
    training = Training(
        model=model,
        optimizer=make_optimizer(model.module, settings.optimizer),
        loss=make_policy_loss("dapo", replace(SETTINGS, beta=0.1)),
        settings=settings,
        folder=folder,
        seed=0,
        stage=0,
        total_steps=2,
        samples_of=lambda step: groups,
        held_out=groups,
        token_budget=token_budget,
        epoch_of=float,
        wants_entropy=wants_entropy,
    )
    fit(training, CheckpointState(step=0, evaluated=True))
    return read_metrics(folder / "metrics.jsonl")


NAMES = ("loss", "ratio", "gap", "kl", "entropy", "clip_share", "grad_norm", "accuracy")


def test_steps_of_fit_hold_what_is_measured_however_they_are_cut(tmp_path):
    whole = rows_of_fit(tmp_path / "whole", 10_000)
    assert [row.get("split") for row in whole] == [None, None, "evaluation"]
    assert set(NAMES) <= {*whole[0], *whole[2]}
    assert whole[1]["loss"] < whole[0]["loss"]
    assert whole[0]["loss"] != whole[2]["loss"]
    for row, other in zip(whole, rows_of_fit(tmp_path / "cut", 1), strict=True):
        assert row.keys() == other.keys()
        for name in set(NAMES) & row.keys():
            assert row[name] == pytest.approx(other[name], rel=1e-5), name


def test_entropy_is_only_taken_where_it_is_wanted(tmp_path):
    rows = rows_of_fit(tmp_path / "run", 10_000, wants_entropy=False)
    assert not any("entropy" in row for row in rows)
    assert all("ratio" in row for row in rows)
