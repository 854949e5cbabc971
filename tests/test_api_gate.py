"""The gate over a live server: keys that come and go, names in the place of keys, and a page that follows."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from live import serving

from rrtf_serve.api.app import ApiSettings
from rrtf_serve.api.keys import Keyring
from ui.gate import Gate

BODY = {"prompt": "abc", "max_tokens": 2}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_keys_come_and_go_while_the_server_runs(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("alice:one\n")
    ring = Keyring(file=file, poll_seconds=0)
    with serving(keys=ring) as server, httpx.Client(base_url=server.address) as client:

        def status(key: str) -> int:
            return client.post("/v1/completions", json=BODY, headers=bearer(key)).status_code

        assert [status("one"), status("two")] == [200, 401]
        file.write_text("bob:two\n")
        assert [status("one"), status("two")] == [401, 200]
        file.write_text("")
        assert [status("one"), status("two")] == [401, 200]
        assert client.post("/v1/completions", json=BODY).status_code == 401
        file.unlink()
        assert [status("two"), client.get("/v1/models").status_code] == [200, 401]


def test_what_belongs_to_no_list_asks_for_a_key(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("alice:one\n")
    with serving(keys=Keyring(file=file)) as server, httpx.Client(base_url=server.address) as client:
        for path in ("/metrics", "/infill", "/api/tags", "/healthy", "/health/x", "/v1/models", "/uix"):
            assert client.get(path).status_code == 401, path
        for path in ("/health", "/ready", "/version", "/openapi.json"):
            assert client.get(path).status_code == 200, path
        assert client.get("/metrics", headers=bearer("one")).status_code == 200


@pytest.mark.parametrize("opened", [True, False])
def test_metrics_are_open_only_where_told(opened: bool) -> None:
    paths = ApiSettings().open_paths + (("/metrics",) if opened else ())
    digest = "0" * 64
    settings = ApiSettings(api_keys=frozenset((digest,)), open_paths=paths)
    with serving(settings=settings) as server:
        assert httpx.get(f"{server.address}/metrics").status_code == (200 if opened else 401)


def test_a_session_of_the_page_ends_with_its_visitors_key(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("alice:one\nbob:two\n")
    ring = Keyring(file=file, poll_seconds=0)
    page = FastAPI()

    @page.get("/ui/config")
    def config() -> str:
        return "the page"

    gate = Gate(page, path="/ui", exchange=ring.page_key, admits=ring.holds, realm="r")
    alice, bob = (TestClient(gate, follow_redirects=False) for _ in range(2))
    for client, key in ((alice, "one"), (bob, "two")):
        assert client.post("/ui/sign-in", data={"key": key}).status_code == 303
        assert client.get("/ui/config").status_code == 200
    file.write_text("bob:two\n")
    assert alice.get("/ui/config").status_code == 401
    assert bob.get("/ui/config").status_code == 200
    assert alice.post("/ui/sign-in", data={"key": "one"}).status_code == 401
    file.write_text("alice:one\nbob:two\n")
    assert alice.get("/ui/config").status_code == 401, "an ended session stays ended"


@pytest.mark.parametrize("key", ["clé-à", "abcÅ"])
def test_a_key_ends_with_its_last_byte(key: str, tmp_path: Path) -> None:
    """Some bytes of UTF-8 are spaces where they are read as Latin-1."""
    file = tmp_path / "keys"
    file.write_text(f"alice:{key}\n", "utf-8")
    with serving(keys=Keyring(file=file)) as server, httpx.Client(base_url=server.address) as client:
        for header in (b"Bearer " + key.encode(), b"bearer   " + key.encode()):
            assert client.get("/v1/models", headers={b"authorization": header}).status_code == 200
