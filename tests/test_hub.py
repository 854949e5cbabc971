"""The hub path in real processes: huggingface_hub reads its environment when it is imported."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from stand_ins import COMMIT, Hub, Repo, Server, sha256

from rrtf_serve.models import blobs, hub
from rrtf_serve.models.blobs import Large
from rrtf_serve.models.errors import ModelError

GGUF = b"GGUF" + bytes(range(256)) * 400
WEIGHTS = b"safetensors " * 1000
FOLDER = {
    "config.json": b"{}",
    "model.safetensors": WEIGHTS,
    "tokenizer.json": b"{}",
    "README.md": b"read me",
    "pytorch_model.bin": b"a pickle",
    "modeling_evil.py": b"raise SystemExit",
    "onnx/model.safetensors": b"another export",
}

# A catalogue entry of the hub alone, pinned by its digest, then the command.
PINNED = """
import sys
from rrtf_serve.models import catalog
from rrtf_serve.models.catalog import HubFile, Model
from rrtf_serve.models.cli import main
commit, size, digest, *arguments = sys.argv[1:]
origin = HubFile("maker/gguf", commit, "tiny-q4.gguf")
facts = ("tiny", (), "", "MIT", "", False, "plain", 64, 1)
catalog._BY_NAME["tiny"] = Model(*facts, int(size), digest, (origin,))
sys.exit(main(arguments))
"""

# What the library raises where a reply is one that it did not foresee.
BROKEN = """
import builtins, sys
import huggingface_hub
from rrtf_serve.models.cli import main
def broken(*arguments, **options):
    raise getattr(builtins, sys.argv[1])("not foreseen")
huggingface_hub.snapshot_download = broken
sys.exit(main(["pull", "maker/folder"]))
"""

Pull = Callable[..., subprocess.CompletedProcess[str]]


class Elsewhere(Server):
    """Another host, which the hub sends clients to for a file's bytes."""

    data = b""

    def reply(self, request: BaseHTTPRequestHandler, path: str) -> None:
        self.send(request, self.data)


@pytest.fixture
def server() -> Iterator[Hub]:
    with Hub() as server:
        server.repos["maker/gguf"] = Repo({"tiny-q4.gguf": GGUF, "tiny-q8.gguf": GGUF})
        server.repos["maker/folder"] = Repo(dict(FOLDER))
        yield server


@pytest.fixture
def settings(server: Hub, tmp_path: Path) -> dict[str, str]:
    """The environment of a process with caches of its own, whose hub is the stand-in."""
    clean = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("HF_", "HUGGING")) and not key.lower().endswith("_proxy")
    }
    return {
        **clean,
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(tmp_path / "hf"),
        "RRTF_HOME": str(tmp_path / "rrtf"),
    }


@pytest.fixture
def python(settings: dict[str, str]) -> Pull:
    """Python with arguments in a process of its own."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        settings_here = {**settings, **environment}
        return subprocess.run(
            command, env=settings_here, capture_output=True, text=True, timeout=120, check=False
        )

    return run


@pytest.fixture
def pull(python: Pull) -> Pull:
    """`rrtf-models pull <arguments> --json`."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return python("-m", "rrtf_serve.models.cli", "pull", *arguments, "--json", **environment)

    return run


