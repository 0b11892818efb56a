"""The renderer: exact tokens, exact masks, for every kind of tokenizer and template."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hone.data.chat import Renderer
from hone.data.formats import Conversation, PromptCompletion
from hone.data.rows import RowError
from hone.errors import UserError
from tests.data.tokenizers import (
    CHATML,
    DATED,
    GEMMA,
    LLAMA3,
    MARKED,
    MISTRAL,
    PHI3,
    REASONING,
    ZEPHYR,
    byte_level,
    shared,
    shipped,
)

pytestmark = pytest.mark.quick

Messages = list[dict[str, Any]]

# tokenizer, template, what the template writes before and after an answer that is trained,
# whether it trims contents, whether it takes system messages
CASES: dict[str, tuple[str, str, str, str, bool, bool]] = {
    "chatml": ("byte_level", CHATML, "", "<|im_end|>", False, True),
    "chatml_trimmed_offsets": ("byte_level_trimmed", CHATML, "", "<|im_end|>", False, True),
    "marked": ("byte_level_trimmed", MARKED, "", "<|im_end|>", False, True),
    "llama3": ("byte_level_begin", LLAMA3, "", "<|eot_id|>", True, True),
    "gemma": ("byte_level_begin", GEMMA, "", "<end_of_turn>", True, True),
    "zephyr_bytes": ("byte_level", ZEPHYR, "", "<|endoftext|>", False, True),
    "zephyr_sentencepiece": ("sentencepiece", ZEPHYR, "", "</s>", False, True),
    "mistral_sentencepiece": ("sentencepiece", MISTRAL, " ", "</s>", False, False),
    "mistral_unigram": ("unigram", MISTRAL, " ", "</s>", False, False),
    "phi3": ("swallowing", PHI3, "", "<|end|>", False, True),
    "own_chatml_bytes": ("byte_level", "chatml", "", "<|im_end|>", False, True),
    "own_chatml_unigram": ("unigram", "chatml", "", "</s>", False, True),
    "own_chatml_sentencepiece": ("sentencepiece", "chatml", "", "</s>", False, True),
}
WORDS = [
    "Paris",
    "is",
    "42",
    "the answer",
    "😀",
    "é",
    "yes,",
    "x = 1\ny = 2",
    "\n\n",
    "- a\n- b",
    "naïve",
]
cases = pytest.mark.parametrize("case", CASES)


def make_renderer(case: str) -> Renderer:
    tokenizer, template, *_ = CASES[case]
    return Renderer(shared(tokenizer), template)


def make_conversation(random: random.Random, with_system: bool) -> Messages:
    """User and assistant in turns; no answer begins or ends with white space."""
    messages = [{"role": "system", "content": "Be brief."}] if with_system else []
    for _ in range(random.randint(1, 3)):
        for role in ("user", "assistant"):
            words = [random.choice(WORDS) for _ in range(random.randint(1, 6))]
            messages.append({"role": role, "content": " ".join(words).strip()})
    return messages


def conversations(case: str) -> list[Messages]:
    generator = random.Random(case)
    with_system = CASES[case][5]
    return [make_conversation(generator, with_system and i % 2 == 0) for i in range(12)]


def trained_runs(renderer: Renderer, ids: np.ndarray, trained: np.ndarray) -> list[str]:
    """The texts of the runs of trained tokens."""
    borders = np.flatnonzero(np.diff(np.concatenate([[0], trained.astype(int), [0]])))
    runs = [ids[begin:end].tolist() for begin, end in borders.reshape(-1, 2)]
    return [renderer.tokenizer.decode(run, skip_special_tokens=False) for run in runs]


def expected_runs(case: str, messages: Messages) -> list[str]:
    _, _, before, after, trims, _ = CASES[case]
    contents = [m["content"] for m in messages if m["role"] == "assistant"]
    return [before + (text.strip() if trims else text) + after for text in contents]


def without_spaces(case: str, texts: list[str]) -> list[str]:
    """SentencePiece writes a space before the first word after a special token: not compared."""
    if CASES[case][0] not in ("sentencepiece", "unigram"):
        return texts
    return [text.lstrip(" ").replace(" </s>", "</s>").replace("\n ", "\n") for text in texts]


def holds(case: str, renderer: Renderer, messages: Messages, shift: int = 0) -> bool:
    """The property: what is trained reads as the answers with their end tokens, nothing else."""
    ids, trained = renderer.conversation(messages)
    runs = trained_runs(renderer, ids, np.roll(trained, shift))
    wanted = expected_runs(case, messages)
    return without_spaces(case, runs) == without_spaces(case, wanted)


@cases
def test_trained_tokens_are_the_answers_with_their_end_tokens(case: str) -> None:
    renderer = make_renderer(case)
    for messages in conversations(case):
        assert holds(case, renderer, messages), messages


@cases
@pytest.mark.parametrize("shift", [-1, 1])
def test_a_shifted_mask_would_be_seen(case: str, shift: int) -> None:
    renderer = make_renderer(case)
    assert not any(holds(case, renderer, each, shift) for each in conversations(case))


@cases
def test_tokens_are_those_of_the_tokenizers_own_template(case: str) -> None:
    renderer = make_renderer(case)
    tokenizer = renderer.tokenizer
    for messages in conversations(case):
        ids, _ = renderer.conversation(messages)
        own = tokenizer.apply_chat_template(
            messages, chat_template=renderer.template, return_dict=False
        )
        assert ids.tolist() == own
        prompt = tokenizer.apply_chat_template(
            messages[:-1],
            chat_template=renderer.template,
            add_generation_prompt=True,
            return_dict=False,
        )
        assert renderer.prompt(messages[:-1]) == prompt


@cases
def test_a_generation_prompt_is_a_prefix_of_what_was_trained(case: str) -> None:
    renderer = make_renderer(case)
    for messages in conversations(case):
        ids, trained = renderer.conversation(messages)
        prompt = renderer.prompt(messages[:-1])
        assert ids[: len(prompt)].tolist() == prompt
        assert trained[len(prompt)]


@cases
def test_the_last_trained_token_is_an_end_token(case: str) -> None:
    renderer = make_renderer(case)
    for messages in conversations(case):
        ids, trained = renderer.conversation(messages)
        ends = np.flatnonzero(trained & ~np.append(trained[1:], False))
        assert len(ends) == sum(m["role"] == "assistant" for m in messages)
        assert set(ids[ends].tolist()) == {renderer.end_token_ids[0]}


@cases
def test_one_beginning_token_where_the_template_or_the_tokenizer_writes_one(case: str) -> None:
    renderer = make_renderer(case)
    tokenizer = renderer.tokenizer
    ids, _ = renderer.conversation(
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    )
    text_ids, _ = renderer.text("Hello")
    begins = tokenizer.bos_token_id is not None and case != "zephyr_sentencepiece"
    assert ids.tolist().count(tokenizer.bos_token_id) == int(begins)
    assert text_ids.tolist().count(tokenizer.bos_token_id) == int(tokenizer.bos_token is not None)


def test_training_on_all_trains_all_but_the_first_token() -> None:
    renderer = make_renderer("chatml")
    ids, trained = renderer.conversation(conversations("chatml")[0], train_on="all")
    assert trained.tolist() == [False] + [True] * (len(ids) - 1)


def test_given_messages_are_not_trained() -> None:
    renderer = make_renderer("chatml")
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "first"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "second"},
    ]
    ids, trained = renderer.prompt_completion(messages[:3], messages[3:])
    assert trained_runs(renderer, ids, trained) == ["second<|im_end|>"]
    assert ids.tolist() == renderer.conversation(messages)[0].tolist()


def test_an_empty_answer_still_has_its_end_token() -> None:
    renderer = make_renderer("chatml")
    ids, trained = renderer.conversation(
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]
    )
    assert trained_runs(renderer, ids, trained) == ["<|im_end|>"]


@pytest.mark.parametrize("name", ["byte_level", "byte_level_begin", "sentencepiece", "unigram"])
def test_text_prompt_and_completion(name: str) -> None:
    tokenizer = shared(name)
    renderer = Renderer(tokenizer)
    prompt, completion = "Which city? It is:", " Paris 😀."
    ids, trained = renderer.prompt_completion(prompt, completion)
    assert ids.tolist() == [*tokenizer(prompt + completion)["input_ids"], tokenizer.eos_token_id]
    assert trained_runs(renderer, ids, trained) == [completion + tokenizer.eos_token]
    given = renderer.prompt(prompt)
    assert ids[: len(given)].tolist() == given == tokenizer(prompt)["input_ids"]
    assert renderer.prompt_completion(prompt, completion, "all")[1].sum() == len(ids) - 1


@pytest.mark.parametrize("name", ["byte_level", "byte_level_begin", "sentencepiece", "unigram"])
def test_plain_text_is_trained_whole_and_ends(name: str) -> None:
    tokenizer = shared(name)
    ids, trained = Renderer(tokenizer).text("Hello there")
    assert ids.tolist() == [*tokenizer("Hello there")["input_ids"], tokenizer.eos_token_id]
    assert trained.tolist() == [False] + [True] * (len(ids) - 1)


def test_text_that_brings_its_own_beginning_and_end_gets_no_second_ones() -> None:
    tokenizer = shared("byte_level_begin")
    ids, _ = Renderer(tokenizer).text("<|begin|>Hello<|endoftext|>")
    assert ids.tolist() == Renderer(tokenizer).text("Hello")[0].tolist()
    assert Renderer(tokenizer).prompt("<|begin|>Hello") == tokenizer("Hello")["input_ids"]


def test_empty_text_has_only_its_end() -> None:
    ids, trained = Renderer(shared("byte_level")).text("")
    assert (ids.tolist(), trained.tolist()) == ([0], [False])
    ids, trained = Renderer(shared("byte_level_begin")).text("")
    assert (ids.tolist(), trained.tolist()) == ([1, 0], [False, True])


def test_a_character_split_over_tokens_is_trained_whole() -> None:
    renderer = Renderer(shared("byte_level_trimmed"))
    ids, trained = renderer.prompt_completion("🐘", "🐢")
    assert len(ids) > 5, "the tokenizer knows neither as one token"
    assert trained_runs(renderer, ids, trained) == ["🐢<|endoftext|>"]


@pytest.mark.parametrize("name", ["byte_level", "byte_level_trimmed"])
@pytest.mark.parametrize("border", [("a ", " b"), ("a", "  b"), ("a:\n", "    b"), ("a", "\n\nb")])
def test_spaces_are_trained_where_they_belong_to_the_completion(
    name: str, border: tuple[str, str]
) -> None:
    prompt, completion = border
    renderer = Renderer(shared(name))
    rendered = renderer.render(PromptCompletion(prompt, completion), "completions")
    ids, trained, straddling = renderer.tokenise(rendered)[0]
    (run,) = trained_runs(renderer, ids, trained)
    assert run.endswith(completion + "<|endoftext|>")
    over = run.removesuffix(completion + "<|endoftext|>")
    assert prompt.endswith(over)
    assert straddling == int(over != "")


def test_a_token_across_the_border_is_trained_and_counted() -> None:
    renderer = Renderer(shared("byte_level"))
    assert renderer.tokenizer.tokenize(" the answer")[-1] == "Ġanswer", "the word is one token"
    rendered = renderer.render(PromptCompletion("the ans", "wer"), "completions")
    ids, trained, straddling = renderer.tokenise(rendered)[0]
    assert trained_runs(renderer, ids, trained) == [" answer<|endoftext|>"]
    assert straddling == 1
    apart = renderer.render(PromptCompletion("the", " answer"), "completions")
    assert renderer.tokenise(apart)[0].straddling == 0


def test_a_special_token_that_swallows_a_completions_spaces_is_not_trained() -> None:
    renderer = Renderer(shared("swallowing"), PHI3)
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "  b"}]
    ids, trained = renderer.conversation(messages)
    assert trained_runs(renderer, ids, trained) == ["b<|end|>"]
    assert renderer.prompt(messages[:1]) == ids[: int(np.argmax(trained))].tolist()


def test_content_that_looks_like_the_template_does_not_move_the_mask() -> None:
    renderer = Renderer(shared("byte_level"), ZEPHYR)
    answer = "<|user|>\nno\n<|assistant|>\nyes"
    messages = [
        {"role": "user", "content": "<|assistant|>\n" + answer},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": answer},
        {"role": "assistant", "content": answer},
    ]
    ids, trained = renderer.conversation(messages)
    assert trained_runs(renderer, ids, trained) == [answer + "<|endoftext|>"] * 2


THOUGHT = "<think>hm</think>\n\n"
LONG = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": THOUGHT + "first"},
    {"role": "user", "content": "b"},
    {"role": "assistant", "content": THOUGHT + "second"},
]


def test_a_template_that_rewrites_earlier_turns_gives_a_sample_for_each() -> None:
    renderer = Renderer(shared("byte_level"), REASONING)
    runs = [
        trained_runs(renderer, ids, trained)
        for ids, trained, _ in renderer.samples(Conversation(LONG))
    ]
    assert runs == [[THOUGHT + "first<|im_end|>"], [THOUGHT + "second<|im_end|>"]]
    with pytest.raises(RowError, match="becomes 2 samples where one was asked for"):
        renderer.conversation(LONG)


def test_a_template_that_rewrites_earlier_turns_still_trains_the_last_one() -> None:
    renderer = Renderer(shared("byte_level"), REASONING)
    ids, trained = renderer.prompt_completion(LONG[:3], LONG[3:])
    assert trained_runs(renderer, ids, trained) == [THOUGHT + "second<|im_end|>"]
    assert "first" in renderer.tokenizer.decode(ids)
    assert renderer.tokenizer.decode(ids).count("hm") == 1
    ids, trained = renderer.conversation(LONG[:2])
    assert trained_runs(renderer, ids, trained) == [THOUGHT + "first<|im_end|>"]


def test_generation_blocks_are_used_where_earlier_turns_change() -> None:
    marked = REASONING.replace(
        "{{ content }}<|im_end|>",
        "{% if m.role == 'assistant' %}{% generation %}{{ content }}<|im_end|>\n{% endgeneration %}"
        "{% else %}{{ content }}<|im_end|>\n{% endif %}",
    ).replace("{% endif %}\n{% endfor %}", "{% endif %}{% endfor %}")
    renderer = Renderer(shared("byte_level"), marked)
    ids, trained = renderer.conversation(LONG)
    assert trained_runs(renderer, ids, trained) == ["first<|im_end|>", THOUGHT + "second<|im_end|>"]
    own = renderer.tokenizer.apply_chat_template(LONG, chat_template=marked, return_dict=False)
    assert ids.tolist() == own


def test_a_template_that_asks_otherwise_than_it_shows_is_refused() -> None:
    asking = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    renderer = Renderer(shared("byte_level"), asking)
    with pytest.raises(RowError, match=r"asks for message 2 with '<think>.*, but shows 'first<"):
        renderer.conversation([LONG[0], {"role": "assistant", "content": "first"}])


def test_a_template_that_leaves_contents_out_is_refused() -> None:
    template = "{% for m in messages %}<|im_start|>{{ m.content.parts }}<|im_end|>{% endfor %}"
    with pytest.raises(UserError, match="does not show what an answer says"):
        Renderer(shared("byte_level"), template).conversation(LONG[:2])


SHIPPED = {  # templates of known models, as the second implementation ships them
    "cohere2": "<|END_RESPONSE|>",
    "gemma3": "<end_of_turn>",
    "lfm2": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "llama3_1": "<|eot_id|>",
    "phi3": "<|end|>",
    "qwen2_5": "<|im_end|>",
    "qwen2_5_training": "<|im_end|>",
    "qwen3_instruct_2507": "<|im_end|>",
}


@pytest.mark.parametrize("name", SHIPPED)
def test_templates_of_known_models(name: str) -> None:
    template, tokenizer = shipped(name)
    renderer = Renderer(tokenizer, template)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi there"},
        {"role": "assistant", "content": "Hello 😀"},
        {"role": "user", "content": "  and then?\n"},
        {"role": "assistant", "content": "- a\n- b"},
    ]
    ids, trained = renderer.conversation(messages)
    answers = ["Hello 😀" + SHIPPED[name], "- a\n- b" + SHIPPED[name]]
    assert trained_runs(renderer, ids, trained) == answers
    own = tokenizer.apply_chat_template(messages, chat_template=template, return_dict=False)
    assert ids.tolist() == own
    assert own[: len(renderer.prompt(messages[:4]))] == renderer.prompt(messages[:4])


def test_a_template_without_end_token_is_refused() -> None:
    template = "{% for m in messages %}### {{ m.role }}\n{{ m.content }}\n{% endfor %}"
    renderer = Renderer(shared("byte_level"), template)
    with pytest.raises(UserError, match="no end token after an answer") as caught:
        renderer.conversation([*LONG[:1], {"role": "assistant", "content": "b"}])
    assert "template: chatml" in str(caught.value.hint)
    assert renderer.end_token_ids == [renderer.tokenizer.eos_token_id]
    assert len(renderer.text("Hello")[0]) > 1


def test_end_tokens_are_the_turns_and_the_sequences() -> None:
    chatml, phi = Renderer(shared("byte_level"), CHATML), Renderer(shared("swallowing"), PHI3)
    named = [chatml.tokenizer.convert_ids_to_tokens(chatml.end_token_ids)]
    named += [phi.tokenizer.convert_ids_to_tokens(phi.end_token_ids)]
    assert named == [["<|im_end|>", "<|endoftext|>"], ["<|end|>", "<|endoftext|>"]]
    assert Renderer(shared("sentencepiece"), MISTRAL).end_token_ids == [2]


def test_a_templates_own_refusal_is_shown() -> None:
    renderer = Renderer(shared("byte_level_begin"), GEMMA)
    with pytest.raises(RowError, match="roles must alternate"):
        renderer.conversation([LONG[0], LONG[0], LONG[1]])


def test_the_date_is_fixed() -> None:
    renderer = Renderer(shared("byte_level"), DATED, date="2024-02-29")
    ids, _ = renderer.conversation(LONG[:2])
    assert renderer.tokenizer.decode(ids).startswith("Today is 29 Feb 2024.\n")
    assert renderer.date == "2024-02-29"
    assert Renderer(shared("byte_level"), CHATML, date="2024-02-29").date is None
    assert Renderer(shared("byte_level"), DATED).date is not None
    with pytest.raises(UserError, match="expected the form"):
        Renderer(shared("byte_level"), DATED, date="yesterday")


def test_templates_by_name(tmp_path: Path) -> None:
    tokenizer = byte_level()
    assert Renderer(tokenizer).template == Renderer(tokenizer, "chatml").template
    tokenizer.chat_template = ZEPHYR
    assert Renderer(tokenizer).template == ZEPHYR
    tokenizer.chat_template = {"default": CHATML, "tool_use": ZEPHYR}
    assert Renderer(tokenizer).template == CHATML
    tokenizer.chat_template = {"rag": CHATML, "tool_use": ZEPHYR}
    with pytest.raises(UserError, match="rag, tool_use"):
        Renderer(tokenizer)
    file = tmp_path / "chat.jinja"
    file.write_text(LLAMA3)
    assert Renderer(tokenizer, str(file)).template == LLAMA3
    with pytest.raises(UserError, match="no chat template") as caught:
        Renderer(tokenizer, str(tmp_path / "chet.jinja"))
    assert "chat.jinja" in str(caught.value.hint)
    with pytest.raises(UserError, match=r"not valid Jinja: .*line 2"):
        Renderer(tokenizer, "a\n{% for %}")


def test_chatml_takes_the_end_token_that_there_is() -> None:
    with_turns, without = byte_level(), byte_level(chat_tokens=[])
    assert "'<|im_end|>'" in Renderer(with_turns).template
    renderer = Renderer(without)
    ids, trained = renderer.conversation(LONG[2:])
    assert trained_runs(renderer, ids, trained) == [THOUGHT + "second<|endoftext|>"]
    without.eos_token = None
    with pytest.raises(UserError, match="ChatML needs an end token"):
        Renderer(without)


def test_a_tokenizer_without_end_cannot_hold_text() -> None:
    tokenizer = byte_level()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end-of-sequence token"):
        Renderer(tokenizer).text("Hello")
    assert Renderer(tokenizer).conversation(LONG[:2])[1].any()


def test_what_an_earlier_call_left_in_the_tokenizer_does_not_matter() -> None:
    tokenizer = byte_level(pad_token="<|endoftext|>")
    renderer = Renderer(tokenizer)
    before = renderer.conversation(LONG)[0].tolist()
    tokenizer(["a", "b c"], padding="max_length", truncation=True, max_length=4)
    assert renderer.conversation(LONG)[0].tolist() == before
    tokenizer(["a", "b c"], padding="max_length", truncation=True, max_length=4)
    assert renderer.prompt(LONG)[: len(before)] == before


def test_a_tokenizer_without_offsets_is_refused() -> None:
    class SlowTokenizer:
        is_fast = False

    with pytest.raises(UserError, match="`SlowTokenizer` cannot tell which characters"):
        Renderer(SlowTokenizer())


def test_many_at_once_are_the_same_as_one_by_one() -> None:
    renderer = make_renderer("llama3")
    examples = [Conversation(messages) for messages in conversations("llama3")]
    rendered = [text for each in examples for text in renderer.render(each, "completions")]
    for tokens, example in zip(renderer.tokenise(rendered), examples, strict=True):
        ids, trained = renderer.conversation(example.messages)
        assert (tokens.ids.tolist(), tokens.trained.tolist()) == (ids.tolist(), trained.tolist())
