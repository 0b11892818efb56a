"""Which characters of a rendered conversation the model has to write.

Used by `chat.py` only. For every trained turn the template renders the conversation up to it, with
the beginning of the answer, and up to its end; both must be prefixes of the whole text, and what
lies between, up to the end token, is trained. Nothing is searched for in the text. Where earlier
turns change once later ones follow (their reasoning is taken out, say), the template's own
`{% generation %}` blocks say where they end; without such blocks each turn gets a text of its own:
the conversation up to it, as the template shows it then.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hone.data.messages import Message
from hone.data.rows import RowError
from hone.data.templates import CHATML_HINT, ChatTemplate
from hone.data.tools import Tools
from hone.errors import UserError

Span = tuple[int, int]
QUESTION: Message = {"role": "user", "content": "Hello"}


@dataclass(frozen=True)
class Closing:
    """What a template writes after the content of the last answer.

    text: all of it. end: characters of it up to and with the end token. token: that token's id.
    """

    text: str
    end: int
    token: int


def render_closing(template: ChatTemplate) -> tuple[str, int]:
    """A short conversation, and where in it the answer's content ends.

    Two are rendered whose answers differ in their only character; what they have in common at the
    end was written after it. Raises UserError for a template that leaves contents out.
    """
    first, second = (
        template.render([QUESTION, {"role": "assistant", "content": content}]) for content in "xy"
    )
    if first == second:
        raise UserError(
            "the chat template does not show what an answer says (it expects lists of parts, say)",
            hint=CHATML_HINT,
        )
    common = 0
    while common < len(first) and first[-common - 1 :] == second[-common - 1 :]:
        common += 1
    return first, len(first) - common


def find_closing(
    text: str, content_end: int, ids: Sequence[int], offsets: Sequence[Span], ends: Collection[int]
) -> Closing | None:
    """The closing of a tokenised conversation, where one of the tokens `ends` is in it."""
    for token, (begin, end) in zip(ids, offsets, strict=True):
        if begin >= content_end and token in ends:
            token_end = begin + len(text[begin:end].rstrip())  # some swallow white space
            return Closing(text[content_end:], token_end - content_end, token)
    return None


def no_closing(text: str) -> UserError:
    """The fault of a template that writes only `text`, without an end token, after an answer."""
    return UserError(
        f"the chat template writes no end token after an answer, only {text!r}: "
        "a model trained with it would never stop",
        hint=f"{CHATML_HINT}, or write {{{{ eos_token }}}} after the answer in the template",
    )


def trained_texts(
    template: ChatTemplate,
    closing: Closing,
    messages: Sequence[Message],
    given: int,
    tools: Tools | None,
) -> list[tuple[str, list[Span]]]:
    """The rendered conversation with the characters to train in it, turn by turn: the answers
    behind the first `given` messages.

    Several texts, each with one trained turn at its end, where earlier turns change once later ones
    follow and the template does not mark them. Raises RowError where the template does not show an
    answer as it would be generated.
    """
    text = template.render(messages, tools=tools)
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    turns = [
        _render_turn(template, closing, messages, tools, i, text) for i in answers if i >= given
    ]
    if all(turn.stands_in(text) for turn in turns):
        return [(text, [turn.span for turn in turns])]
    if not template.has_blocks:
        return [(turn.text, [turn.span]) for turn in turns]
    begins = [turn.begin_in(text) for turn in turns]
    blocks = template.render_blocks(messages, tools)
    ends = _block_ends(closing, blocks, text, len(answers))[-len(turns) :]
    spans = list(zip(begins, ends, strict=True))
    if any(end <= begin for begin, end in spans):
        raise RowError("the chat template marks an answer before its beginning", hint=CHATML_HINT)
    return [(text, spans)]


class _Turn(NamedTuple):
    """An answer as the last one of its conversation: `text` up to it, trained from `begin` to
    `end`; None where the text does not end as answers do.
    """

    number: int
    text: str
    prompt: str
    end: int | None

    @property
    def span(self) -> Span:
        """The characters to train in the turn's own text. Raises RowError."""
        begin = self.begin_in(self.text)
        if self.end is None or self.end <= begin:
            raise RowError(
                f"the chat template ends message {self.number} otherwise than other answers, so "
                "that nobody can say where it ends",
                hint=CHATML_HINT,
            )
        return begin, self.end

    def stands_in(self, whole: str) -> bool:
        """Whether the turn, and all before it, is the same once the conversation goes on."""
        return self.end is not None and whole[: self.end] == self.text[: self.end]

    def begin_in(self, text: str) -> int:
        """Where the model takes over: the end of the prompt that asks for this turn."""
        prompt = self.prompt
        if text.startswith(prompt):
            return len(prompt)
        pairs = enumerate(zip(prompt, text, strict=False))
        same = next((i for i, (ours, theirs) in pairs if ours != theirs), len(text))
        raise RowError(
            f"the chat template asks for message {self.number} with {prompt[same:][:40]!r}, but "
            f"shows {text[same:][:40]!r} in that place, so that the model would not learn what it "
            "is asked",
            hint=CHATML_HINT,
        )


def _render_turn(
    template: ChatTemplate,
    closing: Closing,
    messages: Sequence[Message],
    tools: Tools | None,
    index: int,
    whole: str,
) -> _Turn:
    last = index == len(messages) - 1
    text = whole if last else template.render(messages[: index + 1], tools=tools)
    end = len(text) - len(closing.text) + closing.end
    prompt = template.render(messages[:index], prompt=True, tools=tools)
    return _Turn(index + 1, text, prompt, end if text.endswith(closing.text) else None)


def _block_ends(closing: Closing, blocks: list[Span], text: str, num_answers: int) -> list[int]:
    """Behind the end tokens of the generation blocks, one for each answer."""
    if len(blocks) != num_answers:
        raise RowError(
            f"the chat template marks {len(blocks)} generation blocks in a conversation "
            f"with {num_answers} answers",
            hint=CHATML_HINT,
        )
    return [_block_end(text, begin, end, closing) for begin, end in blocks]


def _block_end(text: str, begin: int, end: int, closing: Closing) -> int:
    """Where the end token of a block stops; it may stand in the block or right behind it."""
    for inside in range(len(closing.text), -1, -1):
        rest = closing.text[inside : closing.end]
        if text[begin:end].endswith(closing.text[:inside]) and text.startswith(rest, end):
            return end - inside + closing.end
    raise RowError(
        "the chat template ends earlier answers otherwise than the last one", hint=CHATML_HINT
    )
