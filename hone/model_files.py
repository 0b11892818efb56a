"""What a model's folder has to hold, found from its listing, its JSON and the headers of its
weights.

Called by `hub.py`, `architecture.py` and `models.py` before weights are read, and by `hone check`.
`Trust` says which of the two kinds of files that can run code may be used. Left out: whether the
weights fit the architecture (architecture.py).
"""

import json
import shlex
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hone.errors import UserError

CONFIG = "config.json"
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER, ADAPTER_PICKLE = "adapter_model.safetensors", "adapter_model.bin"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
MOST_NAMED = 3  # names in a message; the others are counted

Tensors = dict[str, tuple[int, ...]]
"""Names and shapes of tensors."""


@dataclass(frozen=True)
class Trust:
    """What may be used although it can run any code when it is loaded: Python that comes with a
    model (`remote_code`), weights in Python's own format (`pickle`).
    """

    remote_code: bool = False
    pickle: bool = False

    @classmethod
    def of(cls, names: Iterable[str]) -> "Trust":
        """The trust that a recipe's `trust` gives."""
        return cls(**dict.fromkeys(names, True))


NOTHING = Trust()


def check_config_file(folder: Path, name: str) -> None:
    """Raises UserError unless config.json is there and can be read; `name`: the model in words."""
    if not (folder / CONFIG).is_file():
        raise _fault(name, f"{CONFIG} is missing", "expected the folder of a whole model")
    _read_json(folder / CONFIG, name)


def check_weight_files(folder: Path, name: str, trust: Trust) -> None:
    """Raises UserError unless the folder has one whole set of weights that may be used."""
    kinds = [file for file in (WHOLE, INDEX, ADAPTER_CONFIG) if (folder / file).exists()]
    if len(kinds) > 1:
        raise _fault(
            name,
            f"{' and '.join(kinds)} are of different models",
            "keep one set of weights in the folder, or move the adapter into one of its own",
        )
    shards = weight_files(folder, name)
    if not shards:
        _check_pickle(folder, name, trust, (PICKLE, PICKLE_INDEX), _conversion(folder))
        if not (folder / PICKLE).is_file():
            _shards(folder, name, PICKLE_INDEX)
        return
    headers = {shard: read_header(folder / shard, name) for shard in shards}
    for tensor, shard in _weight_map(folder, name, INDEX).items():
        if tensor not in headers[shard]:
            raise _fault(
                name, f"{shard} has no tensor {tensor}, which {INDEX} says it has", _FETCH_AGAIN
            )


def check_adapter_files(folder: Path, trust: Trust) -> None:
    """Raises UserError unless an adapter's folder has whole weights that may be used."""
    name = f'the adapter "{folder}"'
    if (folder / ADAPTER).is_file():
        read_header(folder / ADAPTER, name)
        return
    _check_pickle(folder, name, trust, (ADAPTER_PICKLE,), "")


def check_tokenizer_files(folder: Path, name: str) -> None:
    """Raises UserError unless a tokenizer is there; the libraries would make an empty one."""
    patterns = (*TOKENIZERS, "*.tiktoken", "*.bpe.model", "tekken.json")
    if not any(found for pattern in patterns for found in folder.glob(pattern)):
        raise _fault(
            name,
            "no tokenizer is in its folder",
            "expected tokenizer.json and tokenizer_config.json beside config.json",
        )


def uses_pickle(folder: Path) -> bool:
    """True where the folder has no safetensors, and weights in Python's format."""
    safe = any((folder / file).exists() for file in (WHOLE, INDEX))
    return not safe and any((folder / file).exists() for file in (PICKLE, PICKLE_INDEX))


def has_weights(folder: Path) -> bool:
    """True where any weights of a whole model are there."""
    return any((folder / file).exists() for file in (WHOLE, INDEX, PICKLE, PICKLE_INDEX))


def weight_files(folder: Path, name: str) -> list[str]:
    """The names of the safetensors files that make the model; empty where there are none.

    Raises UserError for an index that cannot be read, or names a file that is not there.
    """
    if (folder / WHOLE).is_file():
        return [WHOLE]
    return _shards(folder, name, INDEX)


