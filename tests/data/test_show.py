"""What a person sees of the data."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from hone.data.joined import Joined
from hone.data.prepare import Prepared, prepare
from hone.data.show import samples_as_json, show_samples
from hone.recipe.data import Data
from tests.data.test_tools import TOOLS, conversation
from tests.data.tokenizers import REASONING, shared, shipped

pytestmark = pytest.mark.quick


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return prepared_with("byte_level", tmp_path)


def prepared_with(name: str, folder: Path) -> Prepared:
    path = folder / "a.jsonl"
    answers = ["Paris", "[bold]I[/bold] 🐘\n42", ""]
    rows = [
        {"messages": [{"role": "user", "content": "a b"}, {"role": "assistant", "content": text}]}
        for text in answers
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings: dict[str, Any] = {"max_tokens": 99, "overlong": "drop", "train_on": "completions"}
    return prepare(Data(path=str(path)), shared(name), cache_folder=folder / "cache", **settings)


def printed(renderable: RenderableType, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=300, **options)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_without_colours_trained_tokens_stand_in_brackets(prepared: Prepared) -> None:
    tokenizer = shared("byte_level")
    assert tokenizer.tokenize("user") == ["u", "s", "er"]
    text = printed(show_samples(Joined((prepared,)), tokenizer, 1))
    numbers = f"{prepared.lengths[0]} tokens, {prepared.trained[0]} trained"
    assert f"sample 0 of 3, {prepared.sources[0]['path']}:1: {numbers}\n" in text
    assert "\n<|im_start|>|u|s|er|↵\n|a| |b|<|im_end|>|↵\n|<|im_start|>|a" in text
    answer = "".join(f"[{piece}]" for piece in tokenizer.tokenize("Paris"))
    assert f"|t|↵\n{answer}[<|im_end|>]↵\n" in text


def test_with_colours_trained_tokens_are_green(prepared: Prepared) -> None:
    options: dict[str, Any] = {"force_terminal": True, "color_system": "standard"}
    text = printed(show_samples(Joined((prepared,)), shared("byte_level"), 1), **options)
    assert "[<|im_end|>]" not in text
    green = re.findall("\x1b\\[[0-9;]*32m([^\x1b]*)\x1b", text)
    assert "".join(green) == "Paris<|im_end|>"
    plain = printed(
        show_samples(Joined((prepared,)), shared("byte_level"), 1), no_color=True, **options
    )
    assert "[<|im_end|>]" in plain


def test_contents_are_shown_as_they_are(prepared: Prepared) -> None:
    tokenizer = shared("byte_level")
    text = printed(show_samples(Joined((prepared,)), tokenizer, 1, start=1))
    assert "[bold]I[/bold]" in text.replace("][", ""), "no markup"
    assert "[↵\n]" in text
    assert "\ufffd" not in text, "a part of a character is shown as the vocabulary writes it"
    assert "".join(f"[{piece}]" for piece in tokenizer.tokenize(" 🐘")) in text


def test_the_counts_are_shown(prepared: Prepared) -> None:
    text = printed(show_samples(Joined((prepared,)), shared("byte_level"), 0))
    rows = {line.rsplit(maxsplit=1)[0].strip(): line.split()[-1] for line in text.splitlines()}
    assert rows["samples"] == "3"
    assert rows["tokens"] == f"{prepared.report['tokens']:,}"
    assert rows["trained tokens"] == f"{prepared.report['trained_tokens']:,}"
    assert rows["dropped: nothing to train"] == "0"


@pytest.mark.parametrize("name", ["byte_level", "sentencepiece", "unigram", "swallowing"])
def test_the_json_form_holds_every_token(name: str, tmp_path: Path) -> None:
    prepared, tokenizer = prepared_with(name, tmp_path), shared(name)
    shown = samples_as_json(Joined((prepared,)), tokenizer, 5, start=1)
    assert [each["sample"] for each in shown] == [1, 2]
    assert json.loads(json.dumps(shown)) == shown
    for each in shown:
        (segment,) = prepared.sample(each["sample"]).segments
        assert [token["id"] for token in each["tokens"]] == segment.tokens.tolist()
        assert [token["trained"] for token in each["tokens"]] == segment.trained.tolist()
        assert each["num_trained"] == segment.trained.sum()
        assert each["text"] == tokenizer.decode(segment.tokens)
    last = "".join(token["text"] for token in shown[1]["tokens"])
    assert "assistant" in last and last.replace(" ", "") == shown[1]["text"].replace(" ", "")


PAIRS = [
    {"prompt": "The cap", "chosen": "ital", "rejected": " is\nred"},
    {"prompt": "Hello", "chosen": "a", "rejected": "a"},
]
LABELLED = [{"prompt": "Hello", "completion": " you", "label": label} for label in (1, 0)]

# The token ` capital` begins in the prompt, so ` cap` belongs to the other side.
PAIR_SHOWN = """\
sample 0 of 1, FILE:1: 9 tokens, 7 trained
The
chosen: 2 tokens, 2 trained
[ capital][<|endoftext|>]
rejected: 6 tokens, 5 trained
 cap[ is][↵
][re][d][<|endoftext|>]