def answer(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.stderr


def test_one_gguf_file_is_fetched_and_used_in_place(pull: Pull, server: Hub, tmp_path: Path) -> None:
    source = answer(pull("maker/gguf:tiny-q4.gguf"))
    assert Path(source["path"]).read_bytes() == GGUF
    assert tmp_path / "hf" in Path(source["path"]).parents
    assert source["kind"] == "gguf"
    assert source["digest"] == sha256(GGUF)
    assert source["licence"] == "apache-2.0"
    assert source["origin"] == f"hub:maker/gguf@{COMMIT}"
    assert server.gets("tiny-q8.gguf") == []


def test_a_folder_brings_weights_and_tokenizer_but_no_pickle_and_no_code(pull: Pull, server: Hub) -> None:
    source = answer(pull("maker/folder"))
    names = sorted(path.name for path in Path(source["path"]).rglob("*") if path.is_file())
    assert names == ["config.json", "model.safetensors", "tokenizer.json"]
    assert source["kind"] == "huggingface"
    asked = {seen.path.rpartition("/")[2] for seen in server.seen if "/resolve/" in seen.path}
    assert asked == {"config.json", "model.safetensors", "tokenizer.json"}


def test_shards_are_read_off_the_index(pull: Pull, server: Hub) -> None:
    shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = json.dumps({"weight_map": {"a": shards[0], "b": shards[1], "c": shards[1]}})
    files = {"config.json": b"{}", "model.safetensors.index.json": index.encode(), "stray.safetensors": b"x"}
    server.repos["maker/sharded"] = Repo({**files, **dict.fromkeys(shards, WEIGHTS)})
    source = answer(pull("maker/sharded"))
    names = sorted(path.name for path in Path(source["path"]).iterdir())
    assert names == ["config.json", *shards, "model.safetensors.index.json"]


@pytest.mark.parametrize("shard", ["../../evil.safetensors", "model-00002-of-00002.safetensors"])
def test_an_index_that_names_absent_shards_is_refused(pull: Pull, server: Hub, shard: str) -> None:
    index = json.dumps({"weight_map": {"a": shard}}).encode()
    server.repos["maker/bad"] = Repo(
        {"config.json": b"{}", "model.safetensors.index.json": index, "model.safetensors": WEIGHTS}
    )
    assert "which the repository does not have" in complaint(pull("maker/bad"))


def test_pickles_alone_are_refused_with_the_reason(pull: Pull, server: Hub) -> None:
    server.repos["maker/old"] = Repo({"config.json": b"{}", "pytorch_model.bin": b"a pickle"})
    said = complaint(pull("maker/old"))
    assert "only as pickles (pytorch_model.bin)" in said
    assert "safetensors or GGUF" in said
    assert server.gets("pytorch_model.bin") == []


def test_a_repository_of_ggufs_lists_them(pull: Pull) -> None:
    said = complaint(pull("maker/gguf"))
    assert "Name one: maker/gguf:tiny-q4.gguf, maker/gguf:tiny-q8.gguf." in said
    assert "has no file tiny-q5.gguf. Name one:" in complaint(pull("maker/gguf:tiny-q5.gguf"))


def test_a_dropped_connection_is_resumed_with_a_range(pull: Pull, server: Hub) -> None:
    data = b"GGUF" + os.urandom(3 << 20)
    server.repos["maker/big"] = Repo({"big.gguf": data})
    server.drops[f"/maker/big/resolve/{COMMIT}/big.gguf"] = [2_000_000]
    source = answer(pull("maker/big:big.gguf"))
    assert Path(source["path"]).read_bytes() == data
    first, second = server.gets("big.gguf")
    assert first.range == ""
    assert 0 < int(second.range.removeprefix("bytes=").removesuffix("-")) <= 2_000_000


@pytest.mark.parametrize("spec", ["maker/big:big.gguf", "maker/big"])
def test_a_killed_process_goes_on_where_it_was(
    pull: Pull, python: Pull, settings: dict[str, str], server: Hub, spec: str
) -> None:
    name = "big.gguf" if ":" in spec else "model.safetensors"
    data = b"GGUF" + os.urandom(3 << 20)
    server.repos["maker/big"] = Repo({name: data, "config.json": b"{}"})
    server.hold = threading.Event()
    partial = Path(settings["RRTF_HOME"]) / "models" / "big" / f"{sha256(data)}.partial"
    process = subprocess.Popen([sys.executable, "-m", "rrtf_serve.models.cli", "pull", spec], env=settings)
    assert server.halfway.wait(60)
    deadline = time.monotonic() + 30
    while not (partial.exists() and partial.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    arrived = partial.stat().st_size
    assert 0 < arrived < len(data)
    listed = answer(python("-m", "rrtf_serve.models.cli", "list", "--json"))["store"]
    assert [(entry["what"], entry["size_bytes"]) for entry in listed] == [("partial", arrived)]
    server.hold.set()
    server.hold = None
    server.seen.clear()
    path = Path(answer(pull(spec))["path"])
    assert (path if path.is_file() else path / name).read_bytes() == data
    assert [seen.range for seen in server.gets(name)] == [f"bytes={arrived}-"]
    assert not partial.parent.exists()


def test_a_cache_on_another_disk_is_filled_too(pull: Pull, server: Hub, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        if Path(other).stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("/dev/shm is the same disk")
        path = Path(answer(pull("maker/gguf:tiny-q4.gguf", HF_HOME=other))["path"])
        assert Path(other) in path.parents
        assert path.read_bytes() == GGUF
        assert [blob.name for blob in path.resolve().parent.iterdir()] == [sha256(GGUF)]
    assert not (tmp_path / "rrtf" / "models" / "tiny-q4").exists()


def test_too_little_room_is_said_before_the_download(server: Hub, tmp_path: Path) -> None:
    huge = Large("big.gguf", f"{server.url}/big.gguf", "0" * 64, 10**18, "0" * 64)
    with pytest.raises(ModelError, match=r"not enough room in .* set HF_HOME"):
        blobs.bring("maker/big", [huge], tmp_path, progress=False)
    assert server.seen == []


def test_a_terminal_sees_a_bar(settings: dict[str, str], server: Hub) -> None:
    terminal, end = os.openpty()
    termios.tcsetwinsize(end, (24, 100))
    command = [sys.executable, "-m", "rrtf_serve.models.cli", "pull", "maker/gguf:tiny-q4.gguf"]
    done = subprocess.run(command, env=settings, stderr=end, timeout=120, check=False)
    os.close(end)
    shown = b""
    with suppress(OSError):  # how Linux says that the other end is closed
        while more := os.read(terminal, 4096):
            shown += more
    os.close(terminal)
    assert done.returncode == 0
    assert b"tiny-q4.gguf: 100%" in shown


def test_an_unfinished_download_can_be_removed(pull: Pull, python: Pull, server: Hub, tmp_path: Path) -> None:
    partial = tmp_path / "rrtf" / "models" / "tiny-q4" / f"{sha256(GGUF)}.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(GGUF[:1000])
    freed = answer(python("-m", "rrtf_serve.models.cli", "rm", "tiny-q4", "--yes", "--json"))["freed_bytes"]
    assert freed == 1000
    assert not partial.exists()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])  # another port, another name
def test_the_token_stays_with_the_hub_when_a_file_lies_elsewhere(pull: Pull, server: Hub, host: str) -> None:
    data = b"GGUF" + os.urandom(1 << 20)
    server.repos["maker/gguf"] = Repo({"tiny-q4.gguf": data}, gated=True)
    with Elsewhere() as elsewhere:
        elsewhere.data = data
        server.elsewhere = elsewhere.url.replace("127.0.0.1", host)
        elsewhere.drops["/blob"] = [600_000]
        source = answer(pull("maker/gguf:tiny-q4.gguf", HF_TOKEN=Hub.accepted))
        assert Path(source["path"]).read_bytes() == data
        assert [seen.authorization for seen in elsewhere.seen] == ["", ""]
        assert [bool(seen.range) for seen in elsewhere.seen] == [False, True]
    assert [seen.authorization for seen in server.gets("tiny-q4.gguf")] == [f"Bearer {Hub.accepted}"] * 2


def test_a_netrc_does_not_oust_the_token(pull: Pull, server: Hub, tmp_path: Path) -> None:
    server.repos["maker/gguf"].gated = True
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    answer(pull("maker/gguf:tiny-q4.gguf", HF_TOKEN=Hub.accepted, NETRC=str(netrc)))


@pytest.mark.parametrize(
    ("token", "says"), [("", "no token was found"), ("hf_other", "has not accepted its terms")]
)
def test_one_gated_file_gives_the_steps(pull: Pull, server: Hub, token: str, says: str) -> None:
    server.repos["maker/gguf"].gated = True
    assert says in complaint(pull("maker/gguf:tiny-q4.gguf", **({"HF_TOKEN": token} if token else {})))


def test_the_chunk_storage_is_not_needed(pull: Pull, server: Hub) -> None:
    server.xet = closed_port()
    assert Path(answer(pull("maker/gguf:tiny-q4.gguf"))["path"]).read_bytes() == GGUF
    assert server.gets("/xet-token") == []


def test_an_etag_that_is_no_sha256_never_becomes_a_path(pull: Pull, server: Hub, tmp_path: Path) -> None:
    server.etag = "tag"  # huggingface_hub's own download then; a digest of ours could not be told from it
    assert Path(answer(pull("maker/gguf:tiny-q4.gguf"))["path"]).read_bytes() == GGUF
    assert not (tmp_path / "rrtf" / "models").exists()


@pytest.mark.parametrize("damage", ["", "[]", '{"weight_map": [1]}', "{"])
def test_a_damaged_cached_index_is_named_and_fetched_again(pull: Pull, server: Hub, damage: str) -> None:
    index = json.dumps({"weight_map": {"a": "model-1.safetensors"}}).encode()
    name = "model.safetensors.index.json"
    server.repos["maker/sharded"] = Repo({name: index, "config.json": b"{}", "model-1.safetensors": WEIGHTS})
    path = Path(answer(pull("maker/sharded"))["path"]) / name
    path.resolve().write_text(damage)
    said = complaint(pull("maker/sharded"))
    assert f"{path} is not a readable shard index" in said
    answer(pull("maker/sharded"))
    assert path.read_bytes() == index


def test_a_damaged_cached_index_is_named_offline(pull: Pull, server: Hub) -> None:
    index = json.dumps({"weight_map": {"a": "model-1.safetensors"}}).encode()
    name = "model.safetensors.index.json"
    files = {name: index, "config.json": b"{}", "model-1.safetensors": WEIGHTS, "README.md": b"read me"}
    server.repos["maker/sharded"] = Repo(files)
    path = Path(answer(pull("maker/sharded"))["path"]) / name
    path.resolve().write_text("{")
    assert f"{path} is not a readable shard index" in complaint(pull("maker/sharded", HF_HUB_OFFLINE="1"))


@pytest.mark.parametrize("page", [b"<html>log in</html>", b"[]", b"{}"])
def test_what_is_not_the_hub_is_said(pull: Pull, server: Hub, page: bytes) -> None:
    server.pages["/api/models/maker/folder"] = page
    assert "what answers there is not the hub" in complaint(pull("maker/folder"))


@pytest.mark.parametrize("error", ["RuntimeError", "ValueError"])
def test_what_huggingface_hub_raises_is_no_traceback(python: Pull, error: str) -> None:
    complaint(python("-c", BROKEN, error))


def test_an_endpoint_that_is_no_address_is_no_traceback(pull: Pull) -> None:
    complaint(pull("maker/folder", HF_ENDPOINT="not-an-address"))


def test_a_file_that_is_not_what_the_hub_says_is_removed(pull: Pull, server: Hub, tmp_path: Path) -> None:
    server.repos["maker/gguf"].lies["tiny-q4.gguf"] = "0" * 64
    said = complaint(pull("maker/gguf:tiny-q4.gguf"))
    assert "the hub says 0000" in said
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 9000]


