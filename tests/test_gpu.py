"""What needs an accelerator: compiled forest attention, bf16 on CUDA, a real run and its resume.

Left out of `make test`; run with `pytest -m gpu` where there is a CUDA device.
"""

import copy

import pytest
import torch

from hone.device import make_deterministic
from hone.sampler import SamplingSettings, make_sampler
from tests.test_models import distance, engine_loss, gradients, joined, plain_loss
from tests.test_sampler import make_requests
from tests.tiny import FOREST, make_model, random_samples, random_trees
from tests.workbench import NEW_MODEL, fingerprint, hone, kill, start, write_data

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention is meant to be compiled."""
    monkeypatch.delenv("TORCHDYNAMO_DISABLE")


@pytest.fixture(autouse=True)
def exact_products():
    """Full fp32 products: TF32 would hide what is compared."""
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3", "gpt2"])
@pytest.mark.parametrize("trees", [random_samples, random_trees], ids=["samples", "trees"])
def test_flex_attention_gives_the_gradients_of_plain_forwards(name, trees):
    assert name in FOREST
    module = make_model(name)
    samples = trees(4)
    plain_loss(module, samples).backward()
    wanted = gradients(module)
    on_gpu = joined(copy.deepcopy(module).cuda())
    assert on_gpu.layout == "forest", on_gpu.layout_reason
    engine_loss(on_gpu, samples)
    found = {key: value.cpu() for key, value in gradients(on_gpu.module).items()}
    assert distance(found, wanted) < 1e-4


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
def test_sampling_on_cuda_gives_the_tokens_of_the_cpu(name):
    module = make_model(name)
    requests = make_requests(2)
    expected = sample(joined(copy.deepcopy(module)), requests)
    make_deterministic(torch.device("cuda"))  # as in training
    try:
        found = sample(joined(module.cuda()), requests)
    finally:
        torch.use_deterministic_algorithms(False)
    assert found == expected


def sample(model, requests) -> list[list[list[int]]]:
    """Greedy and drawn completions of each request."""
    sampler = make_sampler(model, [5], sequences_at_once=5)
    both = (SamplingSettings(12, temperature=0.0), SamplingSettings(12, top_p=0.9, min_p=0.01))
    return [
        [completion.ids for completion in completions]
        for settings in both
        for _, completions in sorted(sampler.sample(requests, settings), key=lambda one: one[0])
    ]


def test_a_run_on_cuda_resumes_to_the_same_bytes(tmp_path):
    write_data(tmp_path)
    recipe = NEW_MODEL + (
        "device: cuda\nstages:\n  - sft: {data: chat.jsonl, steps: 30, checkpoint: {every: 5}}\n"
    )
    (tmp_path / "recipe.yaml").write_text(recipe)
    hone(tmp_path, "run", "recipe.yaml", "--name", "first")
    expected = fingerprint(tmp_path / "runs" / "first")
    (tmp_path / "runs").rename(tmp_path / "uninterrupted")
    process = start(tmp_path, "run", "recipe.yaml", "--name", "first")
    checkpoints = tmp_path / "runs/first/stages/1-sft/checkpoints"
    while process.poll() is None and not list(checkpoints.glob("step_*")):
        pass
    kill(process)
    hone(tmp_path, "resume", "first")
    assert fingerprint(tmp_path / "runs" / "first") == expected
