"""What is trained on: a random Llama, a word-level tokenizer and prompts with completions of drawn
lengths.

`harness.py` makes it once; every contender loads the same folder and the same file. One word is one
token, so that the text has the lengths that were drawn whoever tokenises it. Words are
Zipf-distributed (exponent 1, a natural text's), those of rejected completions are all equally
frequent: so there is something to learn and the loss falls.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

PAD, END, UNKNOWN = "<pad>", "<end>", "<unknown>"
LONGEST = 512
NUM_COMPLETIONS = 8  # that are sampled for a prompt
LONGEST_SAMPLED = 64  # tokens of a sampled completion


@dataclass(frozen=True)
class Rows:
    """How long the texts of a method's rows are.

    prompt, completion: medians in tokens, a completion's end token included. The spreads are
    standard deviations of the logarithm of a length. columns: the texts that stand after a prompt.
    """

    prompt: int
    prompt_spread: float
    completion: int = 0
    completion_spread: float = 0.0
    columns: tuple[str, ...] = ()


ROWS = {
    "sft": Rows(26, 0.7, 45, 0.9, ("completion",)),
    "dpo": Rows(85, 0.7, 36, 0.9, ("chosen", "rejected")),
    "grpo": Rows(120, 0.1),
}


@dataclass(frozen=True)
class Shape:
    """A Llama's size."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int

    def count_layer_weights(self) -> int:
        """Weights of all linear layers, the head aside."""
        per_layer = 4 * self.hidden_size**2 + 3 * self.hidden_size * self.intermediate_size
        return self.num_hidden_layers * per_layer

    def count_weights(self) -> int:
        """Weights of the linear layers and of the tied embeddings, in all."""
        return self.count_layer_weights() + self.hidden_size * self.vocab_size


@dataclass(frozen=True)
class Workload:
    """Model, data and settings that all contenders share. samples: rows of the data. batch: rows a
    step; rank: of the adapters.
    """

    shape: Shape
    samples: int
    batch: int
    method: str = "sft"
    rank: int = 16
    alpha: int = 32
    learning_rate: float = 1e-3
    seed: int = 0

    @classmethod
    def read(cls, folder: Path) -> "Workload":
        """What `write_workload` wrote."""
        values = json.loads((folder / "workload.json").read_text())
        return cls(**{**values, "shape": Shape(**values["shape"])})


SHAPES = {
    "40m": Shape(512, 8, 8, 1408, 32_000),
    "0.5b": Shape(1024, 24, 16, 4864, 32_000),
    "tiny": Shape(64, 2, 4, 176, 512),
}


def draw_lengths(count: int, seed: int, rows: Rows = ROWS["sft"]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of each prompt, (count,), and of what stands after it, (columns, count).

    The quantiles of log-normal distributions in random order: the medians are exact for any count.
    """
    draw = np.random.default_rng(seed)
    normal = NormalDist()
    quantiles = np.array([normal.inv_cdf((n + 0.5) / count) for n in range(count)])

    def lengths(median: int, spread: float) -> np.ndarray:
        return np.round(median * np.exp(spread * draw.permutation(quantiles))).astype(np.int64)

    prompts = np.clip(lengths(rows.prompt, rows.prompt_spread), 2, LONGEST // 2)
    completions = [
        np.clip(lengths(rows.completion, rows.completion_spread), 2, LONGEST - prompts)
        for _ in rows.columns
    ]
    return prompts, np.array(completions, dtype=np.int64).reshape(len(completions), count)


def describe_lengths(workload: Workload) -> dict[str, Any]:
    """Counts and quantiles of the tokens of a pass, a prompt counted once; without what is sampled.

    total: of the longest sequence of a row.
    """
    rows = ROWS[workload.method]
    prompts, completions = draw_lengths(workload.samples, workload.seed, rows)
    totals = prompts + completions.max(axis=0, initial=0)
    return {
        "samples": workload.samples,
        "steps": -(-workload.samples // workload.batch),
        "tokens": int(prompts.sum() + completions.sum()),
        "trained_tokens": int(completions.sum()),
        "prompt_median": float(np.median(prompts)),
        "completion_median": float(np.median(completions)) if rows.columns else 0.0,
        "total_mean": round(float(totals.mean()), 1),
        "total_quantiles": {
            name: int(np.quantile(totals, share))
            for name, share in (("50 %", 0.5), ("90 %", 0.9), ("99 %", 0.99), ("100 %", 1.0))
        },
    }


def write_workload(workload: Workload, folder: Path) -> None:
    """`model/` (weights in fp32, tokenizer) and `data.jsonl` below `folder`."""
    write_model(workload, folder / "model")
    write_data(workload, folder / "data.jsonl")
    (folder / "workload.json").write_text(json.dumps(asdict(workload), indent=2))


def write_model(workload: Workload, folder: Path) -> None:
    """A Llama with random weights and tied embeddings, and its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(workload.seed)
    config = LlamaConfig(
        **asdict(workload.shape),
        num_key_value_heads=workload.shape.num_attention_heads,
        max_position_embeddings=2 * LONGEST,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer(workload.shape.vocab_size).save_pretrained(folder)


def words_of(vocabulary: int) -> list[str]:
    """All tokens, the special ones first."""
    return [PAD, END, UNKNOWN, *(f"w{n}" for n in range(vocabulary - 3))]


def make_tokenizer(vocabulary: int) -> Any:
    """A tokenizer for which a word between spaces is a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {word: n for n, word in enumerate(words_of(vocabulary))}
    backend = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, eos_token=END, unk_token=UNKNOWN
    )


def write_data(workload: Workload, path: Path) -> None:
    """Rows of `prompt` and the method's columns, texts of words; the end token is not written,
    every trainer adds it.
    """
    draw = np.random.default_rng(workload.seed + 1)
    words = np.array(words_of(workload.shape.vocab_size)[3:])
    natural = 1 / np.arange(1, len(words) + 1)
    natural /= natural.sum()
    rows = ROWS[workload.method]
    prompts, completions = draw_lengths(workload.samples, workload.seed, rows)

    def text(length: int, column: str = "prompt") -> str:
        return " ".join(draw.choice(words, length, p=None if column == "rejected" else natural))

    with path.open("w") as file:
        for n, prompt in enumerate(prompts):
            row = {"prompt": text(prompt) + " "}
            for column, lengths in zip(rows.columns, completions, strict=True):
                row[column] = text(lengths[n] - 1, column)
            file.write(json.dumps(row) + "\n")