def test_gated_without_a_token_gives_the_steps(pull: Pull, server: Hub) -> None:
    server.repos["bigcode/starcoder"] = Repo(dict(FOLDER), gated=True, licence="bigcode-openrail-m")
    said = complaint(pull("starcoder"))
    assert "BigCode OpenRAIL-M" in said
    assert f"{server.url}/bigcode/starcoder" in said
    assert "/settings/tokens" in said
    assert "hf auth login" in said
    assert "HF_TOKEN" in said


def test_gated_with_a_token_that_has_not_accepted_says_that(pull: Pull, server: Hub) -> None:
    server.repos["bigcode/starcoder"] = Repo(dict(FOLDER), gated=True, licence="bigcode-openrail-m")
    said = complaint(pull("starcoder", HF_TOKEN="hf_other"))
    assert "has not accepted the BigCode OpenRAIL-M terms" in said
    assert "make a read token" not in said


def test_gated_with_accepted_terms_works(pull: Pull, server: Hub) -> None:
    server.repos["bigcode/starcoder"] = Repo(dict(FOLDER), gated=True, licence="bigcode-openrail-m")
    source = answer(pull("starcoder", HF_TOKEN=Hub.accepted))
    assert (source["name"], source["family"]) == ("starcoder", "starcoder")
    assert source["licence"] == "bigcode-openrail-m"
    assert any(seen.authorization == f"Bearer {Hub.accepted}" for seen in server.seen)


