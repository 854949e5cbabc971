"""The composition root: what it prints, what it refuses, and the base install that serves without torch."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rrtf_serve.main import address_of, banner, hash_key, main, read_api_keys, reserve
from rrtf_serve.models.source import Source

PROJECT = Path(__file__).parents[1]


def test_reserve_names_the_port_that_is_taken() -> None:
    with reserve("127.0.0.1", 0) as first:
        first.listen()
        port = first.getsockname()[1]
        with pytest.raises(ValueError, match=rf"--port {port}: .*Choose another"):
            reserve("127.0.0.1", port)


def test_a_wildcard_address_is_shown_as_loopback() -> None:
    with reserve("0.0.0.0", 0) as listener:
        assert address_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_reserve_names_an_unknown_host() -> None:
    with pytest.raises(ValueError, match=r"--host no\.such\.host\.invalid"):
        reserve("no.such.host.invalid", 0)


def test_keys_come_from_file_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RRTF_API_KEYS", "one, two ,")
    path = tmp_path / "keys"
    path.write_text("# the team\nthree  # Ann\n\n", "utf-8")
    assert read_api_keys(path) == {hash_key("one"), hash_key("two"), hash_key("three")}
    path.write_text("# nobody\n", "utf-8")
    with pytest.raises(ValueError, match=r"--api-key-file .*holds no key"):
        read_api_keys(path)
    with pytest.raises(ValueError, match="--api-key-file"):
        read_api_keys(tmp_path / "absent")


def test_the_banners_curl_is_valid_json_and_names_every_way_in() -> None:
    text = banner("m", "http://127.0.0.1:8000", page=True, keys=False, infill=True)
    body = re.search(r"-d '(.*)'", text)
    assert body is not None
    assert json.loads(body.group(1))["suffix"].startswith("\n")
    for part in ("/v1", "/ui", "OpenAI(", "apiBase"):
        assert part in text
    assert "Bearer YOUR_KEY" in banner("m", "http://h", page=False, keys=True, infill=False)


@pytest.mark.parametrize("arguments", [["--port", "99999"], ["--quantization", "int3"], ["--nonsense"]])
def test_wrong_use_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_an_unknown_model_exits_with_1_and_says_what_a_model_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RRTF_HOME", str(tmp_path))
    assert main(["--model", "qwen2.5-coder-0.5b-instrct", "--port", "0"]) == 1
    message = capsys.readouterr().err
    assert "qwen2.5-coder-0.5b-instruct" in message


@contextmanager
def served(command: list[str], environment: dict[str, str]) -> Iterator[str]:
    """A server process; yields its address once it printed it."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            if found := re.match(r"\s+API\s+(\S+)/v1$", line):
                yield found.group(1)
                break
        else:
            pytest.fail(process.stderr.read()[-3000:])
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM)
        for pipe in (process.stdout, process.stderr):
            if pipe:
                pipe.close()


def ask(address: str, body: dict[str, object], key: str | None = None) -> dict[str, object]:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(f"{address}/v1/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def test_a_gguf_file_is_converted_once_and_served(smollm2_source: Source, tmp_path: Path) -> None:
    environment = os.environ | {"RRTF_HOME": str(tmp_path), "RRTF_API_KEYS": "sesame"}
    command = [sys.executable, "-m", "rrtf_serve.main", "--model", str(smollm2_source.path), "--port", "0"]
    with served(command, environment) as address:
        body = {"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
        answer = ask(address, body, key="sesame")
        assert "Paris" in json.dumps(answer["choices"])
        with pytest.raises(urllib.error.HTTPError) as refusal:
            ask(address, body)
        assert refusal.value.code == 401
        refusal.value.close()
        # A browser that opens / is sent to the page, which asks for the key.
        with urllib.request.urlopen(f"{address}/", timeout=30) as page:
            assert page.url.rstrip("/").endswith("/ui")
    folders = list((tmp_path / "converted").iterdir())
    before = [(folder, folder.stat().st_mtime_ns) for folder in folders if folder.is_dir()]
    assert len(before) == 1
    with served(command, environment):
        pass
    assert [(folder, folder.stat().st_mtime_ns) for folder, _ in before] == before


def test_the_base_wheel_converts_and_serves_without_torch(smollm2_source: Source, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "-w", str(tmp_path), str(PROJECT)], check=True, capture_output=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run(
        [python, *pip[1:], "install", str(wheel), "-c", str(PROJECT / "constraints.txt")],
        check=True, capture_output=True,
    )  # fmt: skip
    installed = {
        name.lower()
        for name in subprocess.run(
            [python, *pip[1:], "freeze"], check=True, capture_output=True, text=True
        ).stdout.split()
    }
    assert not [name for name in installed if name.split("==")[0] in ("torch", "transformers", "gradio")]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "RRTF_HOME": str(tmp_path / "home")}
    command = [str(python.with_name("rrtf-serve")), "--model", str(smollm2_source.path), "--port", "0"]
    with served(command, environment) as address:
        answer = ask(address, {"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0})
        assert "Paris" in json.dumps(answer["choices"])
        with urllib.request.urlopen(f"{address}/", timeout=30) as page:
            assert page.status == 200


def test_a_taken_port_is_said_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RRTF_HOME", str(tmp_path))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["--port", str(port)]) == 1
    assert f"--port {port}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
