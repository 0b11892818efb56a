"""Faults of model folders, each caused for real: `hone check` and `hone run` say the same, before
anything is trained.
"""

import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    PhiConfig,
)

from hone.adapters import add_lora
from hone.architecture import check_model
from hone.data.tokenizer_training import train_tokenizer
from hone.errors import UserError
from hone.estimate.fitting import check_memory
from hone.model_files import CONFIG, INDEX, PICKLE, PICKLE_INDEX, WHOLE, Trust
from hone.models import load_tokenizer, read_weights, save_model
from hone.recipe.load import LoadedRecipe, load_recipe
from hone.recipe.training import Lora
from hone.runs import create_run
from hone.sampling import load_artifact
from hone.stages.run import check_recipe, run_recipe
from tests.tiny import FAMILIES, make_model

TEXTS = ["One and two are three.", "Two and two are four.", "Nobody counts to ten."] * 20
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with its tokenizer, in two shards."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    tokenizer = train_tokenizer(TEXTS, 300)
    torch.manual_seed(0)
    llama(len(tokenizer)).save_pretrained(folder, max_shard_size="30KB")
    tokenizer.save_pretrained(folder)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


def llama(vocabulary: int, layers: int = 2, tied: bool = False):
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    """A copy that may be broken."""
    return shutil.copytree(whole, tmp_path / "model")


def recipe(model: Path, *overrides: str) -> LoadedRecipe:
    folder = model.parent
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    (folder / "recipe.yaml").write_text(
        f"model: {model.name}\nthreads: 1\nstages:\n"
        "  - sft: {data: rows.jsonl, steps: 1, precision: fp32, adapter: {rank: 2}}\n"
    )
    return load_recipe(folder / "recipe.yaml", list(overrides))


def faults(loaded: LoadedRecipe) -> list[str]:
    """The errors of `hone check`."""
    return [f.message for f in check_recipe(loaded) if f.severity == "error"]


def refused(model: Path, *overrides: str) -> UserError:
    """The one error of `hone check`, which `hone run` ends with, too, before any training."""
    loaded = recipe(model, *overrides)
    errors = set(faults(loaded))
    run = create_run(loaded, "run", model.parent / "runs")
    with pytest.raises(UserError) as caught, run.attempt():
        run_recipe(run, console=Console(file=io.StringIO()))
    assert errors == {caught.value.message}
    assert not list(run.path.rglob("*.safetensors"))
    return caught.value


def shards(model: Path) -> list[Path]:
    return sorted(model.glob("model-*.safetensors"))


