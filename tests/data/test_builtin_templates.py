"""The built-in templates: the published formats to the character, their tokens, their end."""

from typing import Any

import pytest

from hone.data.chat import Renderer
from hone.data.formats import Conversation, recognise
from hone.data.rows import RowError
from hone.errors import UserError
from hone.recipe.data import Data
from tests.data.test_chat import trained_runs
from tests.data.tokenizers import LLAMA3, byte_level, sentencepiece, shared, swallowing, unigram

pytestmark = pytest.mark.quick

# As in train.py of github.com/tatsu-lab/stanford_alpaca.
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n### Response:"
)


def conversation(row: dict[str, Any]) -> Conversation:
    made = recognise(list(row), Data(path="x")).example(row, "completions")
    assert isinstance(made, Conversation)
    return made


@pytest.mark.parametrize("name", ["byte_level", "byte_level_begin", "sentencepiece", "unigram"])
@pytest.mark.parametrize("given", ["", None, "missing", "It is cold.\nIt snows 😀."])
def test_an_instruction_is_written_as_alpaca_was_published(name: str, given: str | None) -> None:
    tokenizer = shared(name)
    renderer = Renderer(tokenizer, "alpaca")
    row = {"instruction": "Say it briefly. ", "input": given, "output": " Cold."}
    if given == "missing":
        del row["input"]
    asked = (WITH_INPUT if row.get("input") else WITHOUT_INPUT).format_map(row)
    made = conversation(row)
    (rendered,) = renderer.render(made, "completions")
    begin = tokenizer.bos_token if tokenizer.bos_token_id in renderer.begin_ids else ""
    assert rendered.text == f"{begin}{asked} Cold.{tokenizer.eos_token}"
    assert rendered.spans == [(len(begin + asked), len(rendered.text))]
    (tokens,) = renderer.samples(made)
    assert tokens.ids.tolist() == tokenizer.apply_chat_template(
        made.messages, chat_template=renderer.template, return_dict=False
    )
    assert renderer.prompt(made.messages[:1]) == tokenizer.apply_chat_template(
        made.messages[:1],
        chat_template=renderer.template,
        add_generation_prompt=True,
        return_dict=False,
    )
    assert renderer.end_token_ids == [tokenizer.eos_token_id] == [tokens.ids[-1]]


def test_alpaca_goes_on_with_later_exchanges() -> None:
    renderer = Renderer(shared("byte_level"), "alpaca")
    turns = [("user", "One?"), ("assistant", "1"), ("user", "Two?"), ("assistant", "2")]
    messages = [{"role": role, "content": content} for role, content in turns]
    (rendered,) = renderer.render(Conversation(messages), "completions")
    end = "<|endoftext|>"
    first = WITHOUT_INPUT.format(instruction="One?")
    rest = f"\n\n### Instruction:\nTwo?\n\n### Response:2{end}"
    assert rendered.text == f"{first}1{end}{rest}"
    ids, trained = renderer.conversation(messages)
    assert trained_runs(renderer, ids, trained) == [f"1{end}", f"2{end}"]
    system = {"role": "system", "content": "Count."}
    (rendered,) = renderer.render(Conversation([system, *messages[:2]]), "completions")
    assert rendered.text == f"Count.\n\n### Instruction:\nOne?\n\n### Response:1{end}"


@pytest.mark.parametrize("roles", ["aua", "uua", "uaa", "usa", "uta", "suta", "ssua"])
def test_alpaca_refuses_what_it_has_no_place_for(roles: str) -> None:
    names = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
    messages = [{"role": names[role], "content": f"{role}{i}"} for i, role in enumerate(roles)]
    with pytest.raises(RowError, match="has no place here"):
        Renderer(shared("byte_level"), "alpaca").samples(Conversation(messages))


@pytest.mark.parametrize("name", ["byte_level", "byte_level_begin"])
def test_llama_is_the_published_format(name: str) -> None:
    tokenizer = shared(name)
    renderer = Renderer(tokenizer, "llama")
    turns = [("system", " Be brief."), ("user", "One?"), ("assistant", "1\n"), ("user", "Two?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    ids, trained = renderer.conversation(messages)
    published = LLAMA3 if name == "byte_level_begin" else LLAMA3.replace("bos_token", "''")
    own = tokenizer.apply_chat_template(messages, chat_template=published, return_dict=False)
    assert ids.tolist() == own
    assert trained_runs(renderer, ids, trained) == ["1<|eot_id|>"]
    ends = tokenizer.convert_ids_to_tokens(renderer.end_token_ids)
    assert ends == ["<|eot_id|>", "<|endoftext|>"]


def test_llama_needs_its_tokens_and_names_them() -> None:
    with pytest.raises(UserError, match=r'"<\|start_header_id\|>", "<\|end_header') as caught:
        Renderer(shared("sentencepiece"), "llama")
    assert "add_tokens: [" in str(caught.value.hint)
    few = byte_level(chat_tokens=["<|start_header_id|>", "<|end_header_id|>"])
    with pytest.raises(UserError) as caught:
        Renderer(few, "llama")
    assert caught.value.message.endswith('does not have: "<|eot_id|>"')
    few.add_tokens(["<|eot_id|>"])
    grown = Renderer(few, "llama")
    assert few.convert_ids_to_tokens(grown.end_token_ids) == ["<|eot_id|>", "<|endoftext|>"]


@pytest.mark.parametrize("template", ["chatml", "alpaca"])
def test_an_end_token_is_needed(template: str) -> None:
    tokenizer = byte_level(chat_tokens=[])
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="end"):
        Renderer(tokenizer, template)


FAMILIES = {
    "byte_level": byte_level,
    "byte_level_begin": lambda: byte_level(begin=True),
    "without_chat_tokens": lambda: byte_level(chat_tokens=[]),
    "sentencepiece": sentencepiece,
    "unigram": unigram,
    "swallowing": swallowing,
}


@pytest.mark.parametrize("template", ["auto", "chatml", "alpaca", "llama"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_ends_an_answer_in_training_ends_it_in_generation(family: str, template: str) -> None:
    """The last trained token of every turn is the first of the end tokens."""
    tokenizer = FAMILIES[family]()
    if template == "llama":
        names = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
        tokenizer.add_tokens(names, special_tokens=True)
    renderer = Renderer(tokenizer, template)
    row = {"instruction": "Add.", "input": "1 and 1", "output": "2"}
    (tokens,) = renderer.samples(conversation(row))
    ends = renderer.end_token_ids
    assert tokens.ids[tokens.trained][-1] == ends[0]
    assert ends[-1] == tokenizer.eos_token_id
    assert not set(tokens.ids[tokens.trained][:-1].tolist()) & set(ends)


def test_an_instruction_is_a_question_with_its_input_for_other_templates() -> None:
    renderer = Renderer(shared("byte_level"))
    row = {"instruction": "Add.", "input": "1 and 1", "output": "2"}
    plain = [{"role": "user", "content": "Add.\n\n1 and 1"}, {"role": "assistant", "content": "2"}]
    (tokens,) = renderer.samples(conversation(row))
    assert tokens.ids.tolist() == renderer.conversation(plain)[0].tolist()
