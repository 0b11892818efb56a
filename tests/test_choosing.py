"""How a token is chosen, against transformers' logits processors and the softmax itself."""

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hone.choosing import (
    Ending,
    SamplingSettings,
    choose,
    cut_at_stop,
    draw,
    keep_likely,
    penalise,
    settled,
)
from hone.errors import UserError
from hone.seeds import uniforms
from tests.data.tokenizers import byte_level

pytestmark = pytest.mark.quick

VOCABULARY = 50


def random_logits(rows: int = 6) -> torch.Tensor:
    return 3 * torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(0))


def settings(**keywords) -> SamplingSettings:
    return SamplingSettings(max_new_tokens=8, **keywords)


@pytest.mark.parametrize(
    "filters",
    [
        {"top_k": 5},
        {"top_p": 0.7},
        {"min_p": 0.1},
        {"top_p": 1e-6},
        {"min_p": 1.0},
        {"top_k": 200},
        {"repetition_penalty": 1.7},
        {"top_k": 9, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.3, "temperature": 0.6},
    ],
    ids=str,
)
def test_filters_equal_transformers(filters):
    logits = random_logits()
    seen = [[1, 2, 3, 2], [4], [5, 6], list(range(VOCABULARY)), [0], [7]]
    chosen = settings(**filters)
    found = penalise(logits / chosen.temperature, seen, chosen.repetition_penalty)
    found = keep_likely(found, chosen)
    steps = LogitsProcessorList()
    if chosen.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(chosen.repetition_penalty))
    if chosen.temperature != 1:
        steps.append(TemperatureLogitsWarper(chosen.temperature))
    if chosen.top_k:
        steps.append(TopKLogitsWarper(chosen.top_k))
    if chosen.top_p:
        steps.append(TopPLogitsWarper(chosen.top_p))
    if chosen.min_p:
        steps.append(MinPLogitsWarper(chosen.min_p))
    for row, ids in enumerate(seen):
        expected = steps(torch.tensor([ids]), logits[row : row + 1].clone())[0]
        assert torch.equal(found[row].isinf(), expected.isinf())
        torch.testing.assert_close(found[row], expected)
    assert chosen.filtered


def test_drawn_tokens_have_the_weights_frequencies():
    """The chi-square distance of 20,000 draws; its expectation is the degrees of freedom."""
    weights = torch.tensor([[0.5, 0.0, 0.2, 0.2, 0.06, 0.04]])
    count = 20_000
    drawn = draw(weights.expand(count, -1), torch.from_numpy(uniforms(count, 0, "draws")))
    found = drawn.bincount(minlength=6).double()
    assert found[1] == 0
    kept = weights[0] > 0
    expected = weights[0, kept].double() * count
    distance = float(((found[kept] - expected) ** 2 / expected).sum())
    assert distance < 13.3  # the 99 % quantile of chi-square with 4 degrees of freedom
    shifted = float(((found[kept].roll(1) - expected) ** 2 / expected).sum())
    assert shifted > 1000, "the negative control"


@pytest.mark.parametrize("vocabulary", [5, 256, 1000])
def test_a_draw_is_the_first_token_whose_sum_exceeds_the_number(vocabulary):
    weights = random_logits(1).repeat(1, 20)[:, :vocabulary].softmax(-1).double()
    numbers = torch.from_numpy(uniforms(300, 3))
    expected = [int((weights[0].cumsum(-1) > u * weights.sum()).nonzero()[0]) for u in numbers]
    assert draw(weights.expand(300, -1), numbers).tolist() == expected


def test_the_ends_of_the_unit_interval_draw_tokens_that_can_be():
    weights = torch.tensor([[0.0, 0.3, 0.0, 0.7, 0.0]]).expand(2, -1)
    ends = torch.tensor([0.0, 1 - 2.0**-52], dtype=torch.float64)
    assert draw(weights, ends).tolist() == [1, 3]
    uneven = torch.rand(2, 5000, generator=torch.Generator().manual_seed(0))
    uneven[:, 4000:] = 0
    assert draw(uneven, ends).tolist() == [0, 3999]


def test_log_probabilities_are_those_of_the_full_softmax():
    logits = random_logits()
    numbers = torch.from_numpy(uniforms(len(logits), 1))
    for chosen in (settings(), settings(top_k=1), settings(temperature=0.0)):
        tokens, logprobs = choose(logits, chosen, numbers)
        expected = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        torch.testing.assert_close(logprobs, expected)
    assert torch.equal(tokens, logits.argmax(-1))


def test_filters_hold_for_what_is_drawn():
    logits = random_logits(1).expand(500, -1)
    numbers = torch.from_numpy(uniforms(500, 2))
    tokens, _ = choose(logits, settings(top_k=3), numbers)
    assert set(tokens.tolist()) == set(logits[0].topk(3).indices.tolist())


def test_a_penalty_changes_the_greedy_token():
    logits = torch.tensor([[2.0, 1.9, -1.0]])
    nothing = torch.zeros(1, dtype=torch.float64)
    greedy = {"temperature": 0.0}
    assert choose(logits, settings(**greedy), nothing, [[0]])[0].tolist() == [0]
    penalised = settings(repetition_penalty=1.5, **greedy)
    assert choose(logits, penalised, nothing, [[0]])[0].tolist() == [1]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -1.0),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_k", 0),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
        ("stop", ("",)),
    ],
)
def test_values_that_mean_nothing_are_refused(name, value):
    with pytest.raises(UserError, match=f"{name} is .*expected"):
        SamplingSettings(**{"max_new_tokens": 4, name: value})


def test_only_settings_that_cut_count_as_filters():
    assert not settings(temperature=0.5).filtered
    assert not settings(top_p=1.0, min_p=0.0).filtered


def test_a_stop_string_is_found_across_tokens_and_only_in_the_completion():
    tokenizer = byte_level()
    ending = Ending(frozenset([0]), settings(stop=("ab\nc", "zz")), tokenizer)
    ids = tokenizer("xx é ab\nc", add_special_tokens=False).input_ids
    assert len(tokenizer("ab\nc", add_special_tokens=False).input_ids) > 1
    reasons = [
        Ending(ending.end_token_ids, settings(stop=ending.settings.stop), tokenizer).reason(ids[:n])
        for n in range(1, len(ids) + 1)
    ]
    limit = ending.settings.max_new_tokens
    assert reasons[-1] == "stop"
    assert set(reasons[: min(limit, len(ids)) - 1]) <= {None, "length"}
    assert ending.reason([5, 0]) == "end"


def test_text_is_cut_before_the_first_stop_string():
    assert cut_at_stop("one two three", ("three", "two")) == "one "
    assert cut_at_stop("one", ("two",)) == "one"


def test_what_may_still_change_is_held_back():
    assert settled("one two", ()) == "one two"
    assert settled("one \n", ()) == "one"
    assert settled("caf\ufffd", ()) == "caf"
    assert settled("one STO", ("STOP", "Q:")) == "one"
    assert settled("one STO ", ("STOP",)) == "one STO"


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_is_drawn_from_what_is_not_finite(broken, temperature):
    logits_BV = torch.zeros(2, 40)
    logits_BV[1, 17] = broken
    with pytest.raises(UserError, match="not finite"):
        choose(logits_BV, settings(temperature=temperature), torch.zeros(2, dtype=torch.float64))
