"""The samplers against transformers' `generate` and the training engine's log-probabilities."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import GenerationConfig

from hone.adapters import add_lora, use_fast_forward
from hone.choosing import Ending, SamplingSettings
from hone.device import Precision
from hone.forest import count_step
from hone.groups import make_groups
from hone.models import LanguageModel, join_model, save_model
from hone.quantisation import quantise
from hone.recipe.schema import Lora
from hone.records import Sample, Segment
from hone.sampler import BuiltInSampler, Request, _Running, make_sampler
from hone.stacking import stack
from hone.vocabulary import AddedTokens, grow, trained_rows, use_fast_rows, with_rows
from tests.data.tokenizers import byte_level
from tests.tiny import FAMILIES, FOREST, VOCABULARY, make_model

LENGTHS = (7, 3, 12, 3, 1, 9)
NEW = 12


def joined(name: str, dtype: torch.dtype = torch.float32, lora: bool = False) -> LanguageModel:
    module = make_model(name, dtype)
    model = join_model(module, Precision(dtype, dtype, "for the test"))
    if lora:
        model.module = with_adapter(model.causal)
        use_fast_forward(model.module)
    return model


def with_adapter(module, **settings) -> PeftModel:
    torch.manual_seed(1)
    adapted = add_lora(module, Lora(rank=4, dropout=0.3, **settings))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
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
        assert use_fast_forward(model.module) > 0
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


@pytest.mark.parametrize(
    "settings",
    [
        SamplingSettings(NEW),
        SamplingSettings(NEW, 0.8, top_p=0.9, top_k=20, min_p=0.01, repetition_penalty=1.2),
    ],
    ids=["plain", "filtered"],
)
@pytest.mark.parametrize("name", ["mistral", "gemma2"])
def test_a_request_draws_the_same_alone_and_among_others(name, settings):
    model = joined(name)
    requests = make_requests(3)
    among = dict(make_sampler(model, [5], sequences_at_once=7).sample(requests, settings))
    for n, request in enumerate(requests):
        for k, seed in enumerate(request.seeds):
            alone = Request(request.prompt_ids, [seed])
            ((_, (found,)),) = make_sampler(model, [5]).sample([alone], settings)
            assert found.ids == among[n][k].ids
    assert len({tuple(c.ids) for c in among[0]}) == 3, "seeds of a group draw different tokens"


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_drawn_tokens_have_the_models_frequencies(name):
    """Chi-square of 4,000 first and second tokens against the softmax of the model's logits."""
    model = joined(name)
    prompt = [5, 9, 11]
    count = 2_000
    request = Request(prompt, [(7, n) for n in range(count)])
    settings = SamplingSettings(2, temperature=1.5)
    sampler = make_sampler(model, [], sequences_at_once=500)
    ((_, completions),) = sampler.sample([request], settings)
    with torch.no_grad():
        if name in FOREST:
            model.causal.set_attn_implementation("sdpa")
        first = (model.causal(torch.tensor([prompt])).logits[0, -1] / 1.5).softmax(-1)
        continued = torch.tensor([[*prompt, token] for token in range(VOCABULARY)])
        second = first @ (model.causal(continued).logits[:, -1] / 1.5).softmax(-1)
    for place, expected in enumerate((first, second)):
        tokens = torch.tensor([completion.ids[place] for completion in completions])
        assert chi_square(tokens, expected) < 145.0  # the 99.9 % quantile of 95 degrees of freedom
        assert chi_square(tokens, expected.flip(0)) > 300, "the negative control"


def chi_square(tokens: torch.Tensor, probabilities: torch.Tensor) -> float:
    """The distance of what was drawn, of tokens that were expected less than 5 times together."""
    expected = probabilities.double() * len(tokens)
    found = tokens.bincount(minlength=VOCABULARY).double()
    rare = expected < 5
    expected = torch.cat([expected[~rare], expected[rare].sum()[None].clamp_min(1e-9)])
    found = torch.cat([found[~rare], found[rare].sum()[None]])
    return float(((found - expected) ** 2 / expected).sum())


def test_groups_come_as_they_finish_while_later_prompts_wait():
    """Two places and five groups of two: the first is there before the last prompt is read."""
    model = joined("llama")
    requests = make_requests(2, lengths=(4, 5, 6, 7, 8))
    calls = []
    handle = model.causal.base_model.register_forward_pre_hook(
        lambda _module, args, kwargs: calls.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    found = []
    for number, completions in BuiltInSampler(model, [], sequences_at_once=2).sample(
        requests, SamplingSettings(4)
    ):
        found.append((number, len(calls)))
        assert [len(completion.ids) for completion in completions] == [4, 4]
    handle.remove()
    assert found == [(n, 4 * (n + 1)) for n in range(5)], "a prompt and three tokens each"


def test_a_prompt_is_computed_and_kept_once_for_its_group():
    model = joined("llama")
    groups = make_groups([Request([5] * 100, [(0, k) for k in range(40)])], SamplingSettings(3))
    running = _Running(
        model, groups, SamplingSettings(3), Ending(frozenset(), SamplingSettings(3)), 40
    )
    assert running.advance() == groups
    assert running.prompts.room == (1, 128), "rows and tokens of prompts, in steps of 64"
    assert running.own.room == (40, 64)
    config = model.causal.config
    heads, size = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    shapes = [(k.shape, v.shape) for k, v in running.prompts.layers]
    assert shapes == [((1, heads, 128, size),) * 2] * config.num_hidden_layers


def build_dora():
    model = joined("qwen3")
    model.module = with_adapter(model.causal, dora=True)
    return model


def build_stacked(tmp_path):
    model = joined("qwen3")
    first = with_adapter(model.causal)
    save_model(first, tmp_path / "first")
    model = joined("qwen3")
    model.module = with_adapter(model.causal)
    stack(model.module, tmp_path / "first")
    assert use_fast_forward(model.module) == 0
    return model


def build_quantised():
    module = quantise(make_model("qwen3"), 8, torch.float32, torch.device("cpu"))
    model = join_model(module, Precision(torch.float32, torch.float32, "for the test"))
    model.module = with_adapter(model.causal)
    use_fast_forward(model.module)
    return model


def build_rows():
    added = AddedTokens((VOCABULARY, VOCABULARY + 1), rows_before=VOCABULARY)
    module = make_model("llama")
    grow(module, added)
    model = join_model(module, Precision(torch.float32, torch.float32, "for the test"))
    model.module = add_lora(model.causal, Lora(rank=4), trained_rows(model.causal, added))
    with torch.no_grad():
        for _, parameter in model.trainable():
            parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(0))
    use_fast_forward(model.module)
    use_fast_rows(model.module)
    model.head = with_rows(model.head, model.causal)
    return model


