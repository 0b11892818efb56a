"""Make a byte-level BPE tokenizer from a person's own text; without torch at import.

Called where a recipe's `model` says `tokenizer: {train_on: ..., vocabulary: ...}`. Every digit is a
token of its own, so that numbers are read place by place; runs of letters are cut before merging as
in GPT-2. The chat tokens and the ChatML template come with it. Left out: normalisation (the text
comes back byte for byte) and dropout of merges.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from hone.data.chat import CHATML

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> "PreTrainedTokenizerFast":
    """A tokenizer of at most `vocabulary` tokens (the 256 bytes and three special ones included),
    the same for the same texts.

    Fewer come out when the texts have no more pairs to merge. Texts end with `<|endoftext|>`, turns
    with `<|im_end|>`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START, TURN_END],
        chat_template=CHATML,
        clean_up_tokenization_spaces=False,
    )
