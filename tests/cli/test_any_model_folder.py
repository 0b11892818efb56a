"""Whatever stands in the files of a model's folder: `hone check` says what is wrong, soon.

Right files of a tiny model are broken at random: keys and values of the JSON files, bytes of all of
them, files that are missing.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.tokenizers import CHATML, byte_level
from tests.fuzz import Change, broken, changed, changes, command, examples
from tests.tiny import make_model

RECIPE = """\
model: ./model
stages: [{sft: {data: chat.jsonl, steps: 1, adapter: {rank: 2}}}]
"""
CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
JSON_FILES = ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
FILES = [*JSON_FILES, "model.safetensors", "chat_template.jinja"]
values = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, 1, -1, 3, 0.5, 1e300, 2**40, 10**18])
    | st.sampled_from(["", "llama", "gpt2", "none", "float7", "x" * 300, "{% if %}", "BPE"])
    | st.lists(st.sampled_from([1, "x", None]), max_size=2)
    | st.dictionaries(st.sampled_from(["type", "x", "model_type"]), st.just("x"), max_size=2)
)
byte_changes = st.lists(
    st.tuples(st.integers(0, 10_000_000), st.sampled_from(["set", "cut", "insert"]), st.binary()),
    min_size=1,
    max_size=3,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folders")
    tokenizer = byte_level()
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder / "right")
    model = make_model("llama")
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder / "right")
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "chat.jsonl").write_text((json.dumps(CHAT) + "\n") * 3)
    return folder


@pytest.fixture(autouse=True)
def right_files(folder: Path) -> None:
    restore(folder)


def restore(folder: Path) -> Path:
    """A copy of the right folder."""
    shutil.rmtree(folder / "model", ignore_errors=True)
    return Path(shutil.copytree(folder / "right", folder / "model"))


def check(folder: Path) -> int:
    """The exit code of `hone check`: never a traceback, soon, and an error is said in words."""
    printed = command("check", str(folder / "recipe.yaml"))
    assert printed.code == 0 or "error" in printed.out + printed.err
    return printed.code


def test_what_is_broken_is_right_before(folder: Path) -> None:
    assert check(folder) == 0


@pytest.mark.parametrize("name", FILES)
def test_missing_files(folder: Path, name: str) -> None:
    """What only adds to the weights, their configuration and the vocabulary can be spared."""
    (folder / "model" / name).unlink()
    needed = name in ("config.json", "tokenizer.json", "model.safetensors")
    assert check(folder) == (1 if needed else 0)


@examples(40)
@given(st.sampled_from(JSON_FILES), changes(values))
def test_changed_json(folder: Path, name: str, made: list[Change]) -> None:
    path = restore(folder) / name
    content: Any = json.loads(path.read_text())
    path.write_text(json.dumps(changed(content, made)))
    check(folder)


@examples(40)
@given(st.sampled_from(FILES), byte_changes)
def test_broken_bytes(folder: Path, name: str, made: list[tuple[int, str, bytes]]) -> None:
    path = restore(folder) / name
    path.write_bytes(broken(path.read_bytes(), made))
    check(folder)