def build_half():
    return joined("qwen3", torch.bfloat16, lora=True)


def build_cast():
    """Weights in fp32 that are computed with in bf16, as when all are trained."""
    model = joined("qwen3")
    model.precision = Precision(torch.float32, torch.bfloat16, "for the test")
    return model


BUILDS = {
    "dora": (build_dora, 1e-4),
    "quantised": (build_quantised, 1e-4),
    "rows": (build_rows, 1e-4),
    "bf16": (build_half, 0.3),
    "cast": (build_cast, 0.3),
}


@pytest.mark.parametrize("kind", [*BUILDS, "stacked"])
def test_every_kind_of_model_is_sampled_as_it_is_trained(kind, tmp_path):
    """In bf16 the gap is rounding: small in the mean, and not one-sided."""
    build, limit = BUILDS.get(kind, (lambda: build_stacked(tmp_path), 1e-4))
    model = build()
    model.module.train()
    modes = [module.training for module in model.module.modules()]
    requests = make_requests(3)
    found = dict(
        make_sampler(model, [5, 6], sequences_at_once=4).sample(requests, SamplingSettings(NEW))
    )
    assert [module.training for module in model.module.modules()] == modes
    gaps = np.concatenate(
        [
            c.logprobs - training_logprobs(model, list(requests[n].prompt_ids), c.ids)
            for n, completions in found.items()
            for c in completions
        ]
    )
    assert np.abs(gaps).max() < limit
    assert abs(gaps.mean()) < limit / 10
    if kind == "rows":
        tokens = {token for completions in found.values() for c in completions for token in c.ids}
        assert tokens & {VOCABULARY, VOCABULARY + 1}, "the added tokens are drawn"


def test_nothing_is_left_behind_when_the_caller_stops_listening():
    model = joined("llama", lora=True)
    model.module.train()
    forwards = [vars(module).get("forward") for module in model.module.modules()]
    stream = BuiltInSampler(model, [], sequences_at_once=2).sample(
        make_requests(2), SamplingSettings(4)
    )
    next(stream)
    assert all(module.training for module in model.module.modules())
    assert [vars(module).get("forward") for module in model.module.modules()] == forwards
    assert torch.is_grad_enabled()
    stream.close()


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_stop_strings_end_a_completion(name):
    """Random tokens of a real tokenizer, stopped where the text first holds one of the strings."""
    tokenizer = byte_level()
    model = joined(name)
    request = Request([5, 6, 7], [(3, k) for k in range(8)])
    settings = SamplingSettings(40, temperature=3.0)
    ((_, free),) = make_sampler(model, []).sample([request], settings)
    texts = [tokenizer.decode(completion.ids) for completion in free]
    stop = (texts[0][7:9], texts[3][5:7])
    sampler = make_sampler(model, [], tokenizer)
    ((_, found),) = sampler.sample([request], replace(settings, stop=stop))
    for completion, whole in zip(found, free, strict=True):
        hits = [
            n + 1
            for n in range(len(whole.ids))
            if any(one in tokenizer.decode(whole.ids[: n + 1]) for one in stop)
        ]
        expected = whole.ids[: hits[0]] if hits else whole.ids
        assert completion.ids == expected
        assert completion.finish == ("stop" if hits else "length")
    assert {c.finish for c in found} == {"stop", "length"}


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_a_group_without_completions_is_answered(name):
    requests = [Request([3, 4], []), Request([5], [(0,)])]
    found = dict(make_sampler(joined(name), []).sample(requests, SamplingSettings(2)))
    assert found[0] == []
    assert len(found[1]) == 1


def test_settings_of_the_models_own_files_are_not_in_force():
    model = joined("bloom")
    request = Request([3, 4, 5], [(0,)])
    settings = SamplingSettings(6, temperature=0.0)
    ((_, (expected,)),) = make_sampler(model, []).sample([request], settings)
    own = GenerationConfig(repetition_penalty=5.0, max_length=4, eos_token_id=expected.ids[1])
    model.causal.generation_config = own
    ((_, (found,)),) = make_sampler(model, []).sample([request], settings)
    assert found.ids == expected.ids
    assert model.causal.generation_config is own
