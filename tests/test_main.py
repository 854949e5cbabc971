"""The composition root: what it prints, what it refuses, and the base install that serves without torch."""

import asyncio
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from fake_engine import FakeEngine
from fastapi import FastAPI
from live import LiveServer, rrtf_serve

from rrtf_serve.engine.scheduler import Scheduler
from rrtf_serve.greeting import banner
from rrtf_serve.main import main
from rrtf_serve.models.source import Source
from rrtf_serve.process import Ending, address_of, reserve, run

PROJECT = Path(__file__).parents[1]


def test_reserve_names_the_port_that_is_taken() -> None:
    with reserve("127.0.0.1", 0) as first:
        first.listen()
        port = first.getsockname()[1]
        with pytest.raises(ValueError, match=rf"--port {port}: .*Choose another"):
            reserve("127.0.0.1", port)


def test_two_servers_that_loaded_at_once_do_not_share_a_port() -> None:
    with reserve("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with reserve("127.0.0.1", port) as second:  # neither listens yet
            first.listen()
            with pytest.raises(ValueError, match=rf"--port {port}: .*Choose another"):
                asyncio.run(run(FastAPI(), second, Scheduler(FakeEngine()), Ending(1.0), greet=lambda: None))


def test_a_wildcard_address_is_shown_as_loopback() -> None:
    with reserve("0.0.0.0", 0) as listener:
        assert address_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_reserve_names_an_unknown_host() -> None:
    with pytest.raises(ValueError, match=r"--host no\.such\.host\.invalid"):
        reserve("no.such.host.invalid", 0)


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
            assert page.url == f"{address}/ui/sign-in"
    folders = list((tmp_path / "converted").iterdir())
    before = [(folder, folder.stat().st_mtime_ns) for folder in folders if folder.is_dir()]
    assert len(before) == 1
    with served(command, environment):
        pass
    assert [(folder, folder.stat().st_mtime_ns) for folder, _ in before] == before


def test_the_base_wheel_converts_and_serves_without_torch(smollm2_source: Source, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    # A copy: building leaves files beside the sources, which the next build would pack.
    source = shutil.copytree(PROJECT, tmp_path / "source", ignore=shutil.ignore_patterns(".*", "build"))
    subprocess.run(
        [*pip, "wheel", "--no-deps", "-w", str(tmp_path), str(source)], check=True, capture_output=True
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


@contextmanager
def streaming(live: LiveServer, max_tokens: int) -> Iterator[http.client.HTTPResponse]:
    """A streamed completion that has sent its first event."""
    connection = http.client.HTTPConnection(live.address.removeprefix("http://"), timeout=60)
    body = {"prompt": "Once upon a time", "max_tokens": max_tokens, "temperature": 0, "stream": True}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.readline().startswith(b"data: {")
    yield response
    connection.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_accepted_answers_finish(number: signal.Signals) -> None:
    with rrtf_serve("smollm2-135m-instruct", "--no-ui") as live, streaming(live, 40) as response:
        live.process.send_signal(number)
        rest = response.read()
        assert b'"finish_reason": "length"' in rest.replace(b'":"', b'": "')
        assert rest.endswith(b"data: [DONE]\n\n")
        assert live.process.wait(30) == 0


@pytest.mark.parametrize("signals", [1, 2])
def test_what_does_not_finish_in_time_is_told_so(signals: int) -> None:
    seconds = "1" if signals == 1 else "600"  # a second signal doesn't wait
    with (
        rrtf_serve("smollm2-135m-instruct", "--no-ui", "--drain-seconds", seconds) as live,
        streaming(live, 7000) as response,
    ):
        for _ in range(signals):
            live.process.send_signal(signal.SIGTERM)
            time.sleep(1)
        rest = response.read()
        assert b"[DONE]" not in rest
        last = json.loads(rest.strip().rsplit(b"data: ", 1)[1])
        assert last["error"]["code"] == "server_shutting_down"
        assert live.process.wait(30) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_killed_conversion_leaves_no_process_and_the_next_start_works(
    smollm2_source: Source, tmp_path: Path, number: signal.Signals
) -> None:
    environment = os.environ | {"RRTF_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "rrtf_serve.main", "--model", str(smollm2_source.path), "--prepare"]
    process = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        until(lambda: any((tmp_path / "converted").glob(".*")), "the conversion to start")
        children = psutil.Process(process.pid).children(recursive=True)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.send_signal(number)
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(30) != 0
        assert b"Traceback" not in said
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stderr:
            process.stderr.close()
    until(lambda: not any(child.is_running() for child in children), "the converter to end")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert (Path(done.stdout.strip()) / "rrtf.json").is_file()
    assert not list((tmp_path / "converted").glob(".*.incomplete"))


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.01)


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
