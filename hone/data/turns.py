"""Which characters of a rendered conversation the model has to write.

Used by `chat.py` only. For every trained turn the template renders the conversation up to it, with
the beginning of the answer, and up to its end; both must be prefixes of the whole text, and what
lies between, up to the end token, is trained. Nothing is searched for in the text. Where earlier
turns change once later ones follow, the template's own `{% generation %}` blocks say where they
end; without them the row is refused (one sample per assistant turn is left out here).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from hone.data.formats import Conversation, Message
from hone.data.rows import RowError
from hone.data.templates import CHATML_HINT, ChatTemplate
from hone.errors import UserError

Span = tuple[int, int]
QUESTION: Message = {"role": "user", "content": "Hello"}
NOT_STABLE_HINT = (
    f"{CHATML_HINT}, or make a row of each answer, with `prompt` and `completion` as messages"
)


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


def turn_spans(
    template: ChatTemplate, closing: Closing, conversation: Conversation, text: str
) -> list[Span]:
    """The characters to train in `text`, the rendered conversation, turn by turn.

    Raises RowError where the template does not show an answer as it would be generated.
    """
    messages = conversation.messages
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    trained = [i for i in answers if i >= conversation.given]
    begins = [_turn_begin(template, messages, i, text) for i in trained]
    ends = [_turn_end(template, closing, messages, i, text) for i in trained]
    if None in ends and template.has_blocks:
        found = _block_ends(template, closing, messages, text, len(answers))
        ends = [*found[len(answers) - len(trained) :]]
    spans = []
    for turn, begin, end in zip(trained, begins, ends, strict=True):
        if end is None or end <= begin:
            raise RowError(
                f"the chat template writes message {turn + 1} differently once the conversation "
                "goes on (it removes earlier reasoning, say), so that it cannot be trained where "
                "it stands",
                hint=NOT_STABLE_HINT,
            )
        spans.append((begin, end))
    return spans


def _turn_begin(template: ChatTemplate, messages: list[Message], turn: int, text: str) -> int:
    """Where the model takes over: the end of the prompt that asks for this turn."""
    prompt = template.render(messages[:turn], prompt=True)
    if text.startswith(prompt):
        return len(prompt)
    pairs = enumerate(zip(prompt, text, strict=False))
    same = next((i for i, (ours, theirs) in pairs if ours != theirs), len(text))
    raise RowError(
        f"the chat template asks for message {turn + 1} with {prompt[same:][:40]!r}, but shows "
        f"{text[same:][:40]!r} in that place, so that the model would not learn what it is asked",
        hint=NOT_STABLE_HINT,
    )


def _turn_end(
    template: ChatTemplate, closing: Closing, messages: list[Message], turn: int, text: str
) -> int | None:
    """Behind the end token of a turn; None where the turn changes once the conversation goes on."""
    closed = text if turn == len(messages) - 1 else template.render(messages[: turn + 1])
    end = len(closed) - len(closing.text) + closing.end
    stable = closed.endswith(closing.text) and text[:end] == closed[:end]
    return end if stable else None


def _block_ends(
    template: ChatTemplate, closing: Closing, messages: list[Message], text: str, num_answers: int
) -> list[int]:
    """Behind the end tokens of the generation blocks, one for each answer."""
    blocks = template.render_blocks(messages)
    if len(blocks) != num_answers:
        raise RowError(
            f"the chat template marks {len(blocks)} generation blocks in a conversation "
            f"with {num_answers} answers",
            hint=NOT_STABLE_HINT,
        )
    return [_block_end(text, begin, end, closing) for begin, end in blocks]


def _block_end(text: str, begin: int, end: int, closing: Closing) -> int:
    """Where the end token of a block stops; it may stand in the block or right behind it."""
    for inside in range(len(closing.text), -1, -1):
        rest = closing.text[inside : closing.end]
        if text[begin:end].endswith(closing.text[:inside]) and text.startswith(rest, end):
            return end - inside + closing.end
    raise RowError(
        "the chat template ends earlier answers otherwise than the last one", hint=NOT_STABLE_HINT
    )
