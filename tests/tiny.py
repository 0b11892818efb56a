"""Tiny random models of the families the engine is tested on, and random samples."""

import copy

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from hone.records import Sample, Segment

VOCABULARY = 96
WINDOW = 6  # shorter than the samples, so that it crosses the prompt's border

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

FOREST: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=False),
    "llama-tied": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=8),
    "mistral": MistralConfig(**SHAPE, sliding_window=WINDOW),
    "gemma3": Gemma3TextConfig(
        **SHAPE,
        head_dim=8,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "phi3": Phi3Config(**SHAPE),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=128,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    ),
    "granite": GraniteConfig(**SHAPE, logits_scaling=3.0, attention_multiplier=0.2),
}
FALLBACK: dict[str, PreTrainedConfig] = {
    "bloom": BloomConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        n_layer=2,
        n_head=4,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    ),
    "mamba": MambaConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4, pad_token_id=0
    ),
    "gemma2": Gemma2Config(**SHAPE, head_dim=8, sliding_window=WINDOW),
}
FAMILIES = {**FOREST, **FALLBACK}


class OneFormat(TorchFunctionMode):
    """Keeps fp64 models in fp64 all through: transformers computes norms, rotations and softmax in
    fp32.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        first = args[0] if args else None
        if isinstance(first, torch.Tensor) and first.dtype == torch.float64:
            if function is torch.Tensor.float:
                return first
            if function is torch.Tensor.to and torch.float32 in (*args[1:2], kwargs.get("dtype")):
                return first
            if kwargs.get("dtype") is torch.float32:
                kwargs["dtype"] = torch.float64
        return function(*args, **kwargs)


def make_model(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    """A random model whose weights are large enough that every part of it shows in the loss."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(FAMILIES[name]), dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(2 if name == "mamba" else 8)
    return model.to(dtype)


def random_segment(draw: np.random.Generator, length: int, parent: int, trained: float) -> Segment:
    """Random tokens, of which the share `trained` is trained."""
    tokens = draw.integers(3, VOCABULARY, length).astype(np.int32)
    return Segment(tokens, draw.random(length) < trained, parent)


def random_samples(count: int, seed: int = 0) -> list[Sample]:
    """Conversations of one segment with scattered trained tokens, 8 to 24 tokens long."""
    draw = np.random.default_rng(seed)
    return [
        Sample(n, (random_segment(draw, int(draw.integers(8, 25)), -1, 0.6),)) for n in range(count)
    ]


def random_trees(count: int, seed: int = 0) -> list[Sample]:
    """Prompts with two or three completions, one of which is continued."""
    draw = np.random.default_rng(seed)
    trees = []
    for n in range(count):
        lengths = draw.integers(3, 12, 5)
        segments = [random_segment(draw, int(lengths[0]), -1, 0.0)]
        segments += [random_segment(draw, int(lengths[1]), 0, 1.0)]
        segments += [random_segment(draw, int(lengths[2]), 1, 1.0)]
        segments += [random_segment(draw, int(lengths[k]), 0, 1.0) for k in (3, 4)[: 1 + n % 2]]
        trees.append(Sample(n, tuple(segments)))
    return trees