def test_absent_and_private_repositories_and_revisions(pull: Pull, server: Hub) -> None:
    assert "no such repository, or it is private and it needs a token" in complaint(pull("maker/absent"))
    server.repos["maker/secret"] = Repo(dict(FOLDER), private=True)
    assert "your token may not see it" in complaint(pull("maker/secret", HF_TOKEN="hf_other"))
    assert "no revision 'v9'" in complaint(pull("maker/folder", "--revision", "v9"))


def test_a_hub_that_fails_says_its_status(pull: Pull, server: Hub) -> None:
    server.statuses["/api/models/maker/folder"] = [500]
    assert "the hub answers 500" in complaint(pull("maker/folder"))
    server.statuses["/api/models/maker/folder"] = [401]
    assert "the token is missing; log in with `hf auth login`" in complaint(pull("maker/folder"))


def closed_port() -> str:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


def test_no_network_is_said_within_seconds(pull: Pull) -> None:
    started = time.monotonic()
    said = complaint(pull("maker/gguf:tiny-q4.gguf", HF_ENDPOINT=closed_port()))
    assert time.monotonic() - started < 15
    assert "no connection" in said


def test_a_network_that_swallows_packets_is_given_up_within_seconds(pull: Pull) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        said = complaint(pull("maker/folder", HF_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}"))
    assert time.monotonic() - started < 20
    assert "no answer in time" in said


@pytest.mark.parametrize("spec", ["maker/gguf:tiny-q4.gguf", "maker/folder"])
def test_what_is_cached_works_offline_and_without_network(pull: Pull, spec: str) -> None:
    first = answer(pull(spec))
    assert answer(pull(spec, HF_HUB_OFFLINE="1")) == first
    assert answer(pull(spec, HF_ENDPOINT=closed_port())) == first


def test_offline_mode_is_named_when_something_is_missing(pull: Pull, server: Hub) -> None:
    said = complaint(pull("maker/folder", HF_HUB_OFFLINE="1"))
    assert "HF_HUB_OFFLINE is set" in said
    assert server.seen == []


def test_a_second_pull_downloads_nothing(pull: Pull, server: Hub) -> None:
    answer(pull("maker/folder"))
    server.seen.clear()
    answer(pull("maker/folder"))
    assert [seen for seen in server.seen if seen.method == "GET" and "/resolve/" in seen.path] == []


def test_an_adapter_brings_its_base(pull: Pull, server: Hub) -> None:
    config = json.dumps({"base_model_name_or_path": "maker/folder"}).encode()
    server.repos["maker/lora"] = Repo({"adapter_config.json": config, "adapter_model.safetensors": WEIGHTS})
    source = answer(pull("maker/lora"))
    assert source["kind"] == "peft-adapter"
    assert source["base"]["kind"] == "huggingface"
    assert source["base"]["origin"] == f"hub:maker/folder@{COMMIT}"


def test_a_pinned_file_is_checked_against_the_catalogue(python: Pull, server: Hub, tmp_path: Path) -> None:
    def tiny(digest: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return python("-c", PINNED, COMMIT, str(len(GGUF)), digest, *arguments, **environment)

    said = complaint(tiny("0" * 64, "pull", "tiny"))
    assert "the catalogue says 0000" in said
    assert server.gets("tiny-q4.gguf") == []  # the hub names its digest, so nothing need be downloaded
    source = answer(tiny(sha256(GGUF), "pull", "tiny", "--json"))
    assert (source["name"], source["family"], source["licence"]) == ("tiny", "plain", "MIT")
    server.seen.clear()
    assert answer(tiny(sha256(GGUF), "pull", "tiny", "--json")) == source
    assert server.seen == []  # a pinned commit needs no look at the hub


def test_removal_takes_the_revision_out_of_the_hubs_cache(pull: Pull, python: Pull, tmp_path: Path) -> None:
    for spec in ("maker/folder", "maker/gguf:tiny-q4.gguf"):
        source = answer(pull(spec))
        done = python("-m", "rrtf_serve.models.cli", "rm", source["name"], "--yes", "--json")
        assert answer(done)["freed_bytes"] >= 12_000
        assert not Path(source["path"]).exists()
        listed = answer(python("-m", "rrtf_serve.models.cli", "list", "--json"))
        assert listed["store"] == []


def test_removing_one_file_leaves_its_neighbours(pull: Pull, python: Pull, server: Hub) -> None:
    server.repos["maker/gguf"].files["tiny-q8.gguf"] = GGUF + b"more bits"
    q4, q8 = (answer(pull(f"maker/gguf:tiny-{bits}.gguf")) for bits in ("q4", "q8"))
    answer(python("-m", "rrtf_serve.models.cli", "rm", q4["name"], "--yes", "--json"))
    assert not Path(q4["path"]).exists()
    assert Path(q8["path"]).read_bytes() == GGUF + b"more bits"


def test_only_gguf_files_are_fetched_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="only GGUF files"):
        hub.fetch_file("maker/folder", None, "pytorch_model.bin", unfinished=tmp_path, progress=False)