def one_file(model: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """The weights in a single file, with a change of their names or shapes."""
    tensors = {name: tensor for shard in shards(model) for name, tensor in load_file(shard).items()}
    change(tensors)
    for shard in shards(model):
        shard.unlink()
    (model / INDEX).unlink()
    save_file(tensors, model / WHOLE, metadata={"format": "pt"})


def to_pickle(model: Path) -> None:
    one_file(model, lambda tensors: torch.save(tensors, model / PICKLE))
    (model / WHOLE).unlink()


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def cut(path: Path, size: int) -> None:
    os.truncate(path, size)


def leave_out_of_shard(model: Path) -> None:
    tensors = load_file(shards(model)[1])
    tensors.pop(min(tensors))
    save_file(tensors, shards(model)[1], metadata={"format": "pt"})


def no_tokenizer(model: Path) -> None:
    for path in model.glob("tokenizer*"):
        path.unlink()


def other_vocabulary(model: Path) -> None:
    llama(280).save_pretrained(model)
    for path in [*shards(model), model / INDEX]:
        path.unlink()


def as_bert(model: Path) -> None:
    config = BertConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    BertForMaskedLM(config).save_pretrained(model)
    for path in [*shards(model), model / INDEX]:
        path.unlink()


def with_adapter(model: Path) -> None:
    save_model(add_lora(read_weights(str(model), torch.float32), Lora(rank=2)), model)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda m: (m / CONFIG).unlink(), "config.json is missing"),
    "torn config": (lambda m: cut(m / CONFIG, 30), "config.json cannot be read"),
    "no weights": (
        lambda m: [path.unlink() for path in [*shards(m), m / INDEX]],
        "no weights are in its folder",
    ),
    "no shard": (lambda m: shards(m)[1].unlink(), "names model-00002-of-"),
    "shard of another": (leave_out_of_shard, "which model.safetensors.index.json says it has"),
    "cut-off tensors": (
        lambda m: cut(shards(m)[0], shards(m)[0].stat().st_size - 100),
        "it is cut off",
    ),
    "cut-off header": (lambda m: cut(shards(m)[0], 20), "(20 bytes) has no whole header"),
    "no safetensors": (
        lambda m: shards(m)[0].write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
        "has no whole header",
    ),
    "missing tensor": (
        lambda m: one_file(m, lambda t: t.pop("model.layers.1.self_attn.q_proj.weight")),
        "model.layers.1.self_attn.q_proj.weight is missing",
    ),
    "missing head": (
        lambda m: one_file(m, lambda t: t.pop("lm_head.weight")),
        "lm_head.weight is missing",
    ),
    "other shape": (
        lambda m: one_file(m, lambda t: t.update({"model.norm.weight": torch.ones(8)})),
        "model.norm.weight is 8 and not 16",
    ),
    "fewer layers": (
        lambda m: change_json(m / CONFIG, num_hidden_layers=1),
        "model.layers.1.input_layernorm.weight has no place",
    ),
    "bias nobody adds": (
        lambda m: one_file(
            m, lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(16)})
        ),
        "model.layers.0.self_attn.q_proj.bias has no place",
    ),
    "no tokenizer": (no_tokenizer, "no tokenizer is in its folder"),
    "tokenizer of another": (other_vocabulary, "tokens and the model 280 embeddings"),
    "two sets of weights": (
        lambda m: save_file(load_file(shards(m)[0]), m / WHOLE, metadata={"format": "pt"}),
        "model.safetensors and model.safetensors.index.json are of different models",
    ),
    "model and adapter": (with_adapter, "of different models"),
    "no causal model": (as_bert, "is no causal language model: its config.json is of a Bert"),
    "unknown model": (lambda m: change_json(m / CONFIG, model_type="lama"), "lama"),
    "pickle": (to_pickle, "only as pytorch_model.bin"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_clear_error_before_training(name: str, model: Path) -> None:
    cause, words = FAULTS[name]
    cause(model)
    if name == "model and adapter":  # an adapter's folder is read as one, so its base is asked for
        with pytest.raises(UserError, match=words):
            check_model(str(model))
        return
    error = refused(model)
    assert words in error.message
    assert error.hint


def test_a_whole_folder_is_fine_in_shards_and_in_one_file(model: Path) -> None:
    assert faults(recipe(model)) == []
    one_file(model, lambda tensors: None)
    assert faults(recipe(model)) == []


@pytest.mark.parametrize("name", FAMILIES)
def test_whole_models_of_all_families_are_fine(name: str, tmp_path: Path) -> None:
    """Tied heads, joined projections and buffers make no fault."""
    make_model(name).save_pretrained(tmp_path)
    check_model(str(tmp_path))
    read_weights(str(tmp_path), torch.float32)


def test_what_other_models_have_besides_is_left_out(tmp_path: Path) -> None:
    make_model("llama-tied").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WHOLE)
    besides = {
        "score.weight": torch.ones(2, 32),
        "vision_tower.patch.weight": torch.ones(3),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "model.layers.0.self_attn.masked_bias": torch.ones(1),
        "lm_head.weight": tensors["model.embed_tokens.weight"].clone(),
    }
    save_file(tensors | besides, tmp_path / WHOLE, metadata={"format": "pt"})
    check_model(str(tmp_path))
    read_weights(str(tmp_path), torch.float32)


