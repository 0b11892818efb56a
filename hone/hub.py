"""Models on the Hub: found in the local cache first, asked for over the network only when needed.

Called by `models.py` for everything that is read of a model, and by `data/sources.py` to fail in
seconds where there is no network. Left out: choosing revisions, patterns and parallel downloads.
"""

import json
import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

from hone.errors import UserError
from hone.model_files import INDEX, NOTHING, PICKLE, PICKLE_INDEX, WHOLE, Trust, uses_pickle

REACH_TIMEOUT_S = 3.0
SMALL_FILES = ["*.json", "*.model", "*.jinja", "*.txt"]


def find_model(source: str, *, weights: bool = False, trust: Trust = NOTHING) -> Path:
    """The folder of a model: the one that is named, or the newest local snapshot of a Hub id.

    What is not here is downloaded: configuration and tokenizer, `weights` where they are asked for,
    and what can run code only as far as `trust` goes. Raises UserError where that fails.
    """
    if os.path.isdir(source):
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        local = Path(snapshot_download(source, local_files_only=True))
        if is_whole(local, weights=weights, trust=trust) or (weights and uses_pickle(local)):
            return local
    except LocalEntryNotFoundError:
        pass
    except HFValidationError as error:
        raise UserError(
            f'model: there is no folder "{source}", and it cannot be a Hub id',
            hint="expected a folder with config.json, or an id such as HuggingFaceTB/SmolLM2-135M",
            exit_code=2,
        ) from error
    check_reachable(f'the model "{source}"')
    try:
        found = Path(snapshot_download(source, allow_patterns=wanted_files(weights, trust)))
        if weights and trust.pickle and not is_whole(found, weights=True):
            found = Path(snapshot_download(source, allow_patterns=["pytorch_model*.bin"]))
        return found
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f'the model "{source}" cannot be downloaded: {str(error).strip().splitlines()[0]}',
            hint="check the name, or log in for a private one: hf auth login",
        ) from error


def wanted_files(weights: bool, trust: Trust) -> list[str]:
    """What is downloaded of a model; pickled weights only where there turn out to be no others."""
    patterns = list(SMALL_FILES)
    if weights:
        patterns.append("*.safetensors")
    if trust.remote_code:
        patterns.append("*.py")
    return patterns


def is_whole(folder: Path, *, weights: bool, trust: Trust = NOTHING) -> bool:
    """True where the configuration is there, all weights where they are asked for, and the code
    that the configuration names where it is trusted.
    """
    config = folder / "config.json"
    if not config.exists():
        return False
    files = []
    if trust.remote_code:
        named = json.loads(config.read_text()).get("auto_map", {}).values()
        files += [f"{each.split('.')[0]}.py" for each in named if "--" not in each]
    if not all((folder / name).exists() for name in files):
        return False
    kinds = [(WHOLE, INDEX), (PICKLE, PICKLE_INDEX)][: 2 if trust.pickle else 1]
    return not weights or any(_has_all(folder, *kind) for kind in kinds)


def _has_all(folder: Path, whole: str, index: str) -> bool:
    if not (folder / index).exists():
        return (folder / whole).exists()
    shards = set(json.loads((folder / index).read_text())["weight_map"].values())
    return all((folder / name).exists() for name in shards)


def is_reachable() -> bool:
    """True where the Hub answers within seconds, or a proxy stands before it."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return True
    address = urlsplit(constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=REACH_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def check_reachable(wanted: str) -> None:
    """Raises UserError where the Hub cannot be asked; the libraries would try for long."""
    if not is_reachable():
        raise UserError(
            f"{wanted} is not on this machine, and the Hub cannot be reached",
            hint="connect to the network (HF_HUB_OFFLINE unset), or name a local folder or file",
        )
