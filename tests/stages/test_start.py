"""Where a stage starts: adapters continued, merged, stacked, on packed weights, and full ones."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from hone.adapters import add_lora, open_adapter
from hone.device import Precision
from hone.errors import UserError
from hone.extras import EXTRAS, Extra
from hone.models import load_trained, read_quantised, read_weights, save_model
from hone.recipe.data import Data
from hone.recipe.schema import Recipe, Sft, Stage
from hone.recipe.training import AdamW8bit, Full, Lora, LowRank, QLora
from hone.sampling import read_base
from hone.stages.run import check_extras
from hone.stages.start import Start, build_model, check_adapters
from tests.tiny import make_model

FP32 = Precision(torch.float32, torch.float32, "for the test")
IDS = torch.tensor([[5, 9, 13, 7, 22, 41]])


@pytest.fixture
def chain(tmp_path: Path) -> tuple[Path, Path, torch.Tensor]:
    """A base folder, an adapter folder on it, and the logits of both together."""
    return make_chain(tmp_path, "llama", Lora(rank=4))


def make_chain(folder: Path, name: str, settings: LowRank) -> tuple[Path, Path, torch.Tensor]:
    base, adapter = folder / "base", folder / "adapter"
    make_model(name).save_pretrained(base)
    if isinstance(settings, QLora):
        weights = read_quantised(str(base), settings.bits, torch.float32, torch.device("cpu"))
    else:
        weights = read_weights(str(base), torch.float32)
    model = add_lora(weights, settings)
    train(model, seed=1)
    save_model(model, adapter)
    return base, adapter, logits(model)


def train(module, seed: int) -> None:
    """Move all that is trained, as an update would."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * (0.3 if "lora_B" in name else 0.05))


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def build(start: Start, adapter: LowRank | Full, folder: Path, checkpoint: Path | None = None):
    return build_model(
        start,
        checkpoint,
        adapter,
        folder=folder,
        precision=FP32,
        device=torch.device("cpu"),
        layout="padded",
        seed=(0, 1),
    )


def test_the_same_adapter_is_continued(chain, tmp_path: Path) -> None:
    base, adapter, expected = chain
    model = build(Start.at(str(adapter)), Lora(rank=4), tmp_path / "stage")
    torch.testing.assert_close(logits(model.module), expected)
    assert not (tmp_path / "stage" / "base").exists()
    assert model.module.peft_config["default"].base_model_name_or_path == str(base)


def test_another_adapter_stands_on_the_merged_model_and_names_it(chain, tmp_path: Path) -> None:
    _, adapter, expected = chain
    model = build(Start.at(str(adapter)), Lora(rank=8), tmp_path / "stage")
    torch.testing.assert_close(logits(model.module), expected, rtol=1e-4, atol=1e-4)
    merged = tmp_path / "stage" / "base"
    assert model.module.peft_config["default"].base_model_name_or_path == str(merged)
    torch.testing.assert_close(
        logits(read_weights(str(merged), torch.float32)), expected, rtol=1e-4, atol=1e-4
    )


def test_full_weights_start_from_the_merged_model(chain, tmp_path: Path) -> None:
    base, adapter, expected = chain
    model = build(Start.at(str(adapter)), Full(), tmp_path / "stage")
    torch.testing.assert_close(logits(model.module), expected, rtol=1e-4, atol=1e-4)
    assert all(parameter.requires_grad for parameter in model.module.parameters())
    # The negative control: a chain that dropped the adapter is far away.
    dropped = logits(read_weights(str(base), torch.float32))
    assert (dropped - expected).abs().max() > 0.1


