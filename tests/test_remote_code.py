"""A model that comes with Python files: not run unless the recipe trusts it, and usable from then
on, its results included. A file written when the code runs tells whether it did.
"""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from transformers import AutoModelForCausalLM, LlamaConfig, dynamic_module_utils

from hone.data.tokenizer_training import train_tokenizer
from hone.errors import UserError
from hone.recipe.load import LoadedRecipe, load_recipe
from hone.runs import create_run
from hone.stages.run import check_recipe, load_result, run_recipe
from tests.workbench import write_data

CONFIGURATION = """
from pathlib import Path
from transformers import LlamaConfig

Path("WITNESS").touch()

class CountingConfig(LlamaConfig):
    model_type = "counting"
"""
MODEL = """
from transformers import LlamaForCausalLM
from .configuration_counting import CountingConfig

class CountingForCausalLM(LlamaForCausalLM):
    config_class = CountingConfig
"""
TOKENIZER = """
from pathlib import Path
from transformers import PreTrainedTokenizerFast

Path("WITNESS").touch()

class CountingTokenizer(PreTrainedTokenizerFast):
    pass
"""
RECIPE = """
model: counting
seed: 5
threads: 1
stages:
  - sft:
      data: chat.jsonl
      batch: {samples: 8}
      steps: 2
      precision: fp32
      adapter: ADAPTER
"""


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """transformers copies the code it runs to a place of this file's own."""
    with pytest.MonkeyPatch.context() as patch:
        place = str(tmp_path_factory.mktemp("modules"))
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", place)
        patch.setattr(sys, "path", list(sys.path))
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Data, and the model `counting`, whose classes are in its own folder."""
    write_data(tmp_path)
    model = tmp_path / "counting"
    tokenizer = train_tokenizer([row["text"] for row in read(tmp_path / "text.jsonl")], 320)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(model)
    tokenizer.save_pretrained(model)
    change(
        model / "config.json",
        model_type="counting",
        architectures=["CountingForCausalLM"],
        auto_map={
            "AutoConfig": "configuration_counting.CountingConfig",
            "AutoModelForCausalLM": "modeling_counting.CountingForCausalLM",
        },
    )
    witness = str(tmp_path / "witness")
    for name, code in (("configuration", CONFIGURATION), ("modeling", MODEL)):
        (model / f"{name}_counting.py").write_text(code.replace("WITNESS", witness))
    return tmp_path


def own_tokenizer(folder: Path) -> None:
    model = folder / "counting"
    code = TOKENIZER.replace("WITNESS", str(folder / "witness"))
    (model / "tokenization_counting.py").write_text(code)
    change(
        model / "tokenizer_config.json",
        tokenizer_class="CountingTokenizer",
        auto_map={"AutoTokenizer": [None, "tokenization_counting.CountingTokenizer"]},
    )


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def recipe(folder: Path, adapter: str, trust: str = "") -> LoadedRecipe:
    (folder / "recipe.yaml").write_text(RECIPE.replace("ADAPTER", adapter) + trust)
    return load_recipe(folder / "recipe.yaml", [])


def refused(loaded: LoadedRecipe) -> UserError:
    """The one error of `hone check`, which `hone run` ends with, too."""
    errors = {f.message for f in check_recipe(loaded) if f.severity == "error"}
    run = create_run(loaded, "run", loaded.folder / "runs")
    with pytest.raises(UserError) as caught, run.attempt():
        run_recipe(run, console=Console(file=io.StringIO()))
    assert caught.value.message in errors
    return caught.value


def test_code_is_refused_and_not_run(folder: Path) -> None:
    error = refused(recipe(folder, "{type: full}"))
    assert "comes with code of its own (config.json: auto_map)" in error.message
    assert error.hint and "trust: [remote_code]" in error.hint
    assert not (folder / "witness").exists()


def test_a_tokenizers_code_is_refused_and_not_run(folder: Path) -> None:
    own_tokenizer(folder)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "auto_map": {}}
    change(folder / "counting" / "config.json", **config)
    error = refused(recipe(folder, "{type: full}"))
    assert "comes with code of its own (tokenizer_config.json: auto_map)" in error.message
    assert not (folder / "witness").exists()


def test_code_that_is_not_needed_is_not_run(folder: Path) -> None:
    """Where transformers has the architecture itself, its own classes are used."""
    change(folder / "counting" / "config.json", model_type="llama")
    assert not any(f.severity == "error" for f in check_recipe(recipe(folder, "{type: full}")))
    assert not (folder / "witness").exists()


@pytest.mark.parametrize("adapter", ["{type: full}", "{rank: 2}"], ids=["full", "lora"])
def test_trusted_code_is_used_and_the_result_can_be_loaded(folder: Path, adapter: str) -> None:
    own_tokenizer(folder)
    loaded = recipe(folder, adapter, "trust: [remote_code]\n")
    assert [f.message for f in check_recipe(loaded) if f.severity == "error"] == []
    assert (folder / "witness").exists()
    run = create_run(loaded, "run", folder / "runs")
    with run.attempt():
        run_recipe(run, console=Console(file=io.StringIO()))
    result = load_result(run)
    assert type(
        result.module.get_base_model() if "rank" in adapter else result.module
    ).__name__ == ("CountingForCausalLM")
    assert type(result.renderer.tokenizer).__name__ == "CountingTokenizer"
    assert len(result.generate([[5, 6, 7]], max_new_tokens=3)) == 1
    names = {path.name for path in (run.path / "stages/1-sft/model").glob("*.py")}
    own = {"configuration_counting.py", "modeling_counting.py"} if "full" in adapter else set()
    assert names == {"tokenization_counting.py"} | own
