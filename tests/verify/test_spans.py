"""Masks by transformers' own template and character offsets, against those of the renderer."""

import copy

import numpy as np
import pytest

from hone.data.chat import Renderer
from hone.data.formats import Conversation, Example, PlainText, PromptCompletion
from hone.sampling import Rendering
from hone.verify.spans import IncomparableError, Path, find_fault
from tests.data.test_chat import CASES
from tests.data.tokenizers import CHATML, DATED, LLAMA3, REASONING, shared

pytestmark = pytest.mark.quick

LIMIT = 500
TALK = [
    ("user", "What is the capital of France? 😀"),
    ("assistant", "The capital of France is Paris."),
    ("user", "assistant"),
    ("assistant", "user"),
]


def messages(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


class Saved:
    """A tokenizer with its template and what the renderer makes of an example, as a result has
    them.
    """

    def __init__(self, tokenizer: str, template: str, plain: bool = False) -> None:
        renderer = Renderer(shared(tokenizer), template)
        self.tokenizer = copy.deepcopy(renderer.tokenizer)
        self.tokenizer.chat_template = renderer.template
        self.renderer = renderer
        self.rendering = Rendering(
            plain, renderer.template, renderer.date, [] if plain else renderer.end_token_ids
        )
        if plain:
            self.rendering.end_token_ids.append(self.tokenizer.eos_token_id)

    def path(self, example: Example, train_on: str = "completions") -> Path:
        tokens, *_ = self.renderer.samples(example, train_on)
        return Path(tokens.ids, tokens.trained.copy())

    def fault(
        self, path: Path, example: Example, train_on: str = "completions", limit: int = LIMIT
    ) -> str | None:
        return find_fault(path, example, train_on, limit, self.tokenizer, self.rendering)


@pytest.mark.parametrize("case", CASES)
def test_two_computations_of_a_mask_agree(case: str) -> None:
    saved = Saved(*CASES[case][:2])
    talk = Conversation(messages(*TALK))
    path = saved.path(talk)
    assert saved.fault(path, talk) is None
    for given in (1, 2):
        partly = Conversation(messages(*TALK), given)
        assert saved.fault(saved.path(partly), partly) is None
    first = int(np.argmax(path.trained))
    wrong = {
        "shifted back": np.append(path.trained[1:], False),
        "shifted on": np.insert(path.trained[:-1], 0, False),
        "all": np.insert(np.ones(len(path.ids) - 1, dtype=bool), 0, False),
        "nothing": np.zeros(len(path.ids), dtype=bool),
        "question": path.trained | (np.arange(len(path.ids)) == first - 4),
    }
    for name, mask in wrong.items():
        assert saved.fault(path._replace(trained=mask), talk), name
    assert saved.fault(path, Conversation(messages(*TALK[:2], ("user", "Why?"), TALK[3])))


@pytest.mark.parametrize("tokenizer", ["byte_level", "byte_level_begin", "sentencepiece"])
def test_two_texts_are_trained_behind_their_border(tokenizer: str) -> None:
    saved = Saved(tokenizer, "auto", plain=True)
    example = PromptCompletion("France 7, 3 plus 4 is", " 7, I am.")
    path = saved.path(example)
    assert saved.fault(path, example) is None
    assert "is not trained" in str(
        saved.fault(path._replace(trained=np.append(path.trained[:-1], False)), example)
    )
    first = int(np.argmax(path.trained))
    more = path.trained | (np.arange(len(path.ids)) >= first - 1)
    assert "outside the answers" in str(saved.fault(path._replace(trained=more), example))
    assert saved.fault(path, PromptCompletion("France 7, 3 plus 4 is", " 8, I am."))


def test_where_all_is_trained_everything_has_to_be() -> None:
    saved = Saved("byte_level_begin", CHATML)
    for example in (PlainText("I am fine."), Conversation(messages(*TALK))):
        path = saved.path(example, "all")
        assert saved.fault(path, example, "all") is None
        gap = path.trained & (np.arange(len(path.ids)) != 4)
        assert saved.fault(path._replace(trained=gap), example, "all") == "token 4 is not trained"


def test_what_was_cut_off_is_compared_as_far_as_it_goes() -> None:
    saved, talk = Saved("byte_level", CHATML), Conversation(messages(*TALK[:2]))
    whole = saved.path(talk)
    for limit in range(int(np.argmax(whole.trained)) + 1, len(whole.ids)):
        path = Path(whole.ids[:limit], whole.trained[:limit].copy())
        assert saved.fault(path, talk, limit=limit) is None
        path.trained[-1] = not path.trained[-1]
        assert saved.fault(path, talk, limit=limit)
    end = Path(whole.ids[5:], whole.trained[5:])
    with pytest.raises(IncomparableError, match="longer than max_tokens"):
        saved.fault(end, talk, limit=len(end.ids))


def test_an_answer_without_its_end_token_is_a_fault() -> None:
    saved, talk = Saved("byte_level", CHATML), Conversation(messages(*TALK[:2]))
    path = saved.path(talk)
    endless = Rendering(False, saved.rendering.template, None, [5])
    found = find_fault(path, talk, "completions", LIMIT, saved.tokenizer, endless)
    assert found == "no end token stands behind an answer"


def test_what_cannot_be_compared_says_why() -> None:
    talk = Conversation(messages(*TALK))
    for template, reason in ((DATED, "date"), (REASONING, "changes|differently")):
        saved = Saved("byte_level", template)
        example = talk
        if template == REASONING:
            example = Conversation(
                messages(TALK[0], ("assistant", "<think>\nHm.\n</think>\n\nParis."), *TALK[2:])
            )
        with pytest.raises(IncomparableError, match=reason):
            saved.fault(saved.path(example), example)
    calls = Conversation([*messages(TALK[0]), {"role": "assistant", "tool_calls": []}])
    saved = Saved("byte_level_begin", LLAMA3)
    with pytest.raises(IncomparableError, match="tools"):
        saved.fault(Path(np.zeros(3, dtype=np.int32), np.ones(3, dtype=bool)), calls)
