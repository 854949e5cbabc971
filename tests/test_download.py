import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import requests
from stand_ins import Server, sha256

from rrtf_serve.models import download as module
from rrtf_serve.models.download import download, shown
from rrtf_serve.models.errors import ModelError

DATA = bytes(range(256)) * 12_000  # 3 MB, three chunks


class Files(Server):
    def reply(self, request: BaseHTTPRequestHandler, path: str) -> None:
        self.send(request, DATA, status=200 if path == "/file" else 404)


@pytest.fixture
def server() -> Iterator[Server]:
    with Files() as server:
        yield server


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between attempts in hundredths of a second."""
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.01)


def fetch(server: Server, target: Path, digest: str = sha256(DATA)) -> list[int]:
    heard: list[int] = []
    with requests.Session() as session:
        download(session, f"{server.url}/file", target, digest, heard.append)
    return heard


@pytest.mark.usefixtures("quick")
def test_a_dropped_connection_is_resumed_at_the_byte(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "file"
    server.drops["/file"] = [2_500_000, 0]
    heard = fetch(server, target)
    assert target.read_bytes() == DATA
    have = int(server.seen[1].range.removeprefix("bytes=").removesuffix("-"))
    assert 0 < have <= 2_500_000
    assert server.seen[2].range == server.seen[1].range  # the second attempt brought nothing
    assert len(server.seen) == 3
    assert sum(heard) == len(DATA)
    assert list(tmp_path.iterdir()) == [target]


def test_a_partial_file_of_an_earlier_run_is_continued(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.partial").write_bytes(DATA[:1000])
    heard = fetch(server, tmp_path / "file")
    assert [seen.range for seen in server.seen] == ["bytes=1000-"]
    assert (tmp_path / "file").read_bytes() == DATA
    assert heard[0] == 1000
    assert sum(heard) == len(DATA)


def test_a_complete_partial_file_costs_one_empty_reply(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.partial").write_bytes(DATA)
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == DATA


@pytest.mark.usefixtures("quick")
def test_a_partial_file_that_is_too_long_starts_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.partial").write_bytes(DATA + b"more")
    heard = fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == DATA
    assert sum(heard) == len(DATA)


def test_a_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.ignore_range = True
    (tmp_path / "file.partial").write_bytes(b"x" * 1000)
    heard = fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == DATA
    assert sum(heard) == len(DATA)


def test_a_wrong_digest_leaves_nothing(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the index says 000"):
        fetch(server, tmp_path / "file", "0" * 64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_a_busy_server_is_asked_again_and_then_given_up(server: Server, tmp_path: Path) -> None:
    server.statuses["/file"] = [503, 429]
    fetch(server, tmp_path / "file")
    server.statuses["/file"] = [503] * 99
    with pytest.raises(ModelError, match=r"503 .* 5 times in a row"):
        fetch(server, tmp_path / "other")


def test_a_missing_file_is_not_asked_for_twice(server: Server, tmp_path: Path) -> None:
    server.statuses["/file"] = [404]
    with pytest.raises(ModelError, match="404"):
        fetch(server, tmp_path / "file")
    assert len(server.seen) == 1


@pytest.mark.usefixtures("quick")
def test_no_network_is_said_and_what_arrived_is_kept(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    (tmp_path / "file.partial").write_bytes(b"kept")
    started = time.monotonic()
    with requests.Session() as session, pytest.raises(ModelError, match="no connection"):
        download(session, f"http://127.0.0.1:{port}/file", tmp_path / "file", "", lambda count: None)
    assert time.monotonic() - started < 5
    assert (tmp_path / "file.partial").read_bytes() == b"kept"


def test_passwords_stay_out_of_messages() -> None:
    url = "https://user:secret@index.example:8443/simple/x/?token=secret#secret"
    assert shown(url) == "https://index.example:8443/simple/x/"