def test_fresh_adapters_are_drawn_from_the_seed(chain, tmp_path: Path) -> None:
    base, _, _ = chain
    models = [build(Start.at(str(base)), Lora(rank=4), tmp_path / "stage") for _ in range(2)]
    one, two = (dict(model.trainable()) for model in models)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_saving_twice_gives_the_same_bytes(chain, tmp_path: Path) -> None:
    _, adapter, _ = chain
    model = PeftModel.from_pretrained(read_weights(str(chain[0]), torch.float32), str(adapter))
    save_model(model, tmp_path / "again")
    for path in sorted(adapter.iterdir()):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_continuing_what_differs_says_what(chain, tmp_path: Path) -> None:
    _, adapter, expected = chain
    start = Start.at(str(adapter))
    model = build(start, Lora(rank=4, before="continue"), tmp_path / "stage")
    torch.testing.assert_close(logits(model.module), expected)
    for settings, words in [
        (Lora(rank=8, before="continue"), "rank was 4 and is 8"),
        (Lora(rank=4, alpha=8.5, before="continue"), "alpha was 32 and is 8.5"),
        (Lora(rank=4, rslora=True, before="continue"), "rslora was false and is true"),
        (Lora(rank=4, dora=True, before="continue"), "dora was false and is true"),
        (QLora(rank=4, before="continue"), "bits was none and is 4"),
        (Lora(rank=4, layers=[0], before="continue"), "on 14 layers instead of 7"),
    ]:
        with pytest.raises(UserError, match=words) as caught:
            build(start, settings, tmp_path / "stage")
        assert caught.value.exit_code == 2


def test_merging_can_be_asked_for(chain, tmp_path: Path) -> None:
    _, adapter, expected = chain
    model = build(Start.at(str(adapter)), Lora(rank=4, before="merge"), tmp_path / "stage")
    torch.testing.assert_close(logits(model.module), expected, rtol=1e-4, atol=1e-4)
    assert (tmp_path / "stage" / "base").is_dir()
    assert model.remarks == ["the adapter before is merged into the base in fp32"]
    assert all(not p.any() for name, p in model.trainable() if "lora_B" in name)


@pytest.mark.parametrize("before", ["auto", "merge"])
def test_a_merged_dora_is_the_dora(before: str, tmp_path: Path) -> None:
    _, adapter, expected = make_chain(tmp_path, "gpt2", Lora(rank=4, dora=True))
    model = build(Start.at(str(adapter)), Lora(rank=3, before=before), tmp_path / "stage")
    torch.testing.assert_close(logits(model.module), expected, rtol=1e-4, atol=1e-4)


STACKED = {
    "the same again": ("llama", Lora(rank=4), Lora(rank=4, before="stack")),
    "another rank and scale": (
        "llama",
        Lora(rank=4, rslora=True),
        Lora(rank=3, alpha=7, before="stack"),
    ),
    "on top of another layer": (
        "llama",
        Lora(rank=4, targets=["q_proj"]),
        Lora(rank=2, targets=["q_proj", "up_proj"], layers=[1], rslora=True, before="stack"),
    ),
    "transposed weights": ("gpt2", Lora(rank=4), Lora(rank=2, targets=["o_proj"], before="stack")),
    "packed weights": ("llama", QLora(rank=4), QLora(rank=2, before="stack")),
    "packed transposed weights": (
        "gpt2",
        QLora(rank=4, bits=8),
        QLora(rank=2, bits=8, dropout=0.2, before="stack"),
    ),
}


