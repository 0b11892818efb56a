"""The samplers against transformers' `generate` and the training engine's log-probabilities."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import GenerationConfig

from hone.adapters import add_lora, use_fast_forward
from hone.choosing import SamplingSettings
from hone.device import Precision
from hone.forest import count_step
from hone.models import LanguageModel, join_model
from hone.recipe.schema import Lora
from hone.records import Sample, Segment
from hone.sampler import BuiltInSampler, Request, make_sampler
from tests.tiny import FAMILIES, FOREST, VOCABULARY, make_model

LENGTHS = (7, 3, 12, 3, 1, 9)
NEW = 12


def joined(name: str, dtype: torch.dtype = torch.float32, lora: bool = False) -> LanguageModel:
    module = make_model(name, dtype)
    model = join_model(module, Precision(dtype, dtype, "for the test"))
    if lora:
        model.module = with_adapter(model.causal)
    return model


def with_adapter(module, **settings) -> PeftModel:
    torch.manual_seed(1)
    adapted = add_lora(module, Lora(rank=4, dropout=0.3, **settings))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    use_fast_forward(adapted)
    return adapted


def make_requests(completions: int = 1, lengths=LENGTHS) -> list[Request]:
    draw = np.random.default_rng(0)
    return [
        Request(
            draw.integers(3, VOCABULARY, length).tolist(),
            [(0, "test", n, k) for k in range(completions)],
        )
        for n, length in enumerate(lengths)
    ]


def plain_greedy(module, prompt: list[int], ends: list[int]) -> list[int]:
    config = GenerationConfig(max_new_tokens=NEW, eos_token_id=ends, pad_token_id=0)
    with torch.no_grad():
        out = module.generate(torch.tensor([prompt]), generation_config=config)
    return out[0, len(prompt) :].tolist()


def training_logprobs(model: LanguageModel, prompt: list[int], ids: list[int]) -> np.ndarray:
    """What the training engine says of the same tokens."""
    segments = (
        Segment(np.array(prompt, dtype=np.int32), np.zeros(len(prompt), dtype=bool)),
        Segment(np.array(ids, dtype=np.int32), np.ones(len(ids), dtype=bool), 0),
    )
    samples = [Sample(0, segments)]
    batch = model.make_batch(samples, counts=count_step(samples))
    model.module.eval()
    with torch.no_grad(), model.laid_out(batch):
        return model.logprobs(batch).float().numpy()


@pytest.mark.parametrize("lora", [False, True], ids=["base", "lora"])
@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_tokens_equal_transformers(name, lora):
    """Prompts of several lengths in groups of two, few places, and end tokens that are drawn."""
    targets = {"targets": ["in_proj"]} if name == "mamba" else {}
    reference = make_model(name)
    model = joined(name)
    if lora:
        reference = with_adapter(reference, **targets)
        model.module = with_adapter(model.causal, **targets)
    reference.eval()
    requests = make_requests(2)
    first = [plain_greedy(reference, r.prompt_ids, [VOCABULARY + 1]) for r in requests]
    ends = sorted({first[0][0], first[2][5], first[5][2]})
    expected = [plain_greedy(reference, r.prompt_ids, ends) for r in requests]
    assert min(map(len, expected)) < 3 and max(map(len, expected)) > 3
    sampler = make_sampler(model, ends, sequences_at_once=5)
    assert isinstance(sampler, BuiltInSampler) == (name in FOREST)
    found = dict(sampler.sample(requests, SamplingSettings(NEW, temperature=0.0)))
    assert sorted(found) == list(range(len(requests)))
    for n, wanted in enumerate(expected):
        for completion in found[n]:
            assert completion.ids == wanted
            assert completion.finish == ("end" if wanted[-1] in ends else "length")


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", FAMILIES)
def test_log_probabilities_equal_the_training_engines(name, temperature):
    model = joined(name, lora=name != "mamba")
    requests = make_requests(3)
    settings = SamplingSettings(NEW, temperature=temperature)
    found = dict(make_sampler(model, [5, 6], sequences_at_once=4).sample(requests, settings))
    model.head = replace(model.head, temperature=temperature)
    for n, completions in found.items():
        for completion in completions:
            assert completion.logprobs.dtype == np.float32
            expected = training_logprobs(model, list(requests[n].prompt_ids), completion.ids)
            np.testing.assert_allclose(completion.logprobs, expected, atol=1e-4, rtol=1e-4)
