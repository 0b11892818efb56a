"""From examples to tokens and the mask of trained tokens: the only renderer of the project.

Training (through `prepare.py`), chat, generation and evaluation all use `Renderer`, so they see the
same tokens. The whole text is tokenised once and then cut at characters: those between the prompt
and the end token of each trained turn, which `turns.py` finds. Templates are chosen in
`builtin_templates.py` and compiled in `templates.py`. Where a template shows earlier turns
differently later, a conversation becomes several samples, one for each trained turn.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from hone.data.builtin_templates import CHATML, find_template
from hone.data.formats import Conversation, Example, PlainText, PromptCompletion, TrainOn
from hone.data.messages import Message
from hone.data.rows import RowError
from hone.data.templates import CHATML_HINT, ChatTemplate
from hone.data.tools import Tools, check_shown, wants_text, with_arguments
from hone.data.turns import (
    QUESTION,
    Closing,
    Span,
    find_closing,
    no_closing,
    render_closing,
    trained_texts,
)
from hone.errors import UserError

__all__ = ["CHATML", "Rendered", "Renderer", "Tokenizer", "Tokens"]

Tokenizer: TypeAlias = Any
"""A transformers tokenizer with a Rust backend; the library itself is not imported here."""
Ids: TypeAlias = npt.NDArray[np.int32]
Mask: TypeAlias = npt.NDArray[np.bool_]


class Rendered(NamedTuple):
    """Text and the character ranges to train; `plain` text gets a beginning and an end token."""

    text: str
    spans: list[Span]
    plain: bool


class Tokens(NamedTuple):
    """ids: (L,) int32. trained: (L,) bool. straddling: trained tokens that begin in the prompt."""

    ids: Ids
    trained: Mask
    straddling: int


class Renderer:
    """Renders examples with one tokenizer and one template.

    template: `auto`, `chatml`, `alpaca`, `llama`, a Jinja file or Jinja source. date: YYYY-MM-DD
    for templates that print today's date. Attributes: `template` (the Jinja source, saved with the
    model), `date` (None where unused), `begin_ids` (what the tokenizer puts before plain text).
    Raises UserError for a tokenizer without offsets and for an unusable template. Nothing stands
    before the first token of a sample that could predict it, so it is never trained.
    """

    def __init__(
        self, tokenizer: Tokenizer, template: str = "auto", *, date: str | None = None
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise UserError(
                f"the tokenizer `{type(tokenizer).__name__}` cannot tell which characters a token "
                "stands for, which the mask of trained tokens needs; expected one that has a "
                "tokenizer.json",
                hint="save a fast version of the tokenizer (tokenizer.json) in the model's folder",
            )
        self.tokenizer = tokenizer
        self.begin_ids: list[int] = _find_begin_ids(tokenizer)
        writes_beginning = tokenizer.bos_token_id in self.begin_ids
        self.template: str = find_template(tokenizer, template, writes_beginning)
        self._template = ChatTemplate(self.template, tokenizer.special_tokens_map, date)
        self.date = self._template.date

    @property
    def end_token_ids(self) -> list[int]:
        """What ends an answer: the template's end-of-turn token, then the end-of-sequence token."""
        try:
            ids = [self._closing.token]
        except UserError:  # the template cannot hold a conversation; plain text still ends
            ids = []
        end_of_sequence = self.tokenizer.eos_token_id
        return ids if end_of_sequence is None or end_of_sequence in ids else [*ids, end_of_sequence]

    def conversation(
        self, messages: Sequence[Message], train_on: TrainOn = "completions", given: int = 0
    ) -> tuple[Ids, Mask]:
        """(ids, trained) of a conversation: assistant turns behind the first `given` messages."""
        return self._one(Conversation(list(messages), given), train_on)

    def prompt_completion(
        self,
        prompt: str | Sequence[Message],
        completion: str | Sequence[Message],
        train_on: TrainOn = "completions",
    ) -> tuple[Ids, Mask]:
        """(ids, trained) of two texts, joined as they are, or of two lists of messages."""
        if isinstance(prompt, str) and isinstance(completion, str):
            return self._one(PromptCompletion(prompt, completion), train_on)
        if isinstance(prompt, str) or isinstance(completion, str):
            raise RowError("`prompt` and `completion` must both be texts or lists of messages")
        return self._one(Conversation([*prompt, *completion], len(prompt)), train_on)

    def text(self, text: str) -> tuple[Ids, Mask]:
        """(ids, trained) of plain text, with one beginning token if the tokenizer writes it."""
        return self._one(PlainText(text), "all")

    def prompt(self, messages: Sequence[Message] | str, tools: Tools | None = None) -> list[int]:
        """The ids a model continues: messages with the beginning of the answer, or plain text."""
        if isinstance(messages, str):
            ids = self._encode([messages])[0].ids
            begins = ids[: len(self.begin_ids)] == self.begin_ids
            return list(ids) if begins else [*self.begin_ids, *ids]
        given = self._with_arguments(list(messages))
        text = self._template.render(given, prompt=True, tools=tools)
        return list(self._encode([text])[0].ids)

    def samples(self, example: Example, train_on: TrainOn = "completions") -> list[Tokens]:
        """The tokens of an example: one sample, or one for each trained turn."""
        return self.tokenise(self.render(example, train_on))

    def render(self, example: Example, train_on: TrainOn) -> list[Rendered]:
        """The texts of an example and what in them is trained; raises RowError for a bad row.

        Several are of a conversation whose earlier turns the template shows otherwise later.
        """
        if isinstance(example, Conversation):
            return self._render_conversation(example, train_on)
        if self.tokenizer.eos_token_id is None:
            raise UserError(
                "the tokenizer has no end-of-sequence token, so plain text could never end",
                hint="set eos_token in the model's tokenizer_config.json",
            )
        prompt = example.prompt if isinstance(example, PromptCompletion) else ""
        rest = example.completion if isinstance(example, PromptCompletion) else example.text
        begin = 0 if train_on == "all" else len(prompt)
        return [Rendered(prompt + rest, [(begin, len(prompt) + len(rest))], plain=True)]

    def _render_conversation(self, conversation: Conversation, train_on: TrainOn) -> list[Rendered]:
        template, messages, tools = self._template, conversation.messages, conversation.tools
        closing = None if train_on == "all" else self._closing
        if tools or any(_uses_tools(message) for message in messages):
            messages = self._with_arguments(messages)
            check_shown(template, messages, tools)
        if not self._shows_system and any(message["role"] == "system" for message in messages):
            raise RowError(
                "the chat template leaves out system turns: the model would learn from a "
                "conversation that is not the row's",
                hint=CHATML_HINT,
            )
        if closing is None:
            text = template.render(messages, tools=tools)
            return [Rendered(text, [(0, len(text))], plain=False)]
        found = trained_texts(template, closing, messages, conversation.given, tools)
        return [Rendered(text, spans, plain=False) for text, spans in found]

    def _with_arguments(self, messages: list[Message]) -> list[Message]:
        """The arguments of tool calls as the template expects them."""
        if not any("tool_calls" in message for message in messages):
            return messages
        return with_arguments(messages, self._takes_text)

    def tokenise(self, batch: Sequence[Rendered]) -> list[Tokens]:
        """Tokens of rendered examples, in order; many at once are faster."""
        encodings = self._encode([rendered.text for rendered in batch], offsets=True)
        return [self._cut(each, text) for each, text in zip(encodings, batch, strict=True)]

    def _one(self, example: Example, train_on: TrainOn) -> tuple[Ids, Mask]:
        first, *more = self.samples(example, train_on)
        if more:
            raise RowError(
                "the chat template writes earlier turns differently once the conversation goes on, "
                f"so that it becomes {len(more) + 1} samples where one was asked for",
                hint=CHATML_HINT,
            )
        return first.ids, first.trained

    @cached_property
    def _takes_text(self) -> bool:
        """Whether the template wants the arguments of tool calls as JSON text."""
        return wants_text(self._template)

    @cached_property
    def _shows_system(self) -> bool:
        """False for a template that leaves system turns out without a word."""
        try:
            first, second = (
                self._template.render([{"role": "system", "content": content}, QUESTION])
                for content in "xy"
            )
        except RowError:  # it says so, row by row
            return True
        return first != second

    @cached_property
    def _closing(self) -> Closing:
        """What the template writes after an answer; raises UserError if there is no end token."""
        text, content_end = render_closing(self._template)
        encoding = self._encode([text], offsets=True)[0]
        tokenizer = self.tokenizer
        added = self._added_ids - ({tokenizer.bos_token_id} - {tokenizer.eos_token_id})
        special = {i for i in added if tokenizer.added_tokens_decoder[i].special}
        for ends in (special | {tokenizer.eos_token_id}, added):
            closing = find_closing(text, content_end, encoding.ids, encoding.offsets, ends)
            if closing:
                return closing
        raise no_closing(text[content_end:])

    @cached_property
    def _added_ids(self) -> set[int]:
        """Tokens outside the learnt vocabulary; not white space, not unknown characters."""
        tokenizer = self.tokenizer
        added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
        return added - ({tokenizer.unk_token_id} - {tokenizer.eos_token_id})

    @cached_property
    def _offset_backend(self) -> Any:
        """The Rust tokenizer, or a copy where the original would cut spaces off the offsets."""
        backend = self.tokenizer.backend_tokenizer
        processor = backend.post_processor
        if processor is None or b'"trim_offsets":true' not in processor.__getstate__():
            return backend
        from tokenizers import Tokenizer as Backend

        backend = Backend.from_str(backend.to_str())
        backend.post_processor = None
        return backend

    def _encode(self, texts: list[str], offsets: bool = False) -> list[Any]:
        """Encodings without added special tokens, whatever an earlier call left in the backend."""
        backend = self._offset_backend if offsets else self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = bool(getattr(self.tokenizer, "split_special_tokens", False))
        return list(backend.encode_batch(texts, add_special_tokens=False))

    def _cut(self, encoding: Any, rendered: Rendered) -> Tokens:
        ids = np.array(encoding.ids, dtype=np.int32)
        trained = np.zeros(len(ids), dtype=np.bool_)
        begins, ends = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
        straddling = 0
        for begin, end in rendered.spans:
            trained |= (begins >= begin) & (begins < end)
            for i in np.flatnonzero((begins < begin) & (ends > begin)):
                inside = rendered.text[begin : ends[i]]
                if ids[i] in self._added_ids and not inside.strip():
                    continue  # the template's own token, which swallows white space behind it
                trained[i] = True
                straddling += 1
        if rendered.plain:
            ids, trained = self._ended(ids, trained)
        trained[:1] = False
        return Tokens(ids, trained, straddling)

    def _ended(self, ids: Ids, trained: Mask) -> tuple[Ids, Mask]:
        """Plain text with exactly one beginning, where there is one, and one trained end token."""
        begin, end = np.array(self.begin_ids, dtype=np.int32), self.tokenizer.eos_token_id
        if len(begin) and not np.array_equal(ids[: len(begin)], begin):
            ids = np.concatenate([begin, ids])
            trained = np.concatenate([np.zeros(len(begin), dtype=np.bool_), trained])
        if len(ids) == len(begin) or ids[-1] != end:
            ids = np.append(ids, np.int32(end))
            trained = np.append(trained, True)
        trained[-1] = True
        return ids, trained


def _uses_tools(message: Message) -> bool:
    return message["role"] == "tool" or "tool_calls" in message


def _find_begin_ids(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer puts before a plain text, usually the beginning token or nothing."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    starts = (i for i in range(len(full)) if full[i : i + len(bare)] == bare)
    return list(full[: next(starts, 0)])
