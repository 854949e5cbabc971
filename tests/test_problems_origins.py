"""Where problem files are found, and what is said when they aren't; the hub as a stand-in on this machine."""

import gzip
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

from rrtf_serve.problems.origins import DataFile, data_folder, json_lines, load_records, locate, read_records

ROWS = [{"a": 1}, {"a": "é\u2028\x00"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
DATA = DataFile(name="rows.jsonl.gz", folder="rows", home="https://example.org/rows")


def test_the_data_folder_may_hold_the_file_or_the_suites_folder(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(b'{"a": "flat"}\n'))
    assert load_records(DATA, tmp_path) == [{"a": "flat"}]
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "rows.jsonl.gz").write_bytes(gzip.compress(LINES))
    assert load_records(DATA, tmp_path) == ROWS


def test_the_flag_wins_over_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RRTF_DATA_DIR", raising=False)
    assert data_folder(None) is None
    monkeypatch.setenv("RRTF_DATA_DIR", "/elsewhere")
    assert data_folder(None) == Path("/elsewhere")
    assert data_folder(tmp_path) == tmp_path


def test_a_package_is_found_without_being_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "carries_rows"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "data" / "rows.jsonl").write_bytes(LINES)
    monkeypatch.syspath_prepend(tmp_path)
    data = DataFile("rows.jsonl", "rows", package="carries_rows", package_path="data/rows.jsonl")
    assert load_records(data, None) == ROWS


def test_a_missing_file_names_every_place_and_what_to_do(tmp_path: Path) -> None:
    data = DataFile("rows.jsonl", "rows", package="no_such_package", home="https://example.org/rows")
    with pytest.raises(ValueError, match=r"rows\.jsonl was not found") as caught:
        locate(data, tmp_path)
    for hint in (str(tmp_path), "--data-dir", "pip install no-such-package", "https://example.org/rows"):
        assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"a": 1}\n{"a": \n', "x.jsonl:2: not valid JSON"),
        ("x.jsonl", b'{"a": 1}\n\n[1]\n', "x.jsonl:3: not a JSON object but list"),
        ("x.jsonl", b'{"a": "\xff"}\n', "x.jsonl:1: not valid JSON"),
        ("x.jsonl", b'{"a": ' + b"[" * 100_000 + b"\n", "x.jsonl:1: not valid JSON"),
        ("x.jsonl.gz", b"not gzip", "x.jsonl.gz: broken or cut off gzip"),
        ("x.jsonl.gz", gzip.compress(LINES)[:-12], "x.jsonl.gz: broken or cut off gzip"),
        ("x.json", b'{"a": 1}', "x.json: not a JSON array"),
        ("x.json", b"[1]", "x.json: not a JSON array"),
        ("x.json", b"[", "x.json: not valid JSON"),
    ],
)
def test_broken_files_are_named_with_their_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_records(tmp_path / name)


def test_json_arrays_and_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps(ROWS))
    assert read_records(tmp_path / "x.json") == ROWS
    (tmp_path / "x.jsonl").write_bytes(b"\n" + LINES.replace(b"\n", b"\r\n\n") + b"  ")
    assert [number for number, _ in json_lines(tmp_path / "x.jsonl")] == [2, 4]


class HubHandler(BaseHTTPRequestHandler):
    """One data set with one file, as huggingface_hub asks for it."""

    protocol_version = "HTTP/1.1"
    file = "parts/rows.jsonl.gz"
    asked: list[str]

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.asked.append(f"{self.command} {path}")
        commit = "c0ffee" + "0" * 34
        if path.startswith("/api/datasets/maker/rows"):
            self._send(json.dumps({"_id": "0", "id": "maker/rows", "sha": commit, "siblings": []}).encode())
        elif path == f"/datasets/maker/rows/resolve/main/{self.file}":
            self._send(gzip.compress(LINES), {"X-Repo-Commit": commit, "ETag": '"rows"'})
        else:
            self._send(b"{}", {"X-Error-Code": "RepoNotFound"}, 404)

    do_HEAD = do_GET  # noqa: N815  # the name http.server looks for

    def _send(self, body: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    handler = type("Handler", (HubHandler,), {"asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


FETCH = """
import json, sys
from rrtf_serve.problems.origins import DataFile, HubFile, load_records
data = DataFile("rows.jsonl.gz", "rows", hub=(HubFile(sys.argv[1], "parts/rows.jsonl.gz", "main"),))
try:
    print(json.dumps(load_records(data, None)))
except ValueError as error:
    print(error)
"""


def fetch(url: str, home: Path, repository: str) -> str:
    """In a process of its own: huggingface_hub reads its environment when it is imported."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", FETCH, repository],
        env={**kept, "HF_ENDPOINT": url, "HF_HOME": str(home), "HOME": str(home)},
        cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return done.stdout.strip()


def test_the_hub_is_asked_once(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    url, asked = hub
    assert json.loads(fetch(url, tmp_path, "maker/rows")) == ROWS
    assert f"GET /datasets/maker/rows/resolve/main/{HubHandler.file}" in asked
    asked.clear()
    assert json.loads(fetch(url, tmp_path, "maker/rows")) == ROWS
    assert not asked


def test_the_hubs_refusals_are_told(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    url, _ = hub
    told = fetch(url, tmp_path, "maker/gone")
    assert "rows.jsonl.gz was not found in the hub data set maker/gone (" in told
    assert "404" in told


def test_no_network_is_told_soon(tmp_path: Path) -> None:
    # A port that nobody listens on.
    told = fetch("http://127.0.0.1:9", tmp_path, "maker/rows")
    assert "the hub data set maker/rows (" in told
    assert "--data-dir" in told