def test_loading_says_what_the_check_says(model: Path) -> None:
    """A folder that changed after the check is not completed with random numbers."""
    one_file(model, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(UserError, match=r"model\.norm\.weight is missing"):
        read_weights(str(model), torch.float32)


def test_a_bidirectional_model_is_found_by_what_it_computes(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, is_decoder=False,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    from tests.test_models import joined

    module = read_weights(str(tmp_path), torch.float32)
    with pytest.raises(UserError, match="depends on later tokens"):
        joined(module)


def test_a_new_model_with_fewer_embeddings_than_tokens(model: Path) -> None:
    new = "{architecture: llama, config: {vocab_size: 270}, tokenizer: model}"
    loaded = recipe(model, f"model={new}")
    errors = faults(loaded)
    assert len(errors) == 1 and "tokens and the model 270 embeddings" in errors[0]


def test_rows_beside_a_head_with_a_bias_are_refused_by_the_check(model: Path) -> None:
    config = PhiConfig(
        vocab_size=300, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    for path in [*shards(model), model / INDEX]:
        path.unlink()
    AutoModelForCausalLM.from_config(config).save_pretrained(model)
    (fault,) = faults(recipe(model, "sft.add_tokens=[<call>]"))
    assert "head of this model has a bias" in fault
    whole = recipe(model, "sft.add_tokens=[<call>]", "sft.adapter={type: full}")
    assert faults(whole) == []


# --- Pickle --------------------------------------------------------------------------------------


def test_pickle_is_loaded_where_the_recipe_trusts_it(model: Path) -> None:
    expected = read_weights(str(model), torch.float32).state_dict()
    to_pickle(model)
    assert faults(recipe(model, "trust=[pickle]")) == []
    found = read_weights(str(model), torch.float32, Trust(pickle=True)).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_missing_shard_of_pickled_weights(model: Path) -> None:
    to_pickle(model)
    (model / PICKLE).rename(model / "pytorch_model-1.bin")
    weight_map = {"model.norm.weight": "pytorch_model-1.bin", "lm_head.weight": "away.bin"}
    (model / PICKLE_INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert "only as pytorch_model.bin.index.json" in refused(model).message
    shutil.rmtree(model.parent / "runs")
    assert "names away.bin" in refused(model, "trust=[pickle]").message


class Malicious:
    """What runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_even_trusted_pickle_runs_no_code_while_it_is_read(model: Path, tmp_path: Path) -> None:
    to_pickle(model)
    torch.save({"model.norm.weight": Malicious(tmp_path / "ran")}, model / PICKLE)
    with pytest.raises(UserError, match="cannot load the model"):
        read_weights(str(model), torch.float32, Trust(pickle=True))
    assert not (tmp_path / "ran").exists()


def test_the_hinted_command_makes_safetensors(model: Path) -> None:
    expected = read_weights(str(model), torch.float32).state_dict()
    to_pickle(model)
    hint = refused(model).hint
    assert hint and "trust: [pickle]" in hint
    python, *words = shlex.split(hint.partition("once: ")[2])
    assert python == "python"
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    found = read_weights(str(model), torch.float32).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# --- Adapters ------------------------------------------------------------------------------------


@pytest.fixture
def adapter(model: Path, tmp_path: Path) -> Path:
    """An adapter with a tokenizer, on `model`."""
    folder = tmp_path / "adapter"
    save_model(add_lora(read_weights(str(model), torch.float32), Lora(rank=2)), folder)
    load_tokenizer(str(model)).save_pretrained(folder)
    return folder


def test_an_adapter_whose_base_is_gone(adapter: Path, model: Path) -> None:
    assert faults(recipe(adapter)) == []
    shutil.rmtree(model)
    assert f'stands on the base model "{model}", which cannot be found' in refused(adapter).message
    with pytest.raises(UserError, match="which cannot be found"):
        load_artifact(str(adapter), CPU)


def test_an_adapter_that_names_no_base(adapter: Path) -> None:
    change_json(adapter / "adapter_config.json", base_model_name_or_path=None)
    assert "does not say what it stands on" in refused(adapter).message


def test_a_cut_off_adapter(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    cut(path, path.stat().st_size - 1)
    assert "it is cut off" in refused(adapter).message


def test_a_pickled_adapter_needs_trust_everywhere(adapter: Path) -> None:
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    assert "only as adapter_model.bin" in refused(adapter).message
    with pytest.raises(UserError, match="only as adapter_model"):
        load_artifact(str(adapter), CPU)
    load_artifact(str(adapter), CPU, trust=Trust(pickle=True))


@pytest.mark.parametrize("layers", [1, 3], ids=["too small", "too large"])
def test_an_adapter_of_another_model(adapter: Path, model: Path, layers: int) -> None:
    other = llama(300, layers=layers)
    if layers == 1:
        shutil.rmtree(model)
    else:
        for path in [*shards(model), model / INDEX]:
            path.unlink()
    other.save_pretrained(model)
    with pytest.raises(UserError, match="does not fit the model"):
        load_artifact(str(adapter), CPU)


def test_a_special_token_beyond_the_embeddings_is_refused_only_where_data_hold_it(
    model: Path,
) -> None:
    """As Gemma 3 1B has one for images; its template and the data do not write it."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows_of_model = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(model)
    assert faults(recipe(model)) == []
    rows = [{"text": TEXTS[0]}, {"text": "look <image> here"}]
    (model.parent / "images.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    error = refused(model, "sft.data=images.jsonl")
    assert f"images.jsonl:2 holds the token {rows_of_model}" in error.message
    assert f"the model has {rows_of_model} embeddings" in error.message
    tokenizer.chat_template = "{% for m in messages %}<image>{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(model)
    (error,) = set(faults(recipe(model)))
    assert f"the tokenizer has {rows_of_model + 1} tokens" in error


def test_weights_that_the_memory_cannot_hold_are_found_by_the_check(model: Path) -> None:
    config = "{hidden_size: 4096, intermediate_size: 11008, num_attention_heads: 32}"
    new = f"model={{architecture: llama, config: {config}, tokenizer: model}}"
    with pytest.raises(UserError, match=r"take at least .* and the run may hold 4\.0 GB"):
        check_memory(recipe(model, new, "memory=4GB", "sft.adapter=full"), with_data=False)
