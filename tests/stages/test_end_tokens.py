"""What ends an answer in training is what ends it in the saved result, for every template."""

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig

from hone.recipe.load import load_recipe
from hone.runs import create_run
from hone.sampling import load_artifact
from hone.stages.run import run_recipe
from tests.data.tokenizers import byte_level

RECIPE = """
model: base
threads: 1
stages:
  - sft: {data: {path: rows.jsonl, template: TEMPLATE}, batch: {samples: 2}, steps: 1}
"""
ENDS = {
    "auto": ["<end_of_turn>", "<|endoftext|>"],
    "chatml": ["<|im_end|>", "<|endoftext|>"],
    "llama": ["<|eot_id|>", "<|endoftext|>"],
    "alpaca": ["<|endoftext|>"],
    "own.jinja": ["<|eot_id|>", "<|endoftext|>"],
}
OWN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}END{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model with a template of its own, and rows of instructions."""
    folder = tmp_path_factory.mktemp("ends")
    tokenizer = byte_level(begin=True, chat_template=OWN.replace("END", "<end_of_turn>"))
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), intermediate_size=16, **shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    rows = [{"instruction": "Add.", "input": f"{n} and 1", "output": f"{n + 1}"} for n in range(4)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "own.jinja").write_text(OWN.replace("END", "<|eot_id|>"))
    return folder


@pytest.mark.parametrize("template", ENDS)
def test_end_tokens_reach_the_generation_config(folder: Path, template: str) -> None:
    (folder / "recipe.yaml").write_text(RECIPE.replace("TEMPLATE", template))
    name = template.partition(".")[0]
    run = create_run(load_recipe(folder / "recipe.yaml"), name, folder / "runs")
    with run.attempt():
        run_recipe(run, console=Console(file=io.StringIO()))
    model = run.stage_folder(0, "sft") / "model"
    tokenizer = AutoTokenizer.from_pretrained(model)
    ends = GenerationConfig.from_pretrained(model).eos_token_id
    assert tokenizer.convert_ids_to_tokens(ends) == ENDS[template]
    artifact = load_artifact(str(model), torch.device("cpu"))
    assert artifact.rendering.end_token_ids == ends == artifact.renderer.end_token_ids
    asked = [{"role": "user", "content": "Add."}]
    own = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    assert artifact.renderer.prompt(asked) == own, "the saved template is transformers' own"
