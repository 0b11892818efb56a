"""Whatever stands in a recipe or on the command line: a recipe or a UserError, nothing else."""

import json
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hone.errors import UserError
from hone.recipe.load import describe_resolved, load_recipe, load_resolved
from tests.recipe.test_load import SMALL, write

KEYS = [
    *("model", "seed", "device", "threads", "stages", "sft", "pretrain", "data", "path", "type"),
    *("adapter", "rank", "targets", "batch", "samples", "tokens", "epochs", "steps", "warmup"),
    *("evaluation", "share", "every", "optimizer", "betas", "config", "tokenizer", "train_on"),
    *("checkpoint", "keep", "columns", "text", "template", "learning_rate", "lr", "<<", ""),
    *("profile", "at_most"),
]
TEXTS = ["lora", "full", "auto", "chat.jsonl", "./x", "${HOME}", "${", "$${A}", "acme/base", "all"]
TEXTS += ["chat", "code", "own.yaml"]
SNIPPETS = [*KEYS, *TEXTS, ": ", "\n", "\n  ", "- ", "[", "]", "{", "}", "&a ", "*a", "<<: *a"]
SNIPPETS += ["!!int ", "!x ", "'", '"', "|", ">", "#", "---", "%YAML 1.1", "\t", "1e-4", "0x", "~"]

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(TEXTS)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(), inner, max_size=4)
    ),
    max_leaves=12,
)
near_yaml = st.lists(st.sampled_from(SNIPPETS), max_size=25).map("".join)
keys = st.lists(st.sampled_from([*KEYS, "0", "[0]", "[1]", "."]), min_size=1, max_size=5).map(
    ".".join
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("any")
    write(folder, SMALL)
    return folder


def load_or_refuse(path: Path, *overrides: str) -> bool:
    """True when the recipe loads; then it survives the way through its resolved form."""
    try:
        loaded = load_recipe(path, overrides)
    except UserError as error:
        assert error.exit_code == 2
        assert error.message.strip()
        error.message.encode()
        return False
    resolved = json.loads(json.dumps(loaded.resolved, allow_nan=False))
    assert load_resolved(resolved, loaded.folder).recipe == loaded.recipe
    assert len(describe_resolved(loaded)) == len(loaded.origins)
    return True


@given(st.binary(max_size=200))
def test_any_bytes(folder: Path, content: bytes) -> None:
    path = folder / "bytes.yaml"
    path.write_bytes(content)
    assert not load_or_refuse(path)


@given(near_yaml)
def test_any_text_that_is_nearly_yaml(folder: Path, text: str) -> None:
    path = folder / "near.yaml"
    path.write_text(text)
    load_or_refuse(path)
    path.write_text(SMALL + text)
    load_or_refuse(path)


@given(st.dictionaries(st.sampled_from(KEYS), values, max_size=5), values)
def test_any_values(folder: Path, stage: dict[str, Any], model: object) -> None:
    path = folder / "values.yaml"
    path.write_text(
        json.dumps({"model": model, "stages": [{"sft": {"data": "chat.jsonl"} | stage}]})
    )
    load_or_refuse(path)


@given(keys, near_yaml | st.text(string.printable, max_size=20) | values.map(json.dumps))
def test_any_override(folder: Path, key: str, value: str) -> None:
    load_or_refuse(folder / "recipe.yaml", f"{key}={value}", f"sft.{key}={value}", value)


@given(st.recursive(values, lambda inner: st.dictionaries(st.sampled_from(KEYS), inner)))
def test_any_resolved_recipe(folder: Path, resolved: Any) -> None:
    with pytest.raises(UserError):
        load_resolved(resolved, folder)


def test_a_right_recipe_is_not_refused(folder: Path) -> None:
    assert load_or_refuse(folder / "recipe.yaml", "sft.steps=3")
