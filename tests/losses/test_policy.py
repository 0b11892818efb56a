"""Policy losses against their formulas one token at a time, from the model's own logits of single
sequences; cuts of the step; what they measure; a person's own.
"""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hone.credit import CREDIT, make_credit
from hone.errors import UserError
from hone.forest import count_step, make_batch
from hone.losses import LossOutput
from hone.losses.policy import POLICY, PolicySettings, grpo, make_policy_loss
from hone.records import Sample
from tests.losses.rollouts import (
    by_hand,
    engine_step,
    joined,
    random_groups,
    separate,
    with_past,
)
from tests.test_models import distance, gradients
from tests.tiny import FAMILIES, FOREST, OneFormat, make_model

TEMPERATURE = 1.4
SETTINGS = PolicySettings(clip=0.1, clip_high=0.3, beta=0.2, completion_tokens=16, delta=2.0)


def check_by_hand(name: str, family: str, dtype=torch.float64, limit=1e-9):
    plainly = make_model(family, dtype)
    groups = with_past(random_groups(), plainly, TEMPERATURE)
    expected = by_hand(plainly, name, groups, SETTINGS, TEMPERATURE)
    expected.backward()
    wanted = gradients(plainly)
    model = joined(make_model(family, dtype), TEMPERATURE)
    assert model.layout == ("forest" if family in FOREST else "padded")
    for samples in (groups, separate(groups)):  # a prompt with its completions, or one for each
        output = engine_step(model, samples, make_policy_loss(name, SETTINGS))
        assert float(output.total) == pytest.approx(expected.item(), rel=limit)
        assert distance(gradients(model.module), wanted) < limit


@pytest.mark.parametrize("name", POLICY)
def test_each_loss_by_hand(name):
    with OneFormat():
        check_by_hand(name, "llama")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_group_is_its_separate_sequences_in_every_family(family):
    check_by_hand("grpo", family, torch.float32, 1e-5)


@pytest.mark.parametrize("name", POLICY)
def test_any_cut_gives_the_same_step(name):
    """Between trees, and inside of a group, whose prompt is then repeated."""
    with OneFormat():
        check_cuts(name)


def check_cuts(name):
    plainly = make_model("llama", torch.float64)
    groups = with_past(random_groups(), plainly, TEMPERATURE)
    model = joined(make_model("llama", torch.float64), TEMPERATURE)
    loss = make_policy_loss(name, SETTINGS)
    whole = engine_step(model, groups, loss)
    wanted = gradients(model.module)
    for samples, budget in ((groups, 1), (groups, 45), (separate(groups), 1)):
        cut = engine_step(model, samples, loss, budget)
        assert float(cut.total) == pytest.approx(float(whole.total), rel=1e-9)
        assert distance(gradients(model.module), wanted) < 1e-9
        assert cut.metrics == pytest.approx(whole.metrics, rel=1e-9)


# Small batches by hand


def small_batch(old: list[float], advantage: float = 1.0):
    """One completion of as many tokens, with log-probabilities of -1 now."""
    group = random_groups([(2, (len(old),))])[0]
    prompt, one = group.segments
    constants = {
        "old": torch.tensor(old).double().numpy(),
        "advantage": torch.full((len(old),), advantage).double().numpy(),
    }
    sample = Sample(0, (prompt, replace(one, constants=constants)))
    logprobs = torch.full((len(old),), -1.0, dtype=torch.float64, requires_grad=True)
    return logprobs, make_batch([sample], count_step([sample]))


@pytest.mark.quick
def test_what_is_measured():
    logprobs, batch = small_batch([-1.0 - math.log(2), -1.0, -1.0 + math.log(2)])
    settings = replace(SETTINGS, beta=0.0, delta=None)
    found = make_policy_loss("grpo", settings)(logprobs, batch).metrics
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {
            "ratio": (2 + 1 + 0.5) / 3,
            "gap": 2 * math.log(2) / 3,
            "clip_share": 1 / 3,
            "clip_share_low": 0.0,
            "clip_share_high": 1 / 3,
        }
    )
    assert not any(value.requires_grad for value in found.values())
    logprobs, batch = small_batch([-1.0 - math.log(2), -1.0, -1.0 + math.log(2)], -1.0)
    found = make_policy_loss("grpo", settings)(logprobs, batch).metrics
    assert float(found["clip_share_low"]) == pytest.approx(1 / 3)


@pytest.mark.quick
def test_a_clipped_token_has_no_gradient():
    logprobs, batch = small_batch([-1.0 - math.log(2), -1.0, -1.0 + math.log(2)])
    settings = replace(SETTINGS, beta=0.0)
    make_policy_loss("dapo", settings)(logprobs, batch).total.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([0, -1 / 3, -0.5 / 3])


