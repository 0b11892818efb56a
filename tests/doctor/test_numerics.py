"""Numerical checks: right models pass, each broken one fails the check that is named for it.

The models are broken by hooks on their modules: what they compute really is wrong, and only where
the check that has to find it looks.
"""

from collections.abc import Callable

import pytest
import torch

from hone.device import Precision
from hone.doctor.computing import compute_apart, compute_step
from hone.doctor.findings import Finding, gradient_distance, run_checks
from hone.doctor.numerics import format_checks, layout_checks, repeat_checks
from hone.doctor.samples import make_trees
from hone.models import LanguageModel, find_head, join_model
from tests.test_models import gradients, plain_loss
from tests.tiny import FALLBACK, FOREST, make_model, random_samples

FP32 = Precision(torch.float32, torch.float32, "for the test")
BF16 = Precision(torch.bfloat16, torch.bfloat16, "for the test")
SAMPLES = random_samples(8)
TREES = make_trees(SAMPLES)


def trained(name: str, layout: str = "auto") -> LanguageModel:
    model = join_model(make_model(name), FP32, layout=layout)
    model.module.requires_grad_(True)
    return model


def examine(model: LanguageModel) -> dict[str, Finding]:
    checks = [*layout_checks(model, SAMPLES, TREES), *repeat_checks(model, SAMPLES)]
    return {finding.name: finding for finding in run_checks(checks, told=lambda name: None)}


def wrong(findings: dict[str, Finding]) -> set[str]:
    return {name.split(":")[0] for name, finding in findings.items() if not finding.passes}


def broken(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> LanguageModel:
    """A model in the layout of forests whose first layer's output is changed."""
    model = trained(name)
    assert model.layout == "forest"
    layers = model.causal.base_model.layers
    layers[0].register_forward_hook(lambda module, inputs, hidden: change(hidden))
    return model


@pytest.mark.parametrize("name", FOREST)
def test_models_that_use_the_forest_pass(name: str) -> None:
    findings = examine(trained(name))
    assert wrong(findings) == set()
    assert all(finding.difference is not None for finding in findings.values())


@pytest.mark.parametrize("name", FALLBACK)
def test_models_that_do_not_use_the_forest_pass_and_say_why(name: str) -> None:
    model = trained(name)
    findings = examine(model)
    assert wrong(findings) == set()
    assert findings["forest in fp32"].status == "not applicable"
    assert model.layout_reason in findings["forest in fp32"].note
    assert findings["padding: gradients"].difference < 1e-5
    assert "separate plain forwards" in findings["padding: gradients"].compared


def test_what_it_compares_with_is_the_models_own_loss() -> None:
    """The obvious way of these checks against that of the engine's tests."""
    model = trained("llama")
    apart = compute_apart(model, SAMPLES)
    module = make_model("llama")
    loss = plain_loss(module, SAMPLES)
    loss.backward()
    assert float(-apart.logprobs.double().mean()) == pytest.approx(loss.item(), rel=1e-5)
    assert gradient_distance(apart.gradients, gradients(module)) < 1e-5


def test_attention_that_crosses_the_border_of_samples() -> None:
    """As a convolution over the row would. Short rows, such as those of separate samples and of the
    probe, are left alone.
    """

    def leak(hidden: torch.Tensor) -> torch.Tensor:
        if hidden.shape[1] <= 64:
            return hidden
        return hidden + 0.3 * torch.nn.functional.pad(hidden, (0, 0, 1, 0))[:, :-1]

    findings = examine(broken("llama", leak))
    assert {"forest in fp32", "padding", "accumulation", "shared prompts"} <= wrong(findings)


def test_padding_that_is_seen() -> None:
    """Rows of several samples see what stands behind them."""

    def leak(hidden: torch.Tensor) -> torch.Tensor:
        return hidden if len(hidden) < 4 else hidden + 0.1 * hidden.mean(1, keepdim=True)

    assert wrong(examine(broken("llama", leak))) == {"padding"}


def test_a_padded_model_that_sees_the_padding() -> None:
    model = trained("bloom")

    def leak(module, inputs, output):
        hidden = output[0] if isinstance(output, tuple) else output
        if len(hidden) < 4:
            return output
        hidden = hidden + 0.1 * hidden.mean(1, keepdim=True)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    model.causal.transformer.h[0].register_forward_hook(leak)
    assert {"padding", "accumulation"} <= wrong(examine(model))


def test_noise_that_nobody_seeded() -> None:
    findings = examine(broken("llama", lambda hidden: hidden * (1 + 1e-3 * torch.rand(()))))
    assert "repetition" in wrong(findings)


def test_a_head_that_scales_its_logits_unseen() -> None:
    """The forward multiplies by what the engine's head does not know."""
    model = trained("llama")
    model.causal.lm_head.register_forward_hook(lambda module, inputs, logits: 1.5 * logits)
    assert wrong(examine(model)) == {"forest in fp32"}


def test_a_frozen_layer_has_no_gradient_to_compare() -> None:
    model = trained("llama")
    complete = compute_step(model, SAMPLES).gradients
    model.causal.model.layers[0].requires_grad_(False)
    assert gradient_distance(compute_step(model, SAMPLES).gradients, complete) == float("inf")


@pytest.mark.parametrize("scale", [1.0, 1.05])
def test_the_number_format(scale: float) -> None:
    """bf16 passes; weights that are 5 % off do not."""
    exact = compute_apart(trained("llama"), SAMPLES).logprobs
    module = make_model("llama", torch.bfloat16)
    with torch.no_grad():
        module.lm_head.weight.mul_(scale)
    model = join_model(module, BF16)
    checks = format_checks(model, SAMPLES, exact, seed=0)
    findings = {finding.name: finding for finding in run_checks(checks, told=lambda name: None)}
    assert wrong(findings) == (set() if scale == 1.0 else {"number format"})
    assert findings["forest in bf16: gradients"].difference > 1e-4


def test_one_sample_at_a_time() -> None:
    module = make_model("llama")
    model = LanguageModel(module, find_head(module), FP32, "alone", "for the test")
    module.set_attn_implementation("sdpa")
    findings = examine(model)
    assert wrong(findings) == set()
    assert findings["accumulation"].note == "one sample at a time: for the test"
    assert findings["padding"].status == "not applicable"
