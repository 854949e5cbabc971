"""What `rrtf-serve` is told about its clients, limits and logs: flags, files, signals, readiness."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine, byte_tokenizer
from fastapi import FastAPI
from live import NAME, rrtf_serve
from test_roster import Loader, known
from tiny_ct2 import write_servable

from rrtf_serve.api.app import ApiSettings, Models, Served, create_app
from rrtf_serve.api.keys import Keyring
from rrtf_serve.api.log import RequestLog
from rrtf_serve.api.metrics import Metrics
from rrtf_serve.api.origin import Origins
from rrtf_serve.arguments import parser
from rrtf_serve.config import ServeConfig, read_config
from rrtf_serve.engine.protocol import TokenLogprob
from rrtf_serve.engine.scheduler import Scheduler
from rrtf_serve.main import Operation, _bound, main, settings_of
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.families import FAMILIES
from rrtf_serve.models.folder import Card
from rrtf_serve.models.prompts import Prompts
from rrtf_serve.process import LAST_WORDS_SECONDS, Ending, address_of, reserve, run
from rrtf_serve.roster import Residence, Roster

PATH = "/v1/completions"

WRONG = [
    ["--requests-per-minute", "0"],
    ["--requests-per-minute", "many"],
    ["--tokens-per-minute", "-1"],
    ["--concurrent-requests", "0"],
    ["--max-body-bytes", "10"],
    ["--max-prompt-tokens", "0"],
    ["--max-queue-tokens", "0"],
    ["--request-seconds", "0"],
    ["--request-seconds", "nan"],
    ["--first-token-seconds", "-1"],
    ["--drain-delay-seconds", "-1"],
    ["--drain-seconds", "inf"],
    ["--log-format", "yaml"],
    ["--allowed-host", "https://code.example"],
    ["--allowed-host", "code.example:443"],
    ["--cors-origin", "code.example"],
    ["--cors-origin", "https://code.example/path"],
    ["--trusted-proxy", "proxy.example"],
    ["--trusted-proxy", "10.0.0.1/8"],
    ["--api-key-file", "absent"],
]


@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_a_wrong_flag_exits_with_2_and_is_named(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_a_log_file_that_cannot_be_opened_is_said_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RRTF_HOME", str(tmp_path / "home"))
    assert main(["--port", "0", "--log-file", str(tmp_path / "absent" / "log")]) == 1
    assert "--log-file" in capsys.readouterr().err
    assert not (tmp_path / "home").exists()


def test_every_flag_is_a_setting_and_every_setting_a_flag() -> None:
    flags = set(vars(parser().parse_args([]))) - {"config", "prepare"}
    # --model may be repeated: what follows the first goes into a field of its own.
    assert flags == {field.name for field in fields(ServeConfig)} - {"more_models"}
    assert (
        read_config(None, vars(parser().parse_args([])) | {"config": None, "prepare": None}) == ServeConfig()
    )


def test_the_bounds_of_the_queue_reach_the_scheduler(tmp_path: Path) -> None:
    folder = write_servable(tmp_path / "tiny")
    with (
        rrtf_serve(str(folder), "--max-queue-tokens", "40", "--threads", "1", "--no-ui") as live,
        httpx.Client(base_url=live.address, timeout=60) as client,
    ):
        whole = client.post(PATH, json={"prompt": "abcdefgh", "max_tokens": 32})
        over = client.post(PATH, json={"prompt": "abcdefgh", "max_tokens": 33})
    assert whole.status_code == 200
    assert over.status_code == 400
    assert "needs 41 tokens" in over.json()["error"]["message"]
    assert "accepts 40 at most" in over.json()["error"]["message"]


def test_lists_come_from_repeated_flags_and_from_files(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('cors_origin = ["https://a.example", "null"]\nlog_file = "log"\nrequest_seconds = 5\n')
    config = read_config(file, {"allowed_host": ["a.example", "b.example"]})
    assert config.cors_origin == ("https://a.example", "null")
    assert config.allowed_host == ("a.example", "b.example")
    assert (config.log_file, config.request_seconds) == (Path("log"), 5.0)
    for wrong in (
        'cors_origin = "https://a.example"',
        "cors_origin = [1]",
        "open_metrics = 1",
        "log_format = []",
    ):
        file.write_text(wrong)
        with pytest.raises(ValueError, match=f"--config .*{wrong.split()[0]} must be"):
            read_config(file, {})


def test_the_settings_reach_the_api() -> None:
    config = ServeConfig(
        requests_per_minute=1, tokens_per_minute=2, concurrent_requests=3, max_body_bytes=2048,
        max_prompt_tokens=5, request_seconds=6.0, first_token_seconds=7.0, log_prompts=True,
        open_metrics=True,
    )  # fmt: skip
    settings = settings_of(config, Origins(origins=("null",)))
    limits = settings.limits
    assert (limits.requests_per_minute, limits.tokens_per_minute, limits.concurrent_requests) == (1, 2, 3)
    assert (settings.max_body_bytes, settings.max_prompt_tokens) == (2048, 5)
    assert (settings.request_seconds, settings.first_token_seconds) == (6.0, 7.0)
    assert settings.log_prompts
    assert settings.is_open("/metrics")
    assert not settings_of(ServeConfig(), Origins()).is_open("/metrics")
    assert settings.origins.origins == ("null",)


@pytest.mark.parametrize(
    ("host", "allowed", "served", "refused"),
    [
        ("127.0.0.1", (), ["localhost:1", "127.0.0.1"], ["evil.example", "192.168.1.5"]),
        ("127.0.0.1", ("code.example",), ["localhost", "code.example"], ["evil.example"]),
        ("0.0.0.0", (), ["evil.example", "192.168.1.5"], []),
        ("0.0.0.0", ("code.example",), ["code.example", "192.168.1.5", "localhost"], ["evil.example"]),
    ],
)
def test_where_it_listens_decides_which_names_it_answers_to(
    host: str, allowed: tuple[str, ...], served: list[str], refused: list[str]
) -> None:
    config = ServeConfig(host=host, allowed_host=allowed)
    with reserve(host, 0) as listener:
        origins = _bound(Origins(allowed), config, listener, Keyring())
    assert all(map(origins.serves, served))
    assert not any(map(origins.serves, refused))


def test_a_server_that_all_can_reach_without_a_key_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with reserve("0.0.0.0", 0) as listener:
        _bound(Origins(), ServeConfig(host="0.0.0.0"), listener, Keyring())
    assert "--api-key-file" in caplog.text


def api(engine: FakeEngine, operation: Operation) -> tuple[FastAPI, Scheduler]:
    tokenizer = byte_tokenizer()
    scheduler = Scheduler(engine)
    prompts = Prompts(
        tokenizer, FAMILIES["qwen2.5-coder"], chat_template="", add_bos=False, bos_token="", end_tokens=[]
    )  # fmt: skip
    card = Card(NAME, "qwen2", "qwen2.5-coder", 512, "int8")
    served = Served(NAME, (), card, tokenizer, prompts, 0, 512, scheduler=scheduler)
    app = create_app(
        Models([served]),
        settings=ApiSettings(),
        keys=operation.keys,
        metrics=operation.metrics,
        log=operation.requests,
    )
    return app, scheduler


def under_signals(
    client_side: Callable[[httpx.AsyncClient], Awaitable[None]],
    engine: FakeEngine,
    operation: Operation,
    ending: Ending,
    **more: Any,
) -> None:
    """Run the server on this thread, as signals ask for, and the client beside it."""

    async def both() -> None:
        app, scheduler = api(engine, operation)
        ready = asyncio.Event()
        with reserve("127.0.0.1", 0) as listener:
            address = address_of(listener)
            running = asyncio.create_task(
                run(app, listener, scheduler, ending, greet=ready.set, hang_up=operation.hang_up, **more)
            )
            try:
                await ready.wait()
                async with httpx.AsyncClient(base_url=address, timeout=60) as client:
                    await client_side(client)
                await running
            finally:
                engine.open.set()
                if not running.done():
                    running.cancel()
                await scheduler.close(0)

    asyncio.run(asyncio.wait_for(both(), 120))


@pytest.fixture
def operation(tmp_path: Path) -> Operation:
    file = tmp_path / "keys"
    file.write_text("alice:one\n")
    metrics = Metrics()
    return Operation(
        Keyring(file=file, poll_seconds=3600),
        Origins(),
        metrics,
        RequestLog("json", tmp_path / "log", lost=metrics.lost_lines.inc),
    )


def test_sighup_reads_keys_and_opens_the_log_again(operation: Operation, tmp_path: Path) -> None:
    async def client_side(client: httpx.AsyncClient) -> None:
        async def status(key: str) -> int:
            return (await client.get("/v1/models", headers={"api-key": key})).status_code

        assert [await status("one"), await status("two")] == [200, 401]
        (tmp_path / "keys").write_text("bob:two\n")
        (tmp_path / "log").rename(tmp_path / "log.1")
        os.kill(os.getpid(), signal.SIGHUP)
        while await status("two") != 200:
            await asyncio.sleep(0.005)
        assert await status("one") == 401
        os.kill(os.getpid(), signal.SIGTERM)

    under_signals(client_side, FakeEngine(), operation, Ending(5.0))
    operation.requests.close()
    old, new = ((tmp_path / name).read_text().splitlines() for name in ("log.1", "log"))
    assert json.loads(old[0])["key"] == "alice"
    assert json.loads(new[-1])["error"] == "invalid_api_key"


def test_a_stopping_server_first_says_that_it_is_not_ready_and_then_finishes_what_it_accepted(
    operation: Operation,
) -> None:
    engine = FakeEngine()
    engine.open.clear()
    body = {"prompt": "abc", "max_tokens": 4, "stream": True}
    headers = {"api-key": "one"}

    async def client_side(client: httpx.AsyncClient) -> None:
        assert (await client.get("/ready")).status_code == 200
        async with client.stream("POST", PATH, json=body, headers=headers) as first:
            os.kill(os.getpid(), signal.SIGTERM)
            while (draining := await client.get("/ready")).status_code == 200:
                await asyncio.sleep(0.005)
            assert (draining.status_code, draining.json()) == (503, {"status": "draining"})
            assert draining.headers["retry-after"]
            assert (await client.get("/health")).status_code == 200
            # Who has not heard of it yet is still served.
            async with client.stream("POST", PATH, json=body, headers=headers) as second:
                assert second.status_code == 200
                engine.open.set()
                for answer in (first, second):
                    assert (await answer.aread()).endswith(b"data: [DONE]\n\n")

    under_signals(client_side, engine, operation, Ending(60.0, delay_seconds=6.0))


def test_a_second_signal_ends_the_delay_and_the_answers(operation: Operation) -> None:
    engine = FakeEngine()
    engine.open.clear()
    body = {"prompt": "abc", "max_tokens": 4, "stream": True}

    async def client_side(client: httpx.AsyncClient) -> None:
        async with client.stream("POST", PATH, json=body, headers={"api-key": "one"}) as answer:
            os.kill(os.getpid(), signal.SIGTERM)
            while (await client.get("/ready")).status_code == 200:
                await asyncio.sleep(0.005)
            os.kill(os.getpid(), signal.SIGTERM)
            assert b"server_shutting_down" in await answer.aread()

    under_signals(client_side, engine, operation, Ending(3600.0, delay_seconds=3600.0))


def test_a_second_signal_does_not_wait_for_a_body_that_never_comes(
    operation: Operation, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    async def client_side(client: httpx.AsyncClient) -> None:
        host, port = client.base_url.host, client.base_url.port
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nApi-Key: one\r\n")
        writer.write(b"Content-Type: application/json\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n")
        assert b"100 Continue" in await reader.readuntil(b"\r\n\r\n")  # the body is waited for
        writer.write(b'{"prompt": ')
        os.kill(os.getpid(), signal.SIGTERM)
        while (await client.get("/ready")).status_code == 200:
            await asyncio.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)
        assert await reader.read() == b""
        writer.close()

    # Twice longer than the test may take.
    under_signals(client_side, FakeEngine(), operation, Ending(3600.0, delay_seconds=3600.0))
    operation.requests.close()
    line = json.loads((tmp_path / "log").read_text().splitlines()[-1])
    assert (line["route"], line["gone"]) == (PATH, True)
    assert "Traceback" not in capsys.readouterr().err  # of a handler that was cancelled


def test_requests_of_several_steps_finish_within_the_drain(operation: Operation) -> None:
    engine = Slow()
    engine.open.clear()
    scores = {"prompt": ["abc", "def", "ghi"], "max_tokens": 0, "echo": True, "logprobs": 0}
    then_decoded = {"prompt": "xyz", "max_tokens": 4, "echo": True, "logprobs": 0}

    async def client_side(client: httpx.AsyncClient) -> None:
        headers = {"api-key": "one"}
        asked = [
            asyncio.create_task(client.post(PATH, json=body, headers=headers))
            for body in (scores, then_decoded)
        ]
        await asyncio.to_thread(engine.scoring.wait, 60)
        os.kill(os.getpid(), signal.SIGTERM)
        while True:  # until the port is closed
            try:
                (await asyncio.open_connection(client.base_url.host, client.base_url.port))[1].close()
            except OSError:
                break
            await asyncio.sleep(0.01)
        engine.open.set()
        assert [(await each).status_code for each in asked] == [200, 200]

    under_signals(client_side, engine, operation, Ending(60.0))


class Slow(FakeEngine):
    """Whose scores wait, as its steps do."""

    def __init__(self) -> None:
        super().__init__()
        self.scoring = threading.Event()

    def score(self, prompt: tuple[int, ...], top: int) -> list[TokenLogprob]:
        self.scoring.set()
        self.open.wait()
        return super().score(prompt, top)


STUCK = """
import asyncio, json, threading
from rrtf_serve.api.keys import Keyring
from rrtf_serve.api.log import RequestLog
from rrtf_serve.api.metrics import Metrics
from rrtf_serve.api.origin import Origins
from rrtf_serve.main import Operation
from rrtf_serve.process import Ending, address_of, leave_within, reserve, run
from fake_engine import FakeEngine
from test_main_operation import api

