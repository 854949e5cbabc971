"""Local HTTP servers: as much of the hub and of a package index as clients need, faults included."""

from __future__ import annotations

import hashlib
import io
import json
import socket
import threading
import zipfile
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def wheel(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@dataclass
class Seen:
    """One request as it arrived."""

    method: str
    path: str
    range: str
    authorization: str


class Server:
    """Serves `reply` from a thread; `with Server() as server: server.url`."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.drops: dict[
            str, list[int]
        ] = {}  # path: after how many bytes each of the next replies breaks off
        self.statuses: dict[str, list[int]] = {}  # path: statuses of the next replies
        self.ignore_range = False
        self.hold: threading.Event | None = None  # a file's second half waits for it
        self.halfway = threading.Event()  # set when a held reply has sent its first half
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                owner._answer(self)

            do_HEAD = do_GET  # noqa: N815  # the name http.server looks for

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that goes away is part of the tests."""

        self._http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.hold:
            self.hold.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def gets(self, ending: str) -> list[Seen]:
        return [seen for seen in self.seen if seen.method == "GET" and seen.path.endswith(ending)]

    def reply(self, request: BaseHTTPRequestHandler, path: str) -> None:
        raise NotImplementedError

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        headers = request.headers
        self.seen.append(
            Seen(request.command, path, headers.get("Range", ""), headers.get("Authorization", ""))
        )
        if self.statuses.get(path):
            self.send(request, b"no", status=self.statuses[path].pop(0))
        else:
            self.reply(request, path)

    def send(
        self,
        request: BaseHTTPRequestHandler,
        body: bytes,
        kind: str = "application/octet-stream",
        status: int = 200,
        headers: dict[str, str] | None = None,
    ) -> None:
        path = unquote(urlsplit(request.path).path)
        wanted = request.headers.get("Range", "")
        extra = dict(headers or {})
        if wanted and status == 200 and not self.ignore_range:
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            if start >= len(body):
                status, extra["Content-Range"], body = 416, f"bytes */{len(body)}", b""
            else:
                status = 206
                extra["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
                body = body[start:]
        request.send_response(status)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(body)))
        for key, value in extra.items():
            request.send_header(key, value)
        request.end_headers()
        if request.command == "HEAD":
            return
        if self.drops.get(path):
            request.wfile.write(body[: self.drops[path].pop(0)])
            request.wfile.flush()
            request.close_connection = True
            request.connection.shutdown(socket.SHUT_RDWR)
        elif self.hold and len(body) > 1000:
            request.wfile.write(body[: len(body) // 2])
            request.wfile.flush()
            self.halfway.set()
            self.hold.wait(60)
            request.wfile.write(body[len(body) // 2 :])
        else:
            request.wfile.write(body)


class Index(Server):
    """A simple index under /simple; `files[project][filename]` are the bytes it serves."""

    def __init__(self, *, html: bool = False, digests: bool = True) -> None:
        super().__init__()
        self.files: dict[str, dict[str, bytes]] = {}
        self.html = html
        self.digests = digests
        self.lies: dict[str, str] = {}  # filename: a digest that isn't the file's

    @property
    def simple(self) -> str:
        return f"{self.url}/simple"

    def add(self, project: str, version: str, members: dict[str, bytes]) -> str:
        filename = f"{project.replace('-', '_')}-{version}-py3-none-any.whl"
        self.files.setdefault(project, {})[filename] = wheel(members)
        return filename

    def reply(self, request: BaseHTTPRequestHandler, path: str) -> None:
        parts = path.strip("/").split("/")
        if parts[0] == "files" and parts[1] in self.files:
            self.send(request, self.files[parts[1]]["/".join(parts[2:])])
        elif parts[0] == "simple" and parts[-1] in self.files:
            project, page = parts[-1], self._html if self.html else self._json
            body, kind = page(project)
            self.send(request, body.encode(), kind)
        else:
            self.send(request, b"no such project", status=404)

    def _digest(self, filename: str, data: bytes) -> str:
        return self.lies.get(filename, sha256(data))

    def _json(self, project: str) -> tuple[str, str]:
        files = [
            {
                "filename": name,
                "url": f"{self.url}/files/{project}/{name}",
                "hashes": {"sha256": self._digest(name, data)} if self.digests else {},
                "size": len(data),
            }
            for name, data in self.files[project].items()
        ]
        record = {"meta": {"api-version": "1.1"}, "name": project, "files": files}
        return json.dumps(record), "application/vnd.pypi.simple.v1+json"

    def _html(self, project: str) -> tuple[str, str]:
        links = "".join(
            f'<a href="../../files/{project}/{name}'
            f'{f"#sha256={self._digest(name, data)}" if self.digests else ""}">{name}</a><br/>\n'
            for name, data in self.files[project].items()
        )
        return f"<!DOCTYPE html><html><body>{links}</body></html>", "text/html; charset=utf-8"


@dataclass
class Repo:
    """A repository of the hub's stand-in."""

    files: dict[str, bytes]
    gated: bool = False  # files need `accepted` as token
    private: bool = False
    licence: str = "apache-2.0"
    lies: dict[str, str] = field(default_factory=dict)  # file: a SHA-256 that isn't its own


class Hub(Server):
    """The hub's HTTP API as huggingface_hub 2.4 asks it: model info, tree, and files with ranges."""

    accepted = "hf_accepted"  # the token of an account that accepted every repository's terms

    def __init__(self) -> None:
        super().__init__()
        self.repos: dict[str, Repo] = {}

    def reply(self, request: BaseHTTPRequestHandler, path: str) -> None:
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        repo_id = "/".join(parts[2:4] if api else parts[:2])
        repo = self.repos.get(repo_id)
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if repo is None or (repo.private and token != self.accepted):
            self._refuse(request, 404 if token else 401, "RepoNotFound", "Repository not found")
            return
        rest = parts[4:] if api else parts[2:]
        revision = rest[1] if len(rest) > 1 else "main"
        if revision not in ("main", COMMIT):
            self._refuse(request, 404, "RevisionNotFound", "Invalid rev id")
        elif api:
            record = self._tree(repo) if rest and rest[0] == "tree" else self._info(repo_id, repo)
            self.send(request, json.dumps(record).encode(), "application/json")
        elif repo.gated and token != self.accepted:
            self._refuse(request, 403 if token else 401, "GatedRepo", "Access to this model is restricted.")
        elif (name := "/".join(rest[2:])) not in repo.files:
            self._refuse(request, 404, "EntryNotFound", "Entry not found")
        else:
            data = repo.files[name]
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{sha256(data)}"', "Accept-Ranges": "bytes"}
            self.send(request, data, headers=headers)

    def _refuse(self, request: BaseHTTPRequestHandler, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        self.send(request, json.dumps({"error": message}).encode(), "application/json", status, headers)

    def _info(self, repo_id: str, repo: Repo) -> dict[str, Any]:
        return {
            "_id": "0",
            "id": repo_id,
            "modelId": repo_id,
            "sha": COMMIT,
            "private": repo.private,
            "gated": "auto" if repo.gated else False,
            "cardData": {"license": repo.licence},
            "siblings": [
                {"rfilename": name, "size": len(data), "blobId": "0" * 40, "lfs": self._lfs(repo, name)}
                for name, data in repo.files.items()
            ],
        }

    def _tree(self, repo: Repo) -> list[dict[str, Any]]:
        return [
            {"type": "file", "path": name, "size": len(data), "oid": "0" * 40, "lfs": self._lfs(repo, name)}
            for name, data in repo.files.items()
        ]

    def _lfs(self, repo: Repo, name: str) -> dict[str, Any] | None:
        if not name.endswith((".gguf", ".safetensors", ".bin")):
            return None
        data = repo.files[name]
        digest = repo.lies.get(name, sha256(data))
        return {"sha256": digest, "oid": digest, "size": len(data), "pointerSize": 130}