@pytest.mark.quick
@pytest.mark.parametrize(("name", "like"), [("rloo", "reinforce"), ("cispo", "dapo")])
def test_losses_that_are_the_same_at_the_first_update(name, like):
    """Where nothing has moved yet the ratios are 1, and the gradients those of the plain policy
    gradient.
    """
    gradients = []
    for each in (name, like):
        logprobs, batch = small_batch([-1.0] * 4, 0.7)
        make_policy_loss(each, replace(SETTINGS, beta=0.0))(logprobs, batch).total.backward()
        gradients.append(logprobs.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.quick
def test_a_batch_without_a_trained_token_adds_nothing():
    """One micro-batch may hold only prompts whose completions are all masked."""
    group = random_groups([(3, (2,))])[0]
    prompt, one = group.segments
    sample = Sample(0, (prompt, replace(one, trained=one.trained & False)))
    counts = replace(count_step([sample]), trained_tokens=7, completions=2)
    batch = make_batch([sample], counts)
    batch.constants.update({"old": torch.zeros(0), "advantage": torch.zeros(0)})
    for name in POLICY:
        output = make_policy_loss(name, replace(SETTINGS, beta=0.0))(torch.zeros(0), batch)
        assert float(output.total) == 0
        assert all(float(value) == 0 for value in output.metrics.values())


# A person's own

OWN = """
import torch

from hone.losses import LossOutput
from hone.losses.policy import constant, log_ratio, mean_of_tokens

def unclipped(logprobs_P, batch, settings):
    ratio_P = log_ratio(logprobs_P, batch).exp()
    gain_P = ratio_P * constant(batch, "advantage", logprobs_P)
    return LossOutput(-mean_of_tokens(gain_P, batch), {"highest": ratio_P.max().detach()})

def a_number(logprobs_P, batch, settings):
    return logprobs_P.sum()

def a_vector(logprobs_P, batch, settings):
    return LossOutput(logprobs_P)

def broken(logprobs_P, batch, settings):
    return batch.constants["no such"]
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(OWN)
    return tmp_path / "mine.py"


@pytest.mark.quick
def test_an_own_loss(own):
    loss = make_policy_loss(f"{own}:unclipped", SETTINGS)
    logprobs, batch = small_batch([-1.0 - math.log(2), -1.0])
    output = loss(logprobs, batch)
    assert output.total.item() == pytest.approx(-1.5)
    assert float(output.metrics["highest"]) == pytest.approx(2)
    assert float(output.metrics["ratio"]) == pytest.approx(1.5)  # measured for every loss


@pytest.mark.quick
def test_the_examples_of_the_documentation(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    section = text.partition("## Policy losses and credit")[2]
    (tmp_path / "mine.py").write_text(section.partition("```python")[2].partition("```")[0])
    assert all(f"| `{name}` |" in section for name in (*POLICY, *CREDIT))
    logprobs, batch = small_batch([-1.0 - math.log(2), -1.0])
    output = make_policy_loss(f"{tmp_path / 'mine.py'}:unclipped", replace(SETTINGS, beta=0.0))
    assert output(logprobs, batch).total.item() == pytest.approx(-1.5)
    best = make_credit(f"{tmp_path / 'mine.py'}:best_only")
    assert best(np.array([0.5, 2.0, 2.0])).tolist() == [0.0, 1.0, 1.0]


@pytest.mark.quick
def test_a_function_itself(own):
    def twice(logprobs_P, batch, settings):
        return LossOutput(2 * grpo(logprobs_P, batch, settings).total)

    logprobs, batch = small_batch([-1.2, -1.0])
    settings = replace(SETTINGS, beta=0.0)
    once = make_policy_loss("grpo", settings)(logprobs, batch).total
    torch.testing.assert_close(make_policy_loss(twice, settings)(logprobs, batch).total, 2 * once)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a_number", "gave Tensor"),
        ("a_vector", "expected a tensor of one number"),
        ("broken", "KeyError"),
    ],
)
def test_mistakes_of_an_own_loss_are_told(own, name, words):
    logprobs, batch = small_batch([-1.0, -1.0])
    with pytest.raises(UserError, match=words) as caught:
        make_policy_loss(f"{own}:{name}", SETTINGS)(logprobs, batch)
    assert f"mine.py:{name}" in caught.value.message


@pytest.mark.quick
def test_a_name_that_there_is_not():
    with pytest.raises(UserError, match='did you mean "gspo"') as caught:
        make_policy_loss("gsop", SETTINGS)
    assert caught.value.exit_code == 2
    assert all(name in (caught.value.hint or "") for name in POLICY)