"""
LABELLED_SHOWN = """\
sample 0 of 2, FILE:1: 4 tokens, 2 trained
Hell|o
completion: wanted, 2 tokens, 2 trained
[ you][<|endoftext|>]

sample 1 of 2, FILE:2: 4 tokens, 2 trained
Hell|o
completion: not wanted, 2 tokens, 2 trained
[ you][<|endoftext|>]

"""


def prepared_trees(rows: list[Any], kind: Any, folder: Path) -> Joined:
    path = folder / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepared = prepare(
        Data(path=str(path)),
        shared("byte_level"),
        max_tokens=99,
        overlong="drop",
        train_on="completions",
        kind=kind,
        cache_folder=folder / "cache",
    )
    return Joined((prepared,))


@pytest.mark.parametrize(
    ("rows", "kind", "expected"),
    [(PAIRS, "pairs", PAIR_SHOWN), (LABELLED, "unpaired", LABELLED_SHOWN)],
)
def test_a_tree_is_shown_with_its_prompt_once(
    rows: list[Any], kind: str, expected: str, tmp_path: Path
) -> None:
    trees, tokenizer = prepared_trees(rows, kind, tmp_path), shared("byte_level")
    text = printed(show_samples(trees, tokenizer, 3))
    assert text.replace(f"{tmp_path}/p.jsonl", "FILE").startswith(expected)
    coloured = printed(
        show_samples(trees, tokenizer, 3), force_terminal=True, color_system="standard"
    )
    green = re.findall("\x1b\\[[0-9;]*32m([^\x1b]*)\x1b", coloured)
    assert "<|endoftext|>" in green and "The" not in green
    (end, *_) = trees.sample(0).segments
    assert not end.trained.any()


def test_the_json_form_of_trees_names_their_segments(tmp_path: Path) -> None:
    tokenizer = shared("byte_level")
    (pair,) = samples_as_json(prepared_trees(PAIRS, "pairs", tmp_path), tokenizer, 3)
    assert "tokens" not in pair and json.loads(json.dumps(pair)) == pair
    roles = {each["role"]: each for each in pair["segments"]}
    assert list(roles) == ["prompt", "chosen", "rejected"]
    assert roles["chosen"]["text"] == " capital<|endoftext|>"
    assert [token["trained"] for token in roles["prompt"]["tokens"]] == [False]
    assert pair["num_tokens"] == sum(each["num_tokens"] for each in pair["segments"])
    assert pair["num_trained"] == sum(each["num_trained"] for each in pair["segments"])
    labelled = samples_as_json(prepared_trees(LABELLED, "unpaired", tmp_path), tokenizer, 3)
    assert [each["segments"][1]["label"] for each in labelled] == [True, False]
    assert "label" not in labelled[0]["segments"][0]


def test_samples_of_one_row_are_named_as_its_parts(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    turns = [{"role": role, "content": "<think>hm</think>a"} for role in ("user", "assistant")]
    rows = [{"messages": turns}, {"messages": turns * 3}, {"messages": turns}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepared = prepare(
        Data(path=str(path), template=REASONING),
        shared("byte_level"),
        max_tokens=500,
        overlong="drop",
        train_on="completions",
        cache_folder=tmp_path / "cache",
    )
    shown = samples_as_json(Joined((prepared,)), shared("byte_level"), 5)
    assert [(each["part"], each["parts"]) for each in shown] == [
        (1, 1),
        (1, 3),
        (2, 3),
        (3, 3),
        (1, 1),
    ]
    text = printed(show_samples(Joined((prepared,)), shared("byte_level"), 5))
    titles = [line for line in text.splitlines() if line.startswith("sample ")]
    places = [title.split(": ")[0].partition("a.jsonl:")[2] for title in titles]
    assert places == ["1", *(f"2, part {n} of 3" for n in (1, 2, 3)), "3"]
    assert re.search("a sample for each turn +1 *\n", text)


def test_roles_tools_and_calls_are_shown_as_the_model_sees_them(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    row = {"messages": conversation({"city": "Oslo"}), "tools": TOOLS}
    path.write_text(json.dumps(row) + "\n")
    template, tokenizer = shipped("qwen2_5")
    prepared = prepare(
        Data(path=str(path), template=template),
        tokenizer,
        max_tokens=2000,
        overlong="drop",
        train_on="completions",
        cache_folder=tmp_path / "cache",
    )
    text = printed(
        show_samples(Joined((prepared,)), tokenizer, 1),
        force_terminal=True,
        color_system="standard",
    )
    green = (
        "".join(re.findall("\x1b\\[[0-9;]*32m([^\x1b]*)\x1b", text))
        .replace("\n", "")
        .replace("↵", "\n")
    )
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    assert green.split("<|im_end|>") == [call, "It snows 😀.", call, "Sun.", ""]
    grey = re.sub("\x1b\\[[0-9;]*m", "", text)
    assert "How is the weather in a city?" in grey and "<tool_response>↵\nIt snows." in grey
