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

REACH_TIMEOUT_S = 3.0
SMALL_FILES = ["*.json", "*.model", "*.jinja", "*.txt"]


def find_model(source: str, *, weights: bool = False) -> Path:
    """The folder of a model: the one that is named, or the newest local snapshot of a Hub id.

    What is not here is downloaded: configuration and tokenizer, and `weights` where they are asked
    for. Raises UserError where that fails.
    """
    if os.path.isdir(source):
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        local = Path(snapshot_download(source, local_files_only=True))
        if is_whole(local, weights=weights):
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
    patterns = [*SMALL_FILES, "*.safetensors"] if weights else SMALL_FILES
    try:
        return Path(snapshot_download(source, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f'the model "{source}" cannot be downloaded: {str(error).strip().splitlines()[0]}',
            hint="check the name, or log in for a private one: hf auth login",
        ) from error


def is_whole(folder: Path, *, weights: bool) -> bool:
    """True where the configuration is there, and all weights where they are asked for."""
    files = ["config.json"]
    if weights:
        index = folder / "model.safetensors.index.json"
        shards = json.loads(index.read_text())["weight_map"].values() if index.exists() else ()
        files += sorted(set(shards)) or ["model.safetensors"]
    return all((folder / name).exists() for name in files)


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
