"""Right recipes with a few things changed, at any depth: a recipe or a UserError, and soon.

The first part only loads; the second goes through the real `hone check`, with a model and data that
are there.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hone.recipe.load import load_recipe
from tests.data.tokenizers import CHATML, byte_level
from tests.fuzz import Change, changed, changes, command, examples, soon
from tests.recipe.test_any_text import KEYS, load_or_refuse
from tests.tiny import make_model

FULL: dict[str, Any] = {
    "model": "./model",
    "seed": 3,
    "device": "cpu",
    "threads": 1,
    "stages": [
        {
            "pretrain": {
                "data": {"path": "text.jsonl", "format": "text", "columns": {"text": "text"}},
                "batch": {"tokens": 512},
                "steps": 3,
                "warmup": 1,
                "schedule": "linear",
                "optimizer": {"type": "sgd", "momentum": 0.5},
            }
        },
        {
            "sft": {
                "data": {"path": "chat.jsonl", "template": "chatml", "on_bad_row": "skip"},
                "evaluation": {"share": 0.3, "every": 2, "before": False, "samples": 2},
                "batch": {"samples": 2},
                "epochs": 2,
                "learning_rate": 1e-4,
                "warmup": 0.1,
                "optimizer": {"type": "adamw", "betas": [0.9, 0.99], "weight_decay": 0.01},
                "max_grad_norm": 1.0,
                "max_tokens": 64,
                "overlong": "keep_end",
                "precision": "fp32",
                "gradient_checkpointing": True,
                "layout": "auto",
                "token_budget": 256,
                "checkpoint": {"every": 2, "keep": 1},
                "adapter": {"type": "lora", "rank": 2, "alpha": 4, "targets": ["q_proj"]},
                "train_on": "completions",
            }
        },
    ],
}
NEW: dict[str, Any] = {
    "model": {
        "architecture": "llama",
        "config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        "tokenizer": {"train_on": "text.jsonl", "vocabulary": 300},
    },
    "stages": [{"pretrain": {"data": "text.jsonl"}}, {"sft": {"data": "chat.jsonl"}}],
}
CHATS = [
    {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
    for q, a in (("1 + 1?", "2"), ("2 + 2?", "4"), ("And 3 + 3?", "It is 6."), ("5?", "five"))
]
NUMBERS = [0, 1, -1, 2, 7, 0.5, -0.5, 1.0, 1e-300, 1e300, 10**9, 10**18, 10**400, 2**32]
values = (
    st.none()
    | st.booleans()
    | st.sampled_from([*NUMBERS, float("nan"), float("inf")])
    | st.sampled_from(["", "auto", "all", "full", "chat.jsonl", "text.jsonl", ".", "/", "cuda"])
    | st.sampled_from(["${HOME}", "~", "\x00", "é", "a" * 300, "acme/none", "bf16", "llama", "1e9"])
    | st.sampled_from(KEYS)
    | st.builds(dict)
    | st.builds(list)
    | st.lists(st.sampled_from(["q_proj", "x", 0, None, 0.9]), max_size=3)
    | st.dictionaries(st.sampled_from(KEYS), st.sampled_from([1, "x", None, 0.5]), max_size=2)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("changed")
    tokenizer = byte_level()
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder / "model")
    model = make_model("llama")
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder / "model")
    texts = [{"text": f"{n} and {n} are {2 * n}."} for n in range(12)]
    for name, rows in (("chat", CHATS), ("text", texts)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)
    return folder


def write(folder: Path, recipe: Any) -> Path:
    """A recipe as JSON, which is YAML."""
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    return path


@examples(200)
@given(st.sampled_from([FULL, NEW]), changes(values, most=4))
def test_changed_recipes_load_or_are_refused(
    folder: Path, recipe: dict[str, Any], made: list[Change]
) -> None:
    path = write(folder, changed(recipe, made))
    with soon():
        load_or_refuse(path)


@examples(100)
@given(changes(values, most=1), st.lists(st.sampled_from(KEYS), min_size=1, max_size=4), values)
def test_changed_recipes_with_overrides(
    folder: Path, made: list[Change], keys: list[str], value: object
) -> None:
    path = write(folder, changed(FULL, made))
    with soon():
        load_or_refuse(path, f"{'.'.join(keys)}={json.dumps(value)}", f"sft.{keys[0]}={value}")


@examples(30)
@given(st.sampled_from([FULL, NEW]), changes(values, most=2))
def test_changed_recipes_are_checked(
    folder: Path, recipe: dict[str, Any], made: list[Change]
) -> None:
    printed = command("check", str(write(folder, changed(recipe, made))))
    assert (printed.code == 0) == ("nothing is wrong" in printed.out)


@pytest.mark.parametrize("recipe", [FULL, NEW])
def test_what_is_changed_is_right_before(folder: Path, recipe: dict[str, Any]) -> None:
    path = write(folder, recipe)
    assert load_recipe(path).recipe.stages
    assert command("check", str(path)).code == 0
