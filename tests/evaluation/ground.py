"""Random models of plain text and of chats, and questions for them."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from hone.data.chat import CHATML
from hone.sampling import Artifact
from tests.data.tokenizers import byte_level


def write_model(folder: Path, plain: bool, template: str = CHATML) -> Path:
    """A random model of plain text or of chats."""
    torch.manual_seed(0)
    tokenizer = byte_level(chat_template=None if plain else template)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        intermediate_size=16,
        initializer_range=0.3,  # so that answers differ
        **shape,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sums(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Sums as prompt, completion, and their kind; some prompts are longer than others."""
    draw = random.Random(seed)
    pairs = [(draw.randint(0, 99), draw.randint(0, 9) * 10 ** (n % 4)) for n in range(count)]
    return [
        {
            "prompt": f"{a} + {b} =",
            "completion": f" {a + b}",
            "kind": "large" if b > 99 else "small",
        }
        for a, b in pairs
    ]


def logprobs_alone(artifact: Artifact, before: list[int], ids: list[int]) -> list[float]:
    """The log-probability of each token behind `before`, from a plain forward of one text."""
    with torch.no_grad():
        logits = artifact.module(input_ids=torch.tensor([before + ids])).logits[0]
    logprobs = logits.double().log_softmax(-1)
    return [logprobs[len(before) + n - 1, token].item() for n, token in enumerate(ids)]


def rendered(
    artifact: Artifact, prompt: str, answer: str, end: bool
) -> tuple[list[int], list[int]]:
    """(prompt, answer) as the model reads them, put together by hand."""
    encode = artifact.renderer.tokenizer
    ids = encode(answer, add_special_tokens=False)["input_ids"]
    if artifact.rendering.plain:
        before, ends = encode(prompt, add_special_tokens=False)["input_ids"], [encode.eos_token_id]
    else:
        text = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
        before = encode(text, add_special_tokens=False)["input_ids"]
        ends = [encode.convert_tokens_to_ids("<|im_end|>")]
    return before, ids + (ends if end else [])
