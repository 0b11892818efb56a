"""Tiny tokenizers of every kind, and chat templates in the manner of well-known models."""

import importlib.util
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "Hello there, how are you today?",
    "The capital of France is Paris.",
    "I am fine.\n\nThe answer is 42 😀 é",
    "    def answer():\n        return 'yes'",
] * 4
LETTERS = "▁abcdefghilmnoprstuwyCFHPT.,\n"
CHAT_TOKENS = [
    "<|im_start|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
]


def byte_level(
    chat_tokens: list[str] | None = None,
    trim_offsets: bool = False,
    begin: bool = False,
    **names: Any,
) -> PreTrainedTokenizerFast:
    """Byte-level BPE in the manner of GPT-2, Llama 3 and Qwen."""
    special = ["<|endoftext|>", "<|begin|>", *(CHAT_TOKENS if chat_tokens is None else chat_tokens)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    parts: list[Any] = [processors.ByteLevel(trim_offsets=trim_offsets)]
    if begin:
        parts.append(
            processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 1)])
        )
        names["bos_token"] = "<|begin|>"
    tokenizer.post_processor = processors.Sequence(parts)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        **names,
    )


def sentencepiece(begin: bool = True) -> PreTrainedTokenizerFast:
    """BPE with byte fallback and a space before every piece of text, in the manner of Llama 2."""
    special = ["<unk>", "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=special + [f"<0x{byte:02X}>" for byte in range(256)],
        initial_alphabet=list(LETTERS),
        limit_alphabet=len(LETTERS),  # other characters are written as bytes
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [
        token for token in state["added_tokens"] if token["content"] in special
    ]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return _with_beginning(tokenizer, begin)


def unigram() -> PreTrainedTokenizerFast:
    """A unigram model with normalisation, in the manner of SentencePiece's own."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    trainer = trainers.UnigramTrainer(
        vocab_size=120,
        special_tokens=["<unk>", "<s>", "</s>"],
        unk_token="<unk>",
        initial_alphabet=[chr(code) for code in range(32, 127)] + list("\n😀éï"),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _with_beginning(tokenizer, True)


def _with_beginning(tokenizer: Tokenizer, begin: bool) -> PreTrainedTokenizerFast:
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def swallowing() -> PreTrainedTokenizerFast:
    """Special tokens that swallow the white space behind them, in the manner of Phi-3."""
    tokenizer = byte_level(chat_tokens=[])
    tokens = ["<|user|>", "<|assistant|>", "<|end|>"]
    tokenizer.add_special_tokens(
        {"extra_special_tokens": [AddedToken(t, rstrip=True, special=True) for t in tokens]}
    )
    return tokenizer


@cache
def shared(name: str) -> PreTrainedTokenizerFast:
    """One tokenizer for several tests that only read it."""
    return {
        "byte_level": byte_level,
        "byte_level_trimmed": lambda: byte_level(trim_offsets=True),
        "byte_level_begin": lambda: byte_level(trim_offsets=True, begin=True),
        "sentencepiece": sentencepiece,
        "unigram": unigram,
        "swallowing": swallowing,
    }[name]()


@cache
def shipped(name: str) -> tuple[str, PreTrainedTokenizerFast]:
    """A template of a known model, as the second implementation ships it, and a tokenizer with its
    tokens.
    """
    trl = importlib.util.find_spec("trl")
    assert trl and trl.origin
    template = (Path(trl.origin).parent / "chat_templates" / f"{name}.jinja").read_text()
    pattern = "<[|\uff5c][A-Za-z_\u2581]+[|\uff5c]>|<\\w+_of_turn>"
    special = sorted({*re.findall(pattern, template), "<|endoftext|>"})
    return template, byte_level(chat_tokens=special, begin=True)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{% for m in messages %}{{ bos_token if loop.first else '' }}"
    "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
    "{% endfor %}"
)
GEMMA = (
    "{% set first = '' %}{% set rest = messages %}{% if messages[0].role == 'system' %}"
    "{% set first = messages[0].content + '\n\n' %}{% set rest = messages[1:] %}{% endif %}"
    "{{ bos_token }}{% for m in rest %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ first if loop.first else '' }}{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
PHI3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
REASONING = (  # like Qwen 3: reasoning of turns before the last question is taken out
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}"
    "{% set content = m.content %}"
    "{% if m.role == 'assistant' and loop.index0 < ns.last %}"
    "{% set content = m.content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DATED = "Today is {{ strftime_now('%d %b %Y') }}.\n" + CHATML