class Stuck(FakeEngine):
    def score(self, prompt, top):
        print("stuck", flush=True)
        threading.Event().wait()

log = RequestLog("json", None, lost=lambda: None)
app, scheduler = api(Stuck(), Operation(Keyring([]), Origins(), Metrics(), log))

async def main(listener):
    await run(
        app, listener, scheduler, Ending(DRAIN), greet=lambda: print(address_of(listener), flush=True),
        at_last=lambda seconds, status: leave_within(seconds, status, log.close),
    )

with reserve("127.0.0.1", 0) as listener:
    asyncio.run(main(listener))
"""


@pytest.mark.parametrize(("signals", "drain"), [(1, 0.2), (2, 3600.0)])
def test_what_cannot_be_stopped_does_not_hold_the_process_back(signals: int, drain: float) -> None:
    """As a long prompt that CTranslate2 reads: its client has gone, its thread goes on."""
    command = [sys.executable, "-c", STUCK.replace("DRAIN", str(drain))]
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": path},
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None and process.stderr is not None
            address = process.stdout.readline().strip()
            body = {"prompt": "abc", "max_tokens": 0, "echo": True, "logprobs": 0}
            with (
                httpx.Client(base_url=address, timeout=60) as client,
                ThreadPoolExecutor(1) as beside,
            ):
                answer = beside.submit(client.post, PATH, json=body)
                assert process.stdout.readline() == "stuck\n"
                for _ in range(signals):
                    process.send_signal(signal.SIGTERM)
                    time.sleep(0.5)  # two at once would be one
                assert process.wait(60) == 0
                assert answer.result().json()["error"]["code"] == "server_shutting_down"
            said = process.stderr.read()
            assert "ended without waiting" in said and "server_shutting_down" in said
            assert "Traceback" not in said
        finally:
            process.kill()


def while_loading(
    loader: Loader, client_side: Callable[[httpx.AsyncClient, asyncio.Event], Awaitable[None]]
) -> bool:
    """Run a server whose first model is loaded by `loader`, and the client beside it; what `run` says."""

    async def both() -> bool:
        roster = Roster([known("a"), known("b")], loader, Residence(), free=lambda: loader.free)
        app = create_app(Models(roster.known, roster), settings=ApiSettings())
        app.state.readiness.loading = True
        greeted = asyncio.Event()

        async def begin() -> None:
            await roster.begin()
            app.state.readiness.loading = False

        with reserve("127.0.0.1", 0) as listener:
            address = address_of(listener)
            ending = Ending(60.0, delay_seconds=3600.0)
            running = asyncio.create_task(run(app, listener, roster, ending, begin=begin, greet=greeted.set))
            try:
                async with httpx.AsyncClient(base_url=address, timeout=60) as client:
                    await client_side(client, greeted)
                return await running
            finally:
                loader.gate.set()
                if not running.done():
                    running.cancel()
                await roster.close(0)
                await roster.release()

    return asyncio.run(asyncio.wait_for(both(), 120))


def test_the_port_is_open_while_the_first_model_is_loaded() -> None:
    loader = Loader()
    loader.gate.clear()
    asks: dict[str, dict[str, Any]] = {
        PATH: {"prompt": "abc", "max_tokens": 2, "stream": True},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}], "model": "b"},
        "/infill": {"input_prefix": "a", "input_suffix": "b"},
        "/api/generate": {"model": "a", "prompt": "abc"},
        "/generate": {"inputs": "abc"},
    }

    async def client_side(client: httpx.AsyncClient, greeted: asyncio.Event) -> None:
        while True:
            try:
                assert (await client.get("/health")).status_code == 200
                break
            except httpx.ConnectError:  # not yet
                await asyncio.sleep(0.005)
        ready = await client.get("/ready")
        assert (ready.status_code, ready.json()) == (503, {"status": "loading"})
        assert ready.headers["retry-after"]
        names = (await client.get("/v1/models")).json()["data"]
        assert [each["id"] for each in names] == ["a", "b"]
        for path, body in asks.items():
            answer = await client.post(path, json=body)
            assert answer.status_code == 503, path
            assert answer.headers["retry-after"] == "5"
            error = answer.json()["error"]
            message = error if isinstance(error, str) else error["message"]
            assert "'a' is being loaded" in message, path
        assert (await client.get("/health")).status_code == 200
        assert not greeted.is_set()
        assert loader.log == []
        loader.gate.set()
        await greeted.wait()
        assert (await client.get("/ready")).status_code == 200
        assert (await client.post(PATH, json={"prompt": "abc", "max_tokens": 2})).status_code == 200
        os.kill(os.getpid(), signal.SIGTERM)
        while (await client.get("/ready")).status_code == 200:
            await asyncio.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    assert while_loading(loader, client_side)
    assert loader.log == ["+a", "-a"]


def test_a_first_model_that_cannot_be_loaded_ends_the_server() -> None:
    loader = Loader(fails=ModelError("weights are cut"))
    loader.gate.clear()

    async def client_side(client: httpx.AsyncClient, greeted: asyncio.Event) -> None:
        loader.gate.set()

    with pytest.raises(ModelError, match="weights are cut"):
        while_loading(loader, client_side)


@pytest.mark.parametrize(("number", "said"), [(signal.SIGINT, False), (signal.SIGTERM, True)])
def test_a_signal_while_the_first_model_is_loaded_stops_after_it(number: signal.Signals, said: bool) -> None:
    loader = Loader()
    loader.gate.clear()
    handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}

    async def client_side(client: httpx.AsyncClient, greeted: asyncio.Event) -> None:
        while True:
            try:
                await client.get("/health")
                break
            except httpx.ConnectError:
                await asyncio.sleep(0.005)
        os.kill(os.getpid(), number)
        while True:
            try:
                await client.get("/health")
            except httpx.TransportError:  # the port is closed, the model not there yet
                break
        loader.gate.set()
        assert not greeted.is_set()

    try:
        assert while_loading(loader, client_side) is said
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
    assert loader.log == ["+a", "-a"]


def test_a_model_whose_weights_are_cut_ends_the_process_and_is_named(tmp_path: Path) -> None:
    folder = write_servable(tmp_path / "tiny")
    weights = folder / "model.bin"
    weights.write_bytes(weights.read_bytes()[:2000])
    command = [sys.executable, "-m", "rrtf_serve.main", "--model", str(folder), "--port", "0", "--no-ui"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert str(folder) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_proxy_is_believed_only_where_it_was_named(operation: Operation, tmp_path: Path) -> None:
    headers = {"x-forwarded-for": "203.0.113.7", "x-forwarded-proto": "https"}

    async def client_side(client: httpx.AsyncClient) -> None:
        await client.get("/v1/models", headers=headers)
        os.kill(os.getpid(), signal.SIGTERM)

    under_signals(client_side, FakeEngine(), operation, Ending(5.0), trusted_proxies=("127.0.0.1",))
    under_signals(client_side, FakeEngine(), operation, Ending(5.0))
    operation.requests.close()
    lines = (tmp_path / "log").read_text().splitlines()
    assert [json.loads(line)["client"] for line in lines] == ["203.0.113.7", "127.0.0.1"]


def test_the_documents_name_flags_and_keys_that_exist() -> None:
    root = Path(__file__).parents[1]
    text = (root / "docs" / "operation.md").read_text()
    known = {option for action in parser()._actions for option in action.option_strings}
    foreign = {"--system", "--home-dir", "--shell", "--now"}  # of useradd and systemctl
    for file in ("docs/operation.md", *(f"deploy/{name}" for name in ("nginx.conf", "Caddyfile"))):
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", (root / file).read_text()))
        assert named - foreign <= known, file
    table = re.search(r"```toml\n(.*?)```", text, re.DOTALL)
    assert table is not None
    settings = tomllib.loads(table[1])
    keys = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    assert ServeConfig(**keys).request_seconds == 120
    figures = {family.name for family in Metrics(by_key=True).registry.collect()}
    for name in re.findall(r"(?:vllm|rrtf):\w+", text):
        assert name.removesuffix("_total") in figures, name
    for path in re.findall(r"\]\(\.\./(\S+?)\)", text):
        assert (root / path).is_file(), path


def test_the_unit_waits_longer_for_the_end_than_the_server_does() -> None:
    unit = (Path(__file__).parents[1] / "deploy" / "rrtf-serve.service").read_text()
    seconds = re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert seconds is not None
    config = ServeConfig()
    assert int(seconds[1]) > config.drain_delay_seconds + config.drain_seconds + LAST_WORDS_SECONDS
