"""The hub path in real processes: huggingface_hub reads its environment when it is imported."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stand_ins import COMMIT, Hub, Repo, sha256

from rrtf_serve.models import hub
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

Pull = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def server() -> Iterator[Hub]:
    with Hub() as server:
        server.repos["maker/gguf"] = Repo({"tiny-q4.gguf": GGUF, "tiny-q8.gguf": GGUF})
        server.repos["maker/folder"] = Repo(dict(FOLDER))
        yield server


@pytest.fixture
def python(server: Hub, tmp_path: Path) -> Pull:
    """Python with arguments in a process of its own, with caches of its own."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("HF_", "HUGGING")) and not key.lower().endswith("_proxy")
        }
        settings = {
            **clean,
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path / "hf"),
            "RRTF_HOME": str(tmp_path / "rrtf"),
            **environment,
        }
        command = [sys.executable, *arguments]
        return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=120, check=False)

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
    data = b"GGUF" + os.urandom(1 << 20) * 16  # huggingface_hub writes 10 MB at a time
    server.repos["maker/big"] = Repo({"big.gguf": data})
    server.drops["/maker/big/resolve/main/big.gguf"] = [12_000_000]
    source = answer(pull("maker/big:big.gguf"))
    assert Path(source["path"]).read_bytes() == data
    first, second = server.gets("big.gguf")
    assert (first.range, second.range) == ("", f"bytes={10 * 1024 * 1024}-")


def test_a_file_that_is_not_what_the_hub_says_is_removed(pull: Pull, server: Hub, tmp_path: Path) -> None:
    server.repos["maker/gguf"].lies["tiny-q4.gguf"] = "0" * 64
    said = complaint(pull("maker/gguf:tiny-q4.gguf"))
    assert "the hub says 0000" in said
    assert not [
        path for path in (tmp_path / "hf").rglob("*") if path.is_file() and path.stat().st_size > 9000
    ]


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
    assert time.monotonic() - started < 10
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
    assert "was removed" in said
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


def test_only_gguf_files_are_fetched_by_name() -> None:
    with pytest.raises(ModelError, match="only GGUF files"):
        hub.fetch_file("maker/folder", None, "pytorch_model.bin", progress=False)
