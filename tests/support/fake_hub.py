"""A hub on this machine that huggingface_hub's own client can create repositories in and commit to."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import huggingface_hub
import pytest

TOKEN = "hf_" + "secretsecret" * 3
HEAD = "1" * 40
"""The newest commit of every repository."""


@dataclass
class Repository:
    private: bool = False
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    commits: list[str] = field(default_factory=list)
    """The first line of each commit's message."""
    pull_requests: list[dict[str, bytes]] = field(default_factory=list)


@dataclass
class FakeHub:
    """What the server has and was asked; `faults` maps the beginning of a path to the status that it answers with."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Status and JSON for a request, for the calls that pushing makes."""
        path, _, query = path.removeprefix("/api/").partition("?")
        self.asked.append(f"{method} {path}")
        for start, status in self.faults.items():
            if path.startswith(start):
                return status, {"error": f"the server says no to {TOKEN}"}
        if path == "repos/create":
            return self._create(json.loads(body))
        if path == "validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.count("/") < 2:
            return 404, {"error": "not here"}
        kind, owner, name, *rest = path.split("/")
        repository = self.repositories.get(f"{kind}/{owner}/{name}")
        if repository is None:
            return 404, {"error": "Repository not found"}
        call, branch = (*rest, "main")[:2] if len(rest) > 1 else ("", "main")
        if call == "branch":
            repository.branches.setdefault(branch, dict(repository.branches["main"]))
            return 200, {}
        if branch not in repository.branches:
            return 404, {"error": "Invalid rev id"}
        if call == "commit":
            return self._commit(repository, repository.branches[branch], body, "create_pr" in query)
        return 200, describe(call, f"{owner}/{name}", repository, branch, body)

    def _create(self, wanted: dict[str, Any]) -> tuple[int, Any]:
        name = f"{wanted.get('organization')}/{wanted['name']}"
        key = f"{wanted.get('type') or 'model'}s/{name}"
        if key in self.repositories:
            return 409, {"error": "You already created this repo", "url": f"https://huggingface.co/{name}"}
        self.repositories[key] = Repository(wanted.get("visibility") == "private" or bool(wanted.get("private")))
        return 200, {"url": f"https://huggingface.co/{name}"}

    def _commit(self, repository: Repository, files: dict[str, bytes], body: bytes, pull: bool) -> tuple[int, Any]:
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit") not in (None, HEAD):
            return 412, {"error": "A commit has happened since"}
        new = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
        }
        repository.commits.append(header["summary"])
        if pull:
            repository.pull_requests.append(new)
        else:
            files.update(new)
        url = "https://huggingface.co/org/name"
        extra = {"pullRequestUrl": f"{url}/discussions/1"} if pull else {}
        return 200, {"success": True, "commitOid": "2" * 40, "commitUrl": f"{url}/commit/{'2' * 40}", **extra}


def describe(call: str, name: str, repository: Repository, branch: str, body: bytes) -> Any:
    """What the hub says of a branch, or of files in it, without changing anything."""
    files = repository.branches[branch]
    if call == "preupload":
        asked = json.loads(body)["files"]
        return {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
    if call == "paths-info":
        asked = [path for path in parse_qs(body.decode())["paths"] if path in files]
        return [{"type": "file", "path": path, "size": len(files[path]), "oid": blob_id(files[path])} for path in asked]
    return {"id": name, "sha": HEAD, "private": repository.private, "siblings": [], "tags": []}


def blob_id(content: bytes) -> str:
    """Git's name of a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def fake_hub(patch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A server for the client of this process, with a token in the environment."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def reply(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            hub.tokens.add(self.headers.get("authorization", ""))
            status, value = hub.answer(self.command, self.path, body)
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = reply

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    patch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    patch.setenv("HF_TOKEN", TOKEN)
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
