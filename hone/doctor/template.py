"""Whether what is trained is what is asked for later: masks, end and beginning tokens, prompts.

All checks count what is wrong, so their limit is zero. They read the tokens that training would
see and never the renderer's own account of them. Without torch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from hone.data.chat import Rendered, Renderer, Tokens
from hone.data.formats import Conversation, Example, PromptCompletion
from hone.data.messages import Message
from hone.data.rows import RowError
from hone.doctor.findings import Check, NotApplicableError


@dataclass(frozen=True)
class Row:
    """An example with its samples: one, or several where a turn is a sample of its own."""

    example: Example
    rendered: list[Rendered]
    samples: list[Tokens]

    @property
    def runs(self) -> list[list[int]]:
        """The trained tokens, cut where an untrained one lies between them."""
        return [run for tokens in self.samples for run in _runs(tokens)]

    @property
    def read(self) -> list[int]:
        """The tokens that are not trained."""
        return [i for tokens in self.samples for i in tokens.ids[~tokens.trained].tolist()]


def _runs(tokens: Tokens) -> list[list[int]]:
    places = np.flatnonzero(tokens.trained)
    cuts = np.flatnonzero(np.diff(places) > 1) + 1
    return [tokens.ids[part].tolist() for part in np.split(places, cuts) if len(part)]


def template_checks(
    renderer: Renderer, examples: Sequence[Example], end_of_generation: Sequence[int]
) -> Iterator[Check]:
    """All checks of a tokenizer with its template. end_of_generation: what stops the model's own
    `generate`.
    """

    @cache
    def rows() -> list[Row]:
        return render_rows(renderer, examples)

    def check(name: str, compared: str, count: Callable[[Renderer, Row], int]) -> Check:
        def measure() -> float:
            return float(sum(count(renderer, row) for row in rows()))

        return Check(f"template: {name}", compared, 0.0, measure)

    yield check("answers", "answers that the trained tokens do not hold", wrong_answers)
    yield check("end", "answers without a trained end token", missing_ends)
    yield check("beginning", "samples without exactly one beginning", wrong_beginnings)
    yield check("prompt", "prompts that stand otherwise before their answers", wrong_prompts)
    yield check("repetition", "samples that differ when rendered again, alone", differs_again)
    yield Check(
        "template: refused",
        "examples that the template does not take",
        None,
        lambda: float(len(examples) - len(rows())),
    )
    yield Check(
        "template: earlier turns",
        "conversations cut into samples, as earlier turns change when they go on",
        None,
        lambda: float(count_changing(rows())),
    )
    yield Check(
        "template: generation",
        "end tokens that the model's own generation config does not know",
        None,
        lambda: float(len(set(renderer.end_token_ids[:1]) - set(end_of_generation))),
    )


def render_rows(renderer: Renderer, examples: Sequence[Example]) -> list[Row]:
    """The rows that the template takes, tokenised together. Raises UserError for none."""
    found: list[tuple[Example, list[Rendered]]] = []
    fault: RowError | None = None
    for example in examples:
        try:
            found.append((example, renderer.render(example, "completions")))
        except RowError as error:
            fault = error
    if not found:
        raise fault or NotApplicableError("there are no examples")
    tokens = iter(renderer.tokenise([each for _, rendered in found for each in rendered]))
    return [Row(example, texts, [next(tokens) for _ in texts]) for example, texts in found]


def wrong_answers(renderer: Renderer, row: Row) -> int:
    """Answers that the trained tokens do not spell, and questions that the others do not."""
    trained = [_letters(renderer, run) for run in row.runs]
    answers = [_written(renderer, text) for text in answers_of(row.example)]
    if not isinstance(row.example, Conversation):
        return int(answers[0] not in "".join(trained))
    if len(trained) != len(answers):
        return abs(len(trained) - len(answers))
    wrong = sum(answer not in run for answer, run in zip(answers, trained, strict=True))
    read = _letters(renderer, row.read)
    questions = [_text(m) for m in row.example.messages if m["role"] == "user"]
    return wrong + sum(_written(renderer, text) not in read for text in questions)


def missing_ends(renderer: Renderer, row: Row) -> int:
    """Trained turns whose last trained token does not end an answer."""
    ends = renderer.end_token_ids
    return sum(run[-1] not in ends for run in row.runs)


def wrong_beginnings(renderer: Renderer, row: Row) -> int:
    """Samples that begin otherwise than with the one beginning token of the tokenizer."""
    begin = renderer.tokenizer.bos_token_id
    if begin is None:
        return 0
    wrong = 0
    for tokens in row.samples:
        leading = next((n for n, i in enumerate(tokens.ids) if i != begin), len(tokens.ids))
        expected = 1 if begin in renderer.begin_ids else min(leading, 1)
        wrong += leading != expected
    return wrong


def wrong_prompts(renderer: Renderer, row: Row) -> int:
    """Prompts whose tokens, as generation makes them, stand in no sample before the first trained
    token of their answer.
    """
    tools = row.example.tools if isinstance(row.example, Conversation) else None
    prompts = [renderer.prompt(prompt, tools) for prompt in prompts_of(row.example)]
    return sum(
        not any(_asks(tokens, prompt) for tokens in row.samples) for prompt in prompts if prompt
    )


def _asks(tokens: Tokens, prompt: list[int]) -> bool:
    end = len(prompt)
    same = tokens.ids[:end].tolist() == prompt and len(tokens.ids) > end
    return same and bool(tokens.trained[end]) and not tokens.trained[end - 1]


def differs_again(renderer: Renderer, row: Row) -> int:
    """1 where the example gives other tokens when it is rendered again, without the others."""
    again = renderer.render(row.example, "completions")
    samples = renderer.tokenise(again)
    same = again == row.rendered and all(
        np.array_equal(one.ids, other.ids) and np.array_equal(one.trained, other.trained)
        for one, other in zip(samples, row.samples, strict=True)
    )
    return int(not same)


def count_changing(rows: Sequence[Row]) -> int:
    """Conversations that become several samples, because earlier turns change."""
    several = [
        row
        for row in rows
        if isinstance(row.example, Conversation) and len(answers_of(row.example)) > 1
    ]
    if not several:
        raise NotApplicableError("no conversation has several answers")
    return sum(len(row.samples) > 1 for row in several)


def answers_of(example: Example) -> list[str]:
    """The texts that are trained."""
    if isinstance(example, Conversation):
        given = example.messages[example.given :]
        return [_text(m) for m in given if m["role"] == "assistant"]
    return [example.completion if isinstance(example, PromptCompletion) else example.text]


def prompts_of(example: Example) -> list[list[Message] | str]:
    """What stands before each trained answer, as it would be asked."""
    if isinstance(example, Conversation):
        places = range(example.given, len(example.messages))
        messages = example.messages
        return [messages[:n] for n in places if messages[n]["role"] == "assistant"]
    return [example.prompt] if isinstance(example, PromptCompletion) else []


def _text(message: Message) -> str:
    return message.get("content") or ""


def _written(renderer: Renderer, text: str) -> str:
    """A text as the tokenizer can write it, without white space, which templates may cut."""
    return _letters(renderer, renderer.tokenizer(text, add_special_tokens=False)["input_ids"])


def _letters(renderer: Renderer, ids: list[int]) -> str:
    decoded = renderer.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return "".join(decoded.split())
