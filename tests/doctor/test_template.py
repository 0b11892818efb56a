"""Template checks: right templates pass, each broken one fails the check that is named for it."""

import pytest

from hone.data.chat import Renderer
from hone.data.formats import Conversation, PlainText, PromptCompletion
from hone.doctor.findings import Finding, run_checks
from hone.doctor.samples import built_in_examples
from hone.doctor.template import template_checks
from tests.data.tokenizers import (
    CHATML,
    GEMMA,
    LLAMA3,
    MARKED,
    MISTRAL,
    PHI3,
    REASONING,
    ZEPHYR,
    byte_level,
    shared,
)

pytestmark = pytest.mark.quick

ALTERNATING = [example for example in built_in_examples() if example.messages[0]["role"] == "user"]
TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
LOOP = "{% for m in messages %}"
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def examine(tokenizer, template: str, examples=None, ends=()) -> dict[str, Finding]:
    """Findings by the last word of their name."""
    renderer = Renderer(tokenizer, template)
    checks = template_checks(renderer, examples or built_in_examples(), ends)
    findings = run_checks(checks, told=lambda name: None)
    return {finding.name.removeprefix("template: "): finding for finding in findings}


def wrong(findings: dict[str, Finding]) -> list[str]:
    return [name for name, finding in findings.items() if not finding.passes]


@pytest.mark.parametrize(
    ("tokenizer", "template"),
    [
        ("byte_level", CHATML),
        ("byte_level", MARKED),
        ("byte_level_trimmed", CHATML),
        ("byte_level", LLAMA3),
        ("byte_level_begin", LLAMA3),
        ("sentencepiece", "chatml"),
        ("unigram", "{{ bos_token }}" + ZEPHYR),
        ("swallowing", PHI3),
        ("byte_level", REASONING),
    ],
)
def test_right_templates_pass(tokenizer: str, template: str) -> None:
    findings = examine(shared(tokenizer), template)
    assert wrong(findings) == []
    assert findings["answers"].difference == 0
    assert findings["earlier turns"].difference == 0


@pytest.mark.parametrize("template", [GEMMA, MISTRAL])
def test_what_a_template_refuses_is_told(template: str) -> None:
    tokenizer = shared("byte_level_begin")
    assert wrong(examine(tokenizer, template, ALTERNATING)) == []
    with_system = examine(tokenizer, MISTRAL)
    assert wrong(with_system) == []
    assert with_system["refused"].difference == 1


def test_rows_without_roles() -> None:
    rows = [PlainText("Lima is in Peru."), PromptCompletion("2 + 2 =", " 4")]
    findings = examine(shared("byte_level_begin"), "auto", rows)
    assert wrong(findings) == []
    assert findings["prompt"].difference == 0
    assert findings["earlier turns"].status == "not applicable"


def test_a_template_that_drops_the_end_token() -> None:
    findings = examine(shared("byte_level"), LOOP + "{{ m.role }}: {{ m.content }}\n{% endfor %}")
    assert "end" in wrong(findings)
    assert "writes no end token" in findings["end"].note


def test_a_template_that_drops_the_end_token_only_of_earlier_answers() -> None:
    ended = "{{ '<|im_end|>' if loop.last or m.role == 'user' else '' }}\n{% endfor %}"
    template = LOOP + "<|im_start|>{{ m.role }}\n{{ m.content }}" + ended + ASK
    findings = examine(shared("byte_level"), template)
    assert findings["earlier turns"].difference == 2
    assert wrong(findings) == []


def test_a_template_that_changes_earlier_turns_is_told() -> None:
    thinking = [
        Conversation(
            [
                {"role": "user", "content": "Add 1 and 1"},
                {"role": "assistant", "content": "<think>one, two</think>\n2"},
                {"role": "user", "content": "And again"},
                {"role": "assistant", "content": "3"},
            ]
        ),
        *built_in_examples(),
    ]
    findings = examine(shared("byte_level"), REASONING, thinking)
    assert findings["earlier turns"].difference == 1
    assert findings["earlier turns"].status == "note"


def test_a_template_that_shows_only_a_part_of_the_answers() -> None:
    cut = "{% if m.role == 'assistant' %}{{ m.content[:8] }}{% else %}{{ m.content }}{% endif %}"
    template = LOOP + "<|im_start|>{{ m.role }}\n" + cut + "<|im_end|>\n{% endfor %}" + ASK
    findings = examine(shared("byte_level"), template)
    assert wrong(findings) == ["answers"]
    assert findings["answers"].difference == 4


def test_a_template_that_shows_only_a_part_of_the_questions() -> None:
    cut = "{% if m.role == 'user' %}{{ m.content[:8] }}{% else %}{{ m.content }}{% endif %}"
    template = LOOP + "<|im_start|>{{ m.role }}\n" + cut + "<|im_end|>\n{% endfor %}" + ASK
    assert wrong(examine(shared("byte_level"), template)) == ["answers"]


@pytest.mark.parametrize("begin", ["", "{{ bos_token }}{{ bos_token }}"])
def test_a_template_with_no_beginning_or_two(begin: str) -> None:
    findings = examine(shared("byte_level_begin"), begin + CHATML)
    assert wrong(findings) == ["beginning"]
    assert findings["beginning"].difference == 4


def test_a_tokenizer_that_joins_the_prompt_with_the_answer() -> None:
    """`:` and the answer's first letters become one token, which the prompt alone cannot have."""
    tokenizer = byte_level()
    tokenizer.add_tokens([":Lima", ":Beca"])
    template = (
        LOOP
        + "{{ m.role }}:{{ m.content }}<|im_end|>\n{% endfor %}"
        + ("{% if add_generation_prompt %}assistant:{% endif %}")
    )
    findings = examine(tokenizer, template)
    assert wrong(findings) == ["prompt"]
    assert findings["prompt"].difference == 2


def test_a_template_that_is_another_one_each_time() -> None:
    template = "{{ range(1000000) | random }}\n" + CHATML
    single = [example for example in built_in_examples() if len(example.messages) == 2]
    assert "repetition" in wrong(examine(shared("byte_level"), template, single))


def test_ends_that_the_generation_config_does_not_know() -> None:
    tokenizer = shared("byte_level")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert examine(tokenizer, CHATML)["generation"].status == "note"
    assert examine(tokenizer, CHATML, ends=[end])["generation"].status == "ok"
