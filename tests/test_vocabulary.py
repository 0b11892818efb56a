"""Added tokens: the tokenizer, the rows, and their gradients against plain transformers + PEFT."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM

from hone.adapters import add_lora, use_fast_forward
from hone.device import Precision
from hone.errors import UserError
from hone.models import LanguageModel, load_trained, read_weights, save_model
from hone.optim import decays, make_optimizer
from hone.recipe.training import AdamW, Full, Lora, QLora
from hone.records import Sample, Segment
from hone.sampling import load_artifact
from hone.stages.start import Start, build_model, merge
from hone.vocabulary import (
    AddedTokens,
    add_tokens,
    grow,
    matrices,
    mean_row,
    row_layers,
    rows_needed,
    start_rows,
    trained_rows,
    use_fast_rows,
    with_rows,
)
from tests.data.tokenizers import byte_level
from tests.test_models import distance, engine_loss, gradients, joined, plain_loss
from tests.tiny import VOCABULARY, make_model, random_samples

ROWS = AddedTokens(ids=(40, 61), rows_before=VOCABULARY)  # rows the random samples have tokens of
NEW = AddedTokens(ids=(VOCABULARY, VOCABULARY + 1), rows_before=VOCABULARY)
SPARE = AddedTokens(ids=(90, 91), rows_before=90)
FP32 = Precision(torch.float32, torch.float32, "for the test")
TIED = ["llama-tied", "gpt2", "gemma3"]  # Gemma 3 scales in the embedding's own forward
UNTIED = ["llama", "granite", "mistral"]  # Granite scales the logits
IDS = torch.tensor([[5, 90, 13, 91, 22, 41]])  # with the rows of SPARE


# --- The tokenizer -------------------------------------------------------------------------------


def test_added_tokens_are_single_special_tokens() -> None:
    tokenizer = byte_level()
    before = rows_needed(tokenizer)
    added = add_tokens(tokenizer, ["<call>", "<|im_end|>", "</call>"])
    assert added == AddedTokens((before, before + 1), ("<|im_end|>",), before)
    ids = tokenizer.encode("yes<call>no</call>", add_special_tokens=False)
    assert [i for i in ids if i >= before] == [before, before + 1]
    assert "<call>" not in tokenizer.decode(ids, skip_special_tokens=True)


def test_no_tokens_change_nothing() -> None:
    tokenizer = byte_level()
    before = tokenizer.backend_tokenizer.to_str()
    assert add_tokens(tokenizer, ["<|im_end|>"]).ids == ()
    assert tokenizer.backend_tokenizer.to_str() == before


# --- The rows ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*TIED, *UNTIED, "bloom"])
def test_new_rows_are_the_mean_and_the_old_ones_stay(name: str) -> None:
    module = make_model(name)
    before = [matrix.weight.detach().clone() for matrix in matrices(module)]
    grow(module, NEW)
    assert module.config.get_text_config().vocab_size == VOCABULARY + 2
    for matrix, old in zip(matrices(module), before, strict=True):
        assert torch.equal(matrix.weight[:VOCABULARY], old)
        expected = torch.from_numpy(old.double().numpy().mean(0)).float()
        torch.testing.assert_close(matrix.weight[VOCABULARY:], expected.expand(2, -1))
    assert module(input_ids=torch.tensor([[1, VOCABULARY + 1]])).logits.shape[-1] == VOCABULARY + 2


def test_spare_rows_are_used_before_the_model_grows() -> None:
    module = make_model("llama")
    grow(module, SPARE)
    assert len(module.lm_head.weight) == VOCABULARY
    assert torch.equal(module.lm_head.weight[90], module.lm_head.weight[91])


def test_the_mean_does_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(50, 8)
    expected = mean_row(weight, 40)
    monkeypatch.setattr("hone.vocabulary.CHUNK_ROWS", 7)
    torch.testing.assert_close(mean_row(weight, 40), expected)


def test_a_head_with_a_bias_is_refused() -> None:
    module = make_model("llama")
    module.lm_head = nn.Linear(32, VOCABULARY, bias=True)
    with pytest.raises(UserError, match="head of this model has a bias"):
        trained_rows(module, ROWS)


# --- Loss and gradients --------------------------------------------------------------------------


def adapted(name: str, added: AddedTokens, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """A model with adapters and rows, all of them away from where they start."""
    model = joined(make_model(name, dtype))
    model.module = add_lora(model.causal, Lora(rank=4), trained_rows(model.causal, added))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter_name, parameter in model.trainable():
            if "lora_B" in parameter_name or "token" in parameter_name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize("name", [*TIED, *UNTIED])
def test_loss_and_gradients_equal_pefts_own_forward(name: str) -> None:
    samples = random_samples(6)
    found = adapted(name, ROWS)
    plain = copy.deepcopy(found.module)
    plain.get_base_model().set_attn_implementation("eager")
    expected = plain_loss(plain, samples)
    expected.backward()
    use_fast_forward(found.module)
    assert use_fast_rows(found.module) == 1
    found.head = with_rows(found.head, found.causal)
    assert engine_loss(found, samples) == pytest.approx(expected.item(), rel=1e-5)
    wanted = gradients(plain)
    assert sum("token" in key for key in wanted) == (1 if name in TIED else 2)
    assert distance(gradients(found.module), wanted) < 1e-5


def test_without_the_rows_the_loss_would_be_another() -> None:
    """The negative control: a head that reads the frozen rows is far away."""
    samples = random_samples(6)
    model = adapted("llama", ROWS)
    frozen = engine_loss(model, samples)
    model.head = with_rows(model.head, model.causal)
    assert engine_loss(model, samples) != pytest.approx(frozen, rel=1e-3)


def test_any_cut_gives_the_same_gradients() -> None:
    samples = random_samples(8)
    model = adapted("llama", ROWS)
    use_fast_rows(model.module)
    model.head = with_rows(model.head, model.causal)
    expected = engine_loss(model, samples)
    wanted = gradients(model.module)
    for budget in (1, 64):
        assert engine_loss(model, samples, budget) == pytest.approx(expected, rel=1e-6)
        assert distance(gradients(model.module), wanted) < 1e-5


def test_rows_beside_bf16_weights_are_trained_in_fp32() -> None:
    model = adapted("llama", ROWS, torch.bfloat16)
    use_fast_rows(model.module)
    model.head = with_rows(model.head, model.causal)
    samples = random_samples(6)
    loss = engine_loss(model, samples)
    assert math.isfinite(loss)
    rows = [(n, p) for n, p in model.trainable() if "token" in n]
    assert {p.dtype for _, p in rows} == {torch.float32}
    assert all(p.grad.abs().max() > 0 for _, p in rows)
    exact = adapted("llama", ROWS)
    use_fast_rows(exact.module)
    exact.head = with_rows(exact.head, exact.causal)
    assert loss == pytest.approx(engine_loss(exact, samples), rel=0.05)


def test_rows_are_not_decayed() -> None:
    model = adapted("llama", ROWS)
    optimizer = make_optimizer(model.module, AdamW(weight_decay=0.5))
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    for name, parameter in model.trainable():
        assert decays(name, parameter, set()) is ("lora" in name)
        assert (id(parameter) in decayed) is ("lora" in name)


# --- A stage -------------------------------------------------------------------------------------


def build(source: Path, adapter: Lora | Full, added: AddedTokens, folder: Path, checkpoint=None):
    return build_model(
        Start.at(str(source)),
        checkpoint,
        adapter,
        added=added,
        folder=folder,
        precision=FP32,
        device=torch.device("cpu"),
        layout="padded",
        seed=(0, 1),
    )


def train(model: LanguageModel, new_ids: tuple[int, ...], steps: int = 3) -> None:
    """A few steps on samples that hold the new tokens."""
    optimizer = torch.optim.SGD([p for _, p in model.trainable()], lr=0.05)
    draw = np.random.default_rng(0)
    for step in range(steps):
        tokens = draw.integers(3, 80, 12).astype(np.int32)
        tokens[[2, 5]], tokens[[3, 8]] = new_ids[0], new_ids[-1]
        sample = Sample(step, (Segment(tokens, np.ones(12, dtype=bool), -1),))
        optimizer.zero_grad()
        engine_loss(model, [sample])
        optimizer.step()


def logits(module) -> torch.Tensor:
    with torch.no_grad():
        return module.eval()(input_ids=IDS).logits


@pytest.mark.parametrize("name", ["llama", "llama-tied"])
@pytest.mark.parametrize("added", [NEW, SPARE], ids=["grown", "spare"])
def test_only_the_added_rows_move_and_the_adapter_loads_with_peft_alone(
    name: str, added: AddedTokens, tmp_path: Path
) -> None:
    source = tmp_path / "base"
    make_model(name).save_pretrained(source)
    model = build(source, Lora(rank=4), added, tmp_path / "stage")
    layers = row_layers(model.module)
    before = [layer.get_base_layer().weight.clone() for layer in layers]
    train(model, added.ids)
    for layer, old in zip(layers, before, strict=True):
        assert torch.equal(layer.get_base_layer().weight, old)
        if not layer.tied_adapter:
            start = mean_row(old, added.rows_before).float()
            (rows,) = layer.trainable_tokens_delta.values()
            assert ((rows - start).abs().amax(1) > 1e-4).all()
    save_model(model.module, tmp_path / "adapter")
    base = tmp_path / "stage" / "base" if added is NEW else source
    assert (tmp_path / "stage" / "base").exists() is (added is NEW)
    stored = read_weights(str(base), torch.float32)
    original = read_weights(str(source), torch.float32)
    for here, there in zip(matrices(stored), matrices(original), strict=True):
        assert torch.equal(here.weight[:VOCABULARY], there.weight)
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter"
    )
    torch.testing.assert_close(logits(plain), logits(model.module))
    assert (logits(plain)[..., :VOCABULARY] - logits(original)).abs().max() > 0.01

    # Merged, and continued by the next stage and from a checkpoint: the rows are still there.
    merged = merge(read_weights(str(base), torch.float32), tmp_path / "adapter")
    torch.testing.assert_close(logits(merged), logits(plain), rtol=1e-4, atol=1e-4)
    nothing = AddedTokens(rows_before=VOCABULARY)
    continued = build(tmp_path / "adapter", Lora(rank=4), nothing, tmp_path / "second")
    torch.testing.assert_close(logits(continued.module), logits(plain))
    assert [n for n, _ in continued.trainable()] == [n for n, _ in model.trainable()]
    assert not (tmp_path / "second" / "base").exists()
    resumed = build(source, Lora(rank=4), added, tmp_path / "stage", tmp_path / "adapter")
    torch.testing.assert_close(logits(resumed.module), logits(plain))
    assert resumed.head.rows_KD is not None


def test_rows_are_put_back_from_a_checkpoint_in_place(tmp_path: Path) -> None:
    """What restoring the best weights of a stage does."""
    make_model("llama").save_pretrained(tmp_path / "base")
    model = build(tmp_path / "base", Lora(rank=4), SPARE, tmp_path / "stage")
    train(model, SPARE.ids)
    expected = logits(model.module)
    save_model(model.module, tmp_path / "best")
    train(model, SPARE.ids)
    assert not torch.equal(logits(model.module), expected)
    load_trained(model, tmp_path / "best")
    assert torch.equal(logits(model.module), expected)
    assert any(parameter is model.head.rows_KD for _, parameter in model.trainable())


def test_the_next_stage_may_add_more(tmp_path: Path) -> None:
    source = tmp_path / "base"
    make_model("llama").save_pretrained(source)
    first = build(source, Lora(rank=4), NEW, tmp_path / "first")
    train(first, NEW.ids)
    save_model(first.module, tmp_path / "adapter")
    more = AddedTokens((VOCABULARY + 2,), rows_before=VOCABULARY + 2)
    second = build(tmp_path / "adapter", Lora(rank=4), more, tmp_path / "second")
    assert logits(second.module).shape[-1] == VOCABULARY + 3
    torch.testing.assert_close(
        logits(second.module)[..., : VOCABULARY + 2], logits(first.module), rtol=1e-4, atol=1e-4
    )


def test_an_adapter_that_is_to_stay_cannot_get_rows(tmp_path: Path) -> None:
    make_model("llama").save_pretrained(tmp_path / "base")
    first = build(tmp_path / "base", Lora(rank=4), NEW, tmp_path / "first")
    save_model(first.module, tmp_path / "adapter")
    more = AddedTokens((VOCABULARY + 2,), rows_before=VOCABULARY + 2)
    for before in ("continue", "stack"):
        with pytest.raises(UserError, match=f"{before} keeps the adapter as it is"):
            build(tmp_path / "adapter", Lora(rank=4, before=before), more, tmp_path / "second")


@pytest.mark.parametrize("added", [NEW, SPARE], ids=["grown", "spare"])
def test_rows_beside_packed_weights(added: AddedTokens, tmp_path: Path) -> None:
    source = tmp_path / "base"
    make_model("llama").save_pretrained(source)
    adapter = QLora(type="qlora", rank=4, bits=8)
    model = build(source, adapter, added, tmp_path / "stage")
    before = {name: p.detach().clone() for name, p in model.trainable() if "token" in name}
    train(model, added.ids)
    assert len(before) == 2
    assert all(not torch.equal(p, before[n]) for n, p in model.trainable() if n in before)
    save_model(model.module, tmp_path / "adapter")
    byte_level().save_pretrained(tmp_path / "adapter")
    opened = load_artifact(str(tmp_path / "adapter"), torch.device("cpu"))
    torch.testing.assert_close(logits(opened.module), logits(model.module))


def test_all_weights_grow_in_place_and_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    source = tmp_path / "base"
    make_model("llama-tied").save_pretrained(source)
    model = build(source, Full(), NEW, tmp_path / "stage")
    train(model, NEW.ids)
    save_model(model.module, tmp_path / "checkpoint")
    assert not (tmp_path / "stage").exists()
    resumed = build(source, Full(), NEW, tmp_path / "stage", tmp_path / "checkpoint")
    assert torch.equal(logits(resumed.module), logits(model.module))


def test_fresh_rows_are_the_same_every_time(tmp_path: Path) -> None:
    make_model("llama").save_pretrained(tmp_path / "base")
    builds = [build(tmp_path / "base", Lora(rank=4), SPARE, tmp_path / "stage") for _ in "ab"]
    one, two = (dict(model.trainable()) for model in builds)
    assert all(torch.equal(one[name], two[name]) for name in one)
    start_rows(builds[0].module, SPARE)
    assert all(torch.equal(one[name], two[name]) for name in one)
