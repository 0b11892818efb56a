"""Templates that show earlier turns differently later: one sample for each turn, rightly masked.

The second computation is transformers' own: a turn's sample is the conversation up to it, and what
is not trained in it is the prompt that asks for the turn.
"""

import random
from typing import Any

import pytest

from hone.data.chat import Renderer
from hone.data.formats import Conversation, recognise
from hone.data.rows import RowError
from hone.recipe.data import Data
from tests.data.test_chat import CASES, conversations, trained_runs
from tests.data.tokenizers import CHATML, REASONING, shared, shipped

pytestmark = pytest.mark.quick

# Only the last answer keeps its reasoning, whoever speaks after it.
LAST_ONLY = CHATML.replace(
    "{{ m.content }}",
    "{{ m.content if loop.last or m.role != 'assistant' else "
    "m.content.split('</think>')[-1].strip() }}",
)
# Tools stand before the last question, in the manner of Mistral.
LATE_TOOLS = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{{ bos_token }}{% for m in messages %}"
    "{% if tools and loop.index0 == ns.last %}[TOOLS]{{ tools | tojson }}[/TOOLS]{% endif %}"
    "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{{ eos_token }}"
    "{% elif m.role == 'assistant' %}{{ m.content }}{{ eos_token }}"
    "{% else %}[{{ m.role }}]{{ m.content }}[/{{ m.role }}]{% endif %}{% endfor %}"
)
TEMPLATES = {
    "reasoning": (REASONING, shared("byte_level")),
    "last_only": (LAST_ONLY, shared("byte_level")),
    "late_tools": (LATE_TOOLS, shared("byte_level_begin")),
    **{name: shipped(name) for name in ("qwen3", "qwen3_5_think", "qwen3_6", "nemotron_3_nano")},
}
WITH_TOOLS = ("late_tools", "qwen3", "qwen3_5_think")
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
THOUGHTS = ["hm", "2 + 2\nis 4", "let me see"]
WORDS = ["Paris", "😀", "42", "x = 1\ny = 2", "é"]


def thinking(generator: random.Random, with_calls: bool) -> list[dict[str, Any]]:
    """A conversation of two to four questions whose answers begin with reasoning."""
    messages = [{"role": "system", "content": "Be brief."}] if generator.random() < 0.5 else []
    for _ in range(generator.randint(2, 4)):
        messages.append({"role": "user", "content": generator.choice(WORDS)})
        if with_calls and generator.random() < 0.7:
            function = {"name": "add", "arguments": {"a": generator.choice(WORDS)}}
            call = {"type": "function", "function": function}
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
            messages.append({"role": "tool", "content": generator.choice(WORDS)})
        thought = f"<think>\n{generator.choice(THOUGHTS)}\n</think>\n\n"
        messages.append({"role": "assistant", "content": thought + generator.choice(WORDS)})
    return messages


@pytest.mark.parametrize("name", TEMPLATES)
def test_each_turn_is_a_sample_as_it_would_be_generated(name: str) -> None:
    template, tokenizer = TEMPLATES[name]
    renderer = Renderer(tokenizer, template)
    end = renderer.end_token_ids[0]
    generator = random.Random(name)
    for _ in range(8):
        tools = TOOLS if name in WITH_TOOLS else None
        messages = thinking(generator, with_calls=tools is not None)
        samples = renderer.samples(Conversation(messages, tools=tools))
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        assert len(samples) == len(answers) > 1
        for (ids, trained, _), turn in zip(samples, answers, strict=True):

            def own(count: int, **settings: Any) -> list[int]:
                ids: list[int] = tokenizer.apply_chat_template(
                    messages[:count],  # noqa: B023
                    tools=tools,  # noqa: B023
                    chat_template=template,
                    return_dict=False,
                    **settings,
                )
                return ids

            prompt = own(turn, add_generation_prompt=True)
            whole = own(turn + 1)
            stop = len(prompt) + whole[len(prompt) :].index(end) + 1
            assert ids.tolist() == whole
            assert trained.tolist() == [len(prompt) <= n < stop for n in range(len(whole))]
            assert not tokenizer.decode(whole[stop:]).strip()


@pytest.mark.parametrize("name", ["reasoning", "last_only", "qwen3"])
def test_reasoning_is_trained_in_each_sample_and_only_in_its_own_turn(name: str) -> None:
    template, tokenizer = TEMPLATES[name]
    renderer = Renderer(tokenizer, template)
    messages = thinking(random.Random(0), with_calls=False)
    for ids, trained, _ in renderer.samples(Conversation(messages)):
        (run,) = trained_runs(renderer, ids, trained)
        assert run.startswith("<think>\n")
        assert tokenizer.decode(ids).count("</think>") == 1


@pytest.mark.parametrize("case", CASES)
def test_stable_templates_keep_one_sample(case: str) -> None:
    renderer = Renderer(shared(CASES[case][0]), CASES[case][1])
    for messages in conversations(case):
        assert len(renderer.samples(Conversation(messages))) == 1


def test_only_turns_behind_the_given_ones_are_samples() -> None:
    renderer = Renderer(shared("byte_level"), REASONING)
    messages = thinking(random.Random(3), with_calls=False)
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    everything = renderer.samples(Conversation(messages))
    later = renderer.samples(Conversation(messages, given=answers[0] + 1))
    assert [each.ids.tolist() for each in later] == [each.ids.tolist() for each in everything[1:]]


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_has_the_names_that_transformers_knows(key: str) -> None:
    template, tokenizer = TEMPLATES["qwen3"]
    answer = {"role": "assistant", "content": "4", key: "2 + 2"}
    row = {"messages": [{"role": "user", "content": "2 + 2?"}, answer]}
    example = recognise(list(row), Data(path="x")).example(row, "completions")
    (tokens,) = Renderer(tokenizer, template).samples(example)
    assert tokens.ids.tolist() == tokenizer.apply_chat_template(
        row["messages"], chat_template=template, return_dict=False
    )
    assert "2 + 2\n</think>" in tokenizer.decode(tokens.ids[tokens.trained])


def test_all_tokens_of_a_conversation_are_one_sample() -> None:
    renderer = Renderer(shared("byte_level"), REASONING)
    messages = thinking(random.Random(1), with_calls=False)
    (only,) = renderer.samples(Conversation(messages), "all")
    assert only.ids.tolist() == renderer.tokenizer.apply_chat_template(
        messages, chat_template=REASONING, return_dict=False
    )
    assert only.trained[1:].all()


def test_a_turn_that_ends_otherwise_is_refused() -> None:
    template = CHATML.replace(
        "<|im_end|>\n", "{{ '<|eot_id|>' if m.content == 'odd' else '<|im_end|>\n' }}"
    )
    renderer = Renderer(shared("byte_level"), template)
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "odd"}]
    with pytest.raises(RowError, match="ends message 2 otherwise than other answers"):
        renderer.samples(Conversation(messages))
