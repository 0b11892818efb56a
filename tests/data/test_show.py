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
from hone.recipe.schema import Data
from tests.data.tokenizers import shared

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
