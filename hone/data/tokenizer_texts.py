"""The texts that a new tokenizer is made from: every text of the files the recipe names."""

import hashlib
import json
from collections.abc import Iterator

from hone.data.rows import BadRow
from hone.data.sources import hash_files, open_source
from hone.recipe.schema import TrainedTokenizer


def _paths(settings: TrainedTokenizer) -> list[str]:
    return [settings.train_on] if isinstance(settings.train_on, str) else list(settings.train_on)


def texts_of(settings: TrainedTokenizer) -> Iterator[str]:
    """All strings in all rows, in order; also those inside messages."""
    for path in _paths(settings):
        for row in open_source(path, "train").rows():
            if not isinstance(row, BadRow):
                yield from _strings(row.values)


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)


def tokenizer_key(settings: TrainedTokenizer) -> str:
    """What the tokenizer depends on, as a name: the files' contents and its size."""
    files = [
        f for path in _paths(settings) for f in hash_files(open_source(path, "train").files, {})
    ]
    content = json.dumps([1, [file.sha256 for file in files], settings.vocabulary])
    return hashlib.sha256(content.encode()).hexdigest()
