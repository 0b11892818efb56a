"""A stage that adds its template's tokens to a base model that has none of them."""

import io
import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from hone.data.prepared import open_prepared
from hone.recipe.load import load_recipe
from hone.runs import create_run
from hone.stages.run import load_result, prepare_stage, run_recipe
from tests.workbench import write_data

TOKENS = ["<|im_start|>", "<|im_end|>"]
RECIPE = """
model: base
threads: 1
stages:
  - sft:
      data: {path: chat.jsonl, template: chatml}
      batch: {samples: 8}
      steps: 3
      learning_rate: 0.01
      precision: fp32
      add_tokens: ["<|im_start|>", "<|im_end|>"]
      adapter: {rank: 2}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Conversations, and a base model with bytes as tokens and as many embeddings."""
    write_data(tmp_path)
    alphabet = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={t: n for n, t in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    tokenizer.save_pretrained(tmp_path / "base")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def test_the_template_finds_them_and_generation_ends_with_them(folder: Path) -> None:
    loaded = load_recipe(folder / "recipe.yaml", [])
    joined, _ = prepare_stage(loaded, 0)
    (shown,) = joined.sets
    run = create_run(loaded, "run", folder / "runs")
    with run.attempt():
        run_recipe(run, console=Console(file=io.StringIO()))
    result = run.path / "stages/1-sft/model"
    tokenizer = AutoTokenizer.from_pretrained(result)
    start, end = tokenizer.convert_tokens_to_ids(TOKENS)
    assert (start, end) == (257, 258)

    # The data have them as single tokens, in `hone data show` as in the run.
    assert run.read_lock_json()["stages"]["1"]["data"]["key"] == shown.key
    prepared = open_prepared(shown.key)
    assert prepared is not None
    tokens = prepared.sample(0).segments[0].tokens.tolist()
    assert tokens.count(start) == tokens.count(end) == 2
    assert json.loads((result / "generation_config.json").read_text())["eos_token_id"] == [end, 0]

    # The base on disk is untouched, and the result stands on one of the right size.
    assert AutoModelForCausalLM.from_pretrained(folder / "base").config.vocab_size == 257
    grown = AutoModelForCausalLM.from_pretrained(run.path / "stages/1-sft/base")
    model = PeftModel.from_pretrained(grown, result).eval()
    ids = torch.tensor([[start, 80, 81, end, start]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits
        mine = load_result(run).module(input_ids=ids).logits
    assert logits.shape[-1] == 259
    assert torch.equal(logits, mine)