@pytest.mark.parametrize(("name", "first", "second"), STACKED.values(), ids=STACKED)
def test_a_stacked_adapter_is_saved_as_one(
    name: str, first: LowRank, second: LowRank, tmp_path: Path
) -> None:
    """It starts from what was there, moves alone, is one adapter to PEFT, and resumes exactly."""
    base, adapter, expected = make_chain(tmp_path, name, first)
    start, result = Start.at(str(adapter)), tmp_path / "result"
    model = build(start, second, tmp_path / "stage")
    torch.testing.assert_close(logits(model.module), expected)
    kept = {n: p.clone() for n, p in model.module.named_parameters() if not p.requires_grad}
    assert {n.split(".")[-2] for n, _ in model.trainable()} == {"default"}
    assert {p.dtype for _, p in model.trainable()} == {torch.float32}
    train(model.module, seed=2)
    moved = logits(model.module)
    assert (moved - expected).abs().max() > 0.1
    parameters = dict(model.module.named_parameters())
    assert all(torch.equal(parameters[n], value) for n, value in kept.items())

    result.mkdir()
    save_model(model.module, result)
    folder = read_base(str(base), result, torch.device("cpu"), torch.float32)
    torch.testing.assert_close(logits(open_adapter(folder, result)), moved, rtol=1e-4, atol=1e-4)
    if not isinstance(first, QLora):  # with plain transformers and PEFT
        plain = PeftModel.from_pretrained(read_weights(str(base), torch.float32), str(result))
        assert list(plain.peft_config) == ["default"]
        torch.testing.assert_close(logits(plain), moved, rtol=1e-4, atol=1e-4)
    assert Start.at(str(result)).base == str(base)

    train(model.module, seed=3)
    load_trained(model, result)
    assert torch.equal(logits(model.module), moved)
    again = build(start, second, tmp_path / "stage", checkpoint=result)
    for (one, found), (other, wanted) in zip(again.trainable(), model.trainable(), strict=True):
        assert one == other and torch.equal(found, wanted)
    assert torch.equal(logits(again.module), moved)
    save_model(again.module, tmp_path / "again")
    for path in sorted(result.iterdir()):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_a_stack_can_be_stacked_on_and_merged(chain, tmp_path: Path) -> None:
    _, adapter, _ = chain
    model = build(Start.at(str(adapter)), Lora(rank=3, before="stack"), tmp_path / "one")
    train(model.module, seed=2)
    save_model(model.module, tmp_path / "two-in-one")
    expected = logits(model.module)
    for before in ("stack", "merge"):
        settings = Lora(rank=2, before=before)
        found = build(Start.at(str(tmp_path / "two-in-one")), settings, tmp_path / before)
        torch.testing.assert_close(logits(found.module), expected, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_stacked_is_refused(tmp_path: Path) -> None:
    _, dora, _ = make_chain(tmp_path / "dora", "llama", Lora(rank=4, dora=True))
    with pytest.raises(UserError, match="is no sum of low-rank updates"):
        build(Start.at(str(dora)), Lora(rank=4, before="stack"), tmp_path / "stage")
    _, packed, _ = make_chain(tmp_path / "packed", "llama", QLora(rank=4))
    with pytest.raises(UserError, match="beside weights of 4 bits and this one has none"):
        build(Start.at(str(packed)), Lora(rank=4, before="stack"), tmp_path / "stage")
    assert not (tmp_path / "stage").exists()


@pytest.mark.parametrize("before", ["continue", "stack"])
def test_without_an_adapter_there_is_nothing_to_go_on_with(
    chain, before: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"before: {before} needs an adapter"):
        build(Start.at(str(chain[0])), Lora(before=before), tmp_path / "stage")


@pytest.mark.parametrize("kind", [{"rslora": True}, {"dora": True}, {"layers": [0]}])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_every_kind_is_resumed_and_loaded_as_it_was(kind, name: str, tmp_path: Path) -> None:
    base, adapter, expected = make_chain(tmp_path, name, Lora(rank=4, **kind))
    plain = PeftModel.from_pretrained(read_weights(str(base), torch.float32), str(adapter))
    torch.testing.assert_close(logits(plain), expected, rtol=1e-4, atol=1e-4)
    again = build(Start.at(str(base)), Lora(rank=4, **kind), tmp_path / "stage", adapter)
    torch.testing.assert_close(logits(again.module), expected, rtol=1e-4, atol=1e-4)
    save_model(again.module, tmp_path / "again")
    for path in sorted(adapter.iterdir()):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_on_packed_weights(name: str, bits: int, tmp_path: Path) -> None:
    """The result opens on the same packed base; on the base's own weights it is near."""
    settings = QLora(rank=4, bits=bits)
    base, adapter, expected = make_chain(tmp_path, name, settings)
    fresh = build(Start.at(str(base)), settings, tmp_path / "stage")
    assert {p.dtype for _, p in fresh.trainable()} == {torch.float32}
    assert fresh.module.peft_config["default"].base_model_name_or_path == str(base)
    for source, checkpoint in ((base, adapter), (adapter, None)):
        found = build(Start.at(str(source)), settings, tmp_path / "stage", checkpoint)
        torch.testing.assert_close(logits(found.module), expected, rtol=1e-4, atol=1e-4)
    opened = read_base(str(base), adapter, torch.device("cpu"), torch.float32)
    assert torch.equal(logits(open_adapter(opened, adapter)), expected)
    plain = PeftModel.from_pretrained(read_weights(str(base), torch.float32), str(adapter))
    distance = (logits(plain) - expected).norm() / expected.norm()
    assert 1e-4 < distance < 0.5
    # Merged, it stands on the base's own weights, and that is said.
    merged = build(Start.at(str(adapter)), QLora(rank=8, bits=bits), tmp_path / "merged")
    assert "packed weights" in merged.remarks[-1]
    full = build(Start.at(str(adapter)), Full(), tmp_path / "full")
    assert "packed weights" in full.remarks[-1]
    torch.testing.assert_close(logits(full.module), logits(plain), rtol=1e-4, atol=1e-4)
    on_disk = read_weights(str(tmp_path / "merged" / "base"), torch.float32)
    torch.testing.assert_close(logits(on_disk), logits(plain), rtol=1e-4, atol=1e-4)


def test_full_weights_of_chosen_blocks(chain, tmp_path: Path) -> None:
    base, _, _ = chain
    model = build(Start.at(str(base)), Full(layers=[-1]), tmp_path / "stage")
    logits_of = model.module(input_ids=IDS).logits
    logits_of.sum().backward()
    moved = {name for name, p in model.module.named_parameters() if p.grad is not None}
    assert moved == {name for name, _ in model.trainable()}
    assert moved and all(".layers.1." in name for name in moved)


def test_the_stages_of_a_recipe_are_checked_without_weights(chain) -> None:
    base, adapter, _ = chain
    with torch.device("meta"):
        model = make_model("llama", torch.float32)
    on_base, on_adapter = Start.at(str(base)), Start.at(str(adapter))
    go_on, on_top = Lora(rank=4, before="continue"), Lora(rank=2, before="stack")
    check_adapters(model, on_adapter, [go_on, on_top])
    check_adapters(model, on_base, [Lora(rank=4), go_on, on_top])
    check_adapters(model, None, [Full(layers=[0, -2]), Lora(layers=[1])])
    for start, stages, words in [
        (on_base, [go_on], "continue needs an adapter"),
        (None, [Full(), on_top], "stack needs an adapter"),
        (on_adapter, [Full(), go_on], "continue needs an adapter"),
        (on_adapter, [on_top, go_on], "rank was 6 and is 4"),
        (on_base, [Lora(rank=4, dora=True), on_top], "no sum of low-rank updates"),
        (on_base, [Full(layers=[2])], "no block 2"),
        (on_base, [Lora(layers=[-3])], "no block -3"),
    ]:
        with pytest.raises(UserError, match=words):
            check_adapters(model, start, stages)


@pytest.mark.parametrize(
    "settings",
    [QLora(rank=2), QLora(rank=2, bits=8), Lora(rank=2, dora=True), QLora(rank=2, dora=True)],
    ids=str,
)
def test_every_kind_computes_and_learns_in_bf16(settings: LowRank, tmp_path: Path) -> None:
    base, adapter, expected = make_chain(tmp_path, "qwen3", settings)
    bf16 = Precision(torch.bfloat16, torch.bfloat16, "for the test")
    keywords = {"folder": tmp_path / "stage", "device": torch.device("cpu"), "layout": "auto"}
    start = Start.at(str(base))
    model = build_model(start, adapter, settings, precision=bf16, seed=(0, 1), **keywords)
    assert {p.dtype for _, p in model.trainable()} == {torch.float32}
    assert model.layout == "forest", model.layout_reason
    model.causal.set_attn_implementation("sdpa")
    assert (logits(model.module).float() - expected).norm() < 0.1 * expected.norm()
    model.module.train()(input_ids=IDS).logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for _, p in model.trainable())


@pytest.mark.parametrize(
    "wish", [{"adapter": QLora()}, {"optimizer": AdamW8bit()}], ids=["qlora", "adamw_8bit"]
)
def test_a_missing_package_is_named_before_anything_is_done(wish, monkeypatch) -> None:
    recipe = Recipe(model="x", stages=[Stage(sft=Sft(data=Data(path="x"), **wish))])
    check_extras(recipe)
    monkeypatch.setitem(EXTRAS, "bitsandbytes", Extra(("no_such_module",), ""))
    with pytest.raises(UserError, match="needs no_such_module, which is not installed") as caught:
        check_extras(recipe)
    assert caught.value.hint == "pip install 'hone-llm[bitsandbytes]'"
