"""What the cache holds, and taking it out."""

import json
import os
import time
from pathlib import Path

import pytest

from hone.data.cached import list_entries, remove
from hone.data.prepare import open_prepared, prepare
from hone.data.prepared import Prepared
from hone.recipe.data import Data
from tests.data.tokenizers import ZEPHYR, shared

pytestmark = pytest.mark.quick


def prepared(folder: Path, name: str, row: object, template: str = "auto") -> Prepared:
    path = folder / f"{name}.jsonl"
    path.write_text(json.dumps(row) + "\n")
    return prepare(
        Data(path=str(path), template=template),
        shared("byte_level"),
        max_tokens=99,
        overlong="drop",
        train_on="completions",
        cache_folder=folder / "cache",
    )


def test_entries_are_told_and_taken_out(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    text = prepared(tmp_path, "text", {"text": "a b"})
    chatml = prepared(tmp_path, "chat", chat, "chatml")
    own = prepared(tmp_path, "own", chat, ZEPHYR)
    old = tmp_path / "cache" / ("0" * 64)
    old.mkdir()
    (old / "manifest.json").write_text('{"layout": 0}')
    os.utime(old / "manifest.json", (1e9, 1e9))
    entries = list_entries(tmp_path / "cache")
    assert entries[0].key == old.name
    assert not entries[0].readable and time.time() - entries[0].made_at > 1e8
    by_key = {entry.key: entry for entry in entries}
    assert by_key[text.key].template is None
    assert by_key[chatml.key].template == "chatml"
    assert len(by_key[own.key].template or "") == 8
    found = by_key[text.key]
    assert found.sources == (str(tmp_path / "text.jsonl"),)
    assert (found.samples, found.tokens) == (1, int(text.lengths[0]))
    assert found.size == sum(file.stat().st_size for file in text.folder.iterdir())
    remove([found, entries[0]])
    assert {entry.key for entry in list_entries(tmp_path / "cache")} == {chatml.key, own.key}
    assert open_prepared(text.key, tmp_path / "cache") is None
    assert text.sample(0).segments[0].tokens.tolist(), "who has it open can still read it"


def test_a_cache_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert list_entries(tmp_path / "nowhere") == []
