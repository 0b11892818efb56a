"""Data sets from the Hub, read through a small server here that speaks as the Hub does."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from hone.data.sources import open_source
from hone.errors import UserError

COMMIT = "a" * 40
FILES = {"README.md": b"# Tiny\n", "train.jsonl": b'{"text": "Hello"}\n{"text": "Paris"}\n'}
API = "/api/datasets/acme/tiny"

PROGRAM = """
import json, sys
from pathlib import Path
from hone.data.prepare import prepare
from hone.errors import UserError
from hone.recipe.data import Data
from tests.data.tokenizers import byte_level

settings = {"max_tokens": 9, "overlong": "drop", "train_on": "all"}
def run(**data):
    try:
        prepared = prepare(
            Data(**data), byte_level(), cache_folder=Path(sys.argv[1]), **settings
        )
    except UserError as error:
        return error.message
    return [prepared.key, prepared.place(1), len(prepared), prepared.sources[0]["name"]]
names = [{"path": "acme/tiny"}, {"path": "acme/tiny", "split": "test"}, {"path": "acme/none"}]
print(json.dumps([run(**data) for data in names]))
"""


class Hub(BaseHTTPRequestHandler):
    """One data set of two files; everything else is not there."""

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        name = path.removeprefix("/datasets/acme/tiny/resolve/").partition("/")[2]
        if path in (API, f"{API}/revision/{COMMIT}"):
            self.answer({"id": "acme/tiny", "sha": COMMIT, "siblings": [], "tags": []})
        elif path == f"{API}/tree/{COMMIT}":
            tree = [
                {"type": "file", "path": p, "oid": oid(p), "size": len(FILES[p])} for p in FILES
            ]
            self.answer(tree)
        elif name in FILES:
            self.answer(FILES[name], ETag=f'"{oid(name)}"', **{"X-Repo-Commit": COMMIT})
        else:
            code = "EntryNotFound" if "acme/tiny" in path else "RepoNotFound"
            self.answer({}, 404, **{"X-Error-Code": code})

    do_HEAD = do_GET

    def answer(self, content: Any, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for header, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Nothing is printed."""


def oid(name: str) -> str:
    return hashlib.sha1(FILES[name]).hexdigest()


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def run(folder: Path, **environment: str) -> list[Any]:
    variables = {**os.environ, "HF_HOME": str(folder / "hub"), "no_proxy": "*", **environment}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder / "cache")],
        capture_output=True,
        text=True,
        env=variables,
        cwd=Path(__file__).parents[2],
        check=True,
    )
    rows: list[Any] = json.loads(result.stdout)
    return rows


def test_a_data_set_from_the_hub_then_without_network(tmp_path: Path, endpoint: str) -> None:
    online = {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    first, no_split, nothing = run(tmp_path, HF_ENDPOINT=endpoint, **online)
    assert first[1:] == ["acme/tiny[train] row 2", 2, "acme/tiny[train]"]
    assert "split `test`" in no_split and "['train']" in no_split
    assert nothing.startswith("there is no file or folder `acme/none`")
    again, _, nothing = run(tmp_path, HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    assert again == first
    assert "Couldn't reach" in nothing


def test_what_cannot_be_on_the_hub_is_not_looked_for_there() -> None:
    for path in ("./acme/none", "acme/none/more", "none.jsonl", "~/none", "a b"):
        with pytest.raises(UserError, match="there is no file or folder") as caught:
            open_source(path)
        assert "Hub" not in caught.value.message