def read_header(path: Path, name: str) -> Tensors:
    """Names and shapes in a safetensors file (8 bytes: length of the header; the header as JSON;
    the tensors). Raises UserError where the file is cut off or is none.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= size - 8:
            raise _fault(name, f"{path.name} ({size:,} bytes) has no whole header", _FETCH_AGAIN)
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            ends = [entry["data_offsets"][1] for entry in header.values()]
            shapes = {key: tuple(entry["shape"]) for key, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise _fault(name, f"{path.name} is no safetensors file", _FETCH_AGAIN) from None
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise _fault(
            name,
            f"{path.name} has {size:,} bytes, expected {expected:,}: it is "
            f"{'cut off' if size < expected else 'not whole'}",
            _FETCH_AGAIN,
        )
    return shapes


def declares_code(folder: Path, file: str) -> bool:
    """True where `file` (config.json, tokenizer_config.json) names classes that come with the
    model.
    """
    path = folder / file
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")).get("auto_map"))
    except (OSError, ValueError, AttributeError):
        return False


def code_refused(name: str, file: str) -> UserError:
    """What is said where a model cannot be used without running the code that comes with it."""
    return UserError(
        f"{name} comes with code of its own ({file}: auto_map), which would be run when it is "
        "loaded",
        hint="read that code; if you trust it, say so in the recipe: trust: [remote_code]",
        exit_code=2,
    )


def some_of(names: Iterable[str]) -> str:
    """The first names in words, and how many more there are."""
    listed = sorted(names)
    more = len(listed) - MOST_NAMED
    return ", ".join(listed[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


_FETCH_AGAIN = "fetch or copy the model's files again"


def _fault(name: str, what: str, hint: str) -> UserError:
    return UserError(f"{name} cannot be used: {what}", hint=hint, exit_code=2)


def _read_json(path: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _fault(name, f"{path.name} cannot be read: {error}", _FETCH_AGAIN) from error
    if not isinstance(found, dict):
        raise _fault(name, f"{path.name} holds no mapping", _FETCH_AGAIN)
    return found


def _weight_map(folder: Path, name: str, index: str) -> dict[str, str]:
    """Tensor names to the files of an index; empty where there is none."""
    if not (folder / index).is_file():
        return {}
    found = _read_json(folder / index, name).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise _fault(name, f"{index} has no weight_map", _FETCH_AGAIN)
    return found


def _shards(folder: Path, name: str, index: str) -> list[str]:
    """The files that an index names, all of which have to be there."""
    shards = sorted(set(_weight_map(folder, name, index).values()))
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise _fault(name, f"{index} names {some_of(missing)}, not in the folder", _FETCH_AGAIN)
    return shards


def _check_pickle(
    folder: Path, name: str, trust: Trust, files: tuple[str, ...], conversion: str
) -> None:
    """Raises UserError unless there are pickled weights and they may be used."""
    found = next((each for each in files if (folder / each).is_file()), None)
    if found is None:
        present = [path.name for path in folder.glob("*") if path.suffix in _OTHER_WEIGHTS]
        instead = f"; {some_of(present)} cannot be read" if present else ""
        raise _fault(name, f"no weights are in its folder{instead}", "expected *.safetensors")
    if not trust.pickle:
        hint = "if you trust where they are from, say so in the recipe: trust: [pickle]"
        raise UserError(
            f"{name} has its weights only as {found}: Python's own format, which can run code",
            hint=hint
            + (f", or write them as safetensors once: {conversion}" if conversion else ""),
            exit_code=2,
        )


_OTHER_WEIGHTS = {".gguf", ".h5", ".msgpack", ".pth", ".pt", ".ckpt", ".onnx", ".safetensors"}


def _conversion(folder: Path) -> str:
    """The command that writes model.safetensors beside pytorch_model.bin."""
    place = json.dumps(str(folder), ensure_ascii=False)
    code = (
        "from transformers import AutoModelForCausalLM as M; "
        f'M.from_pretrained({place}, use_safetensors=False, dtype="auto").save_pretrained({place})'
    )
    return f"python -c {shlex.quote(code)}"
