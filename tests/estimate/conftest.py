"""A folder with a model whose parameters outweigh its activations, and data for it."""

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.workload import make_tokenizer
from hone.recipe.load import LoadedRecipe, load_recipe

SHAPE = {
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "vocab_size": 4000,
    "tie_word_embeddings": True,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "bos_token_id": None,
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/ with 9 M parameters; rows.jsonl with 24 short rows, long.jsonl with longer ones."""
    place = tmp_path_factory.mktemp("estimate")
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(place / "model")
    make_tokenizer(4000).save_pretrained(place / "model")
    for name, words in (("rows", 20), ("long", 400)):
        rows = [
            {"prompt": "w1 w2 w3 ", "completion": " ".join(f"w{n + k}" for k in range(words))}
            for n in range(24)
        ]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def write_recipe(folder: Path, *overrides: str, data: str = "rows.jsonl") -> LoadedRecipe:
    """A recipe of one stage in `folder`."""
    stage = {"data": data, "steps": 4, "batch": {"samples": 8}, "precision": "fp32"}
    recipe = {"model": "model", "threads": 1, "device": "cpu", "stages": [{"sft": stage}]}
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    return load_recipe(path, overrides)
