"""A hub on 127.0.0.1: as much of the Hugging Face hub's interface as huggingface_hub asks for.

It serves folders as repositories of models and of data sets: what a repository is at a revision, and its files,
whole or in ranges. What was asked for is in :attr:`HubServer.requests`, so that a test can say what was not.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

_INFO = re.compile(r"/api/(?:models|datasets)/([^/]+/[^/]+)(?:/revision/(.+))?")
_RESOLVE = re.compile(r"(?:/datasets)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_PIECE = 1 << 14


@dataclass(frozen=True)
class Request:
    """One request: what was asked for, and what went out.

    Attributes:
        method: ``GET`` or ``HEAD``.
        path: Without the query.
        start: First byte asked for; None without a range.
        status: The answer's.
        sent: Bytes of the body that were written.
        token: The bearer token that came with it.
    """

    method: str
    path: str
    start: int | None
    status: int
    sent: int
    token: str | None

    @property
    def file(self) -> str | None:
        """The file of a repository that was asked for."""
        match = _RESOLVE.fullmatch(self.path)
        return match.group(3) if match else None


@dataclass
class Repo:
    """One repository.

    Attributes:
        commits: Folders by commit hash.
        refs: Commits by branch or tag.
        gated: Nobody may read its files without ``token``.
        token: Who has it may.
        broken: Files that arrive with their last byte flipped.
        listed: Weight files that are only listed, by name, with their sizes: nobody is to ask for them.
    """

    commits: dict[str, Path]
    refs: dict[str, str]
    gated: bool = False
    token: str | None = None
    broken: set[str] = field(default_factory=set)
    listed: dict[str, int] = field(default_factory=dict)


class HubServer:
    """The server. Use :func:`hub_server`.

    Attributes:
        url: For ``HF_ENDPOINT``.
        repos: What it has, by ``owner/name``.
        requests: What was asked for, in the order in which answers ended.
        bytes_per_s: How fast bodies are sent; None for as fast as it goes.
        cut_after: The connection breaks once so many bytes of a weight file were sent; None: never.
            Ranges from its beginning are asked for headers and pass.
        failing: The next so many file requests are answered 503.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.bytes_per_s: float | None = None
        self.cut_after: int | None = None
        self.failing = 0
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(self, repo: str, folder: Path, *, commit: str = "a" * 40, ref: str = "main") -> Repo:
        """Serves ``folder`` as ``repo`` at ``commit``, which ``ref`` now means."""
        entry = self.repos.setdefault(repo, Repo({}, {}))
        entry.commits[commit] = folder
        entry.refs[ref] = commit
        return entry

    def asked(self, name: str, method: str = "GET") -> list[Request]:
        """The requests for one file."""
        return [request for request in self.requests if request.file == name and request.method == method]

    def forget(self) -> None:
        """Begins the log anew."""
        self.requests.clear()


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """A hub for the length of the block."""
    hub = HubServer()
    thread = threading.Thread(target=hub._server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub._server.shutdown()
        hub._server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_hub: HubServer

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, *, body: bool) -> None:
        self._status, self._sent, self._start = 0, 0, None
        self._body = body
        path = unquote(self.path.partition("?")[0])
        try:
            if match := _INFO.fullmatch(path):
                self._info(*match.groups())
            elif match := _RESOLVE.fullmatch(path):
                self._file(*match.groups())
            else:
                self._refuse(404)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            token = self.headers.get("authorization", "").removeprefix("Bearer ") or None
            self.server_hub.requests.append(
                Request(self.command, path, self._start, self._status, self._sent, token)
            )

    def _find(self, name: str, revision: str | None) -> tuple[Repo, str] | None:
        """The repository and commit; None after having answered why not."""
        repo = self.server_hub.repos.get(name)
        if repo is None:
            # The hub does not tell strangers whether a repository is not there or private.
            self._refuse(401, "RepoNotFound", "Repository not found")
            return None
        commit = repo.refs.get(revision or "main", revision or "")
        if commit not in repo.commits:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repo, commit

    def _info(self, name: str, revision: str | None) -> None:
        found = self._find(name, revision)
        if found is None:
            return
        repo, commit = found
        siblings = [_sibling(path) for path in sorted(repo.commits[commit].iterdir()) if path.is_file()]
        for file, size in repo.listed.items():
            lfs = {"sha256": "0" * 64, "size": size, "pointerSize": 135}
            siblings.append({"rfilename": file, "size": size, "blobId": "0" * 40, "lfs": lfs})
        content = {"id": name, "modelId": name, "sha": commit, "gated": repo.gated, "siblings": siblings}
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str, revision: str, file: str) -> None:
        found = self._find(name, revision)
        if found is None:
            return
        repo, commit = found
        if repo.gated and self.headers.get("authorization") != f"Bearer {repo.token}":
            self._refuse(403 if "authorization" in self.headers else 401, "GatedRepo", f"Access to {name} is gated")
            return
        path = repo.commits[commit] / file
        if not path.is_file():
            self._refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
            return
        if self.server_hub.failing:
            self.server_hub.failing -= 1
            self._refuse(503)
            return
        content = path.read_bytes()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_digest(content)}"', "Accept-Ranges": "bytes"}
        if file in repo.broken:
            content = content[:-1] + bytes([content[-1] ^ 1])
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        if match is None:
            self._send(200, content, headers)
            return
        self._start = int(match.group(1))
        end = min(int(match.group(2) or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {self._start}-{end}/{len(content)}"
        self._send(206, content[self._start : end + 1], headers)

    def _refuse(self, status: int, code: str = "", message: str = "", more: dict[str, str] | None = None) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message} if code else {}
        self._send(status, json.dumps({"error": message}).encode(), headers | (more or {}))

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self._status = status
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if not self._body:
            return
        hub = self.server_hub
        weights = self.path.partition("?")[0].endswith(".safetensors")
        for begin in range(0, len(content), _PIECE):
            if weights and self._start != 0 and hub.cut_after is not None and self._sent >= hub.cut_after:
                hub.cut_after = None
                self.close_connection = True
                self.connection.shutdown(2)
                return
            piece = content[begin : begin + _PIECE]
            self.wfile.write(piece)
            self._sent += len(piece)
            if hub.bytes_per_s is not None:
                self.wfile.flush()
                time.sleep(len(piece) / hub.bytes_per_s)


def _sibling(path: Path) -> dict[str, Any]:
    """A file as the hub lists it; weights are kept in LFS there."""
    content = path.read_bytes()
    entry: dict[str, Any] = {"rfilename": path.name, "size": len(content), "blobId": _blob_id(content)}
    if path.suffix == ".safetensors":
        entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 135}
    return entry


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _blob_id(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
