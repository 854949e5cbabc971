"""What `rrtf-serve` is told about its clients, limits and logs: flags and files."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import httpx
import pytest
from live import rrtf_serve
from tiny_ct2 import write_servable

from rrtf_serve.api.keys import Keyring
from rrtf_serve.api.metrics import Metrics
from rrtf_serve.api.origin import Origins
from rrtf_serve.arguments import parser
from rrtf_serve.config import ServeConfig, read_config
from rrtf_serve.main import _bound, main, settings_of
from rrtf_serve.prepared import load, prepare_all
from rrtf_serve.process import LAST_WORDS_SECONDS, reserve

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


@pytest.mark.parametrize(("flags", "measured"), [({"request_seconds": 5.0}, True), ({}, False)])
def test_the_speed_of_reading_is_measured_where_a_limit_needs_it(
    tmp_path: Path, flags: dict[str, float], measured: bool
) -> None:
    config = ServeConfig(
        model=str(write_servable(tmp_path / "tiny")), threads=1, first_token_seconds=0.0, **flags
    )
    [prepared] = prepare_all(config)
    opened = load(prepared, Metrics())
    asyncio.run(opened.served.scheduler.close(0.0))
    opened.engine.close()
    assert (opened.served.prefill_speed is not None) == measured


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


def test_a_model_whose_weights_are_cut_ends_the_process_and_is_named(tmp_path: Path) -> None:
    folder = write_servable(tmp_path / "tiny")
    weights = folder / "model.bin"
    weights.write_bytes(weights.read_bytes()[:2000])
    command = [sys.executable, "-m", "rrtf_serve.main", "--model", str(folder), "--port", "0", "--no-ui"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert str(folder) in done.stderr
    assert "Traceback" not in done.stderr


def test_the_documents_name_flags_and_keys_that_exist() -> None:
    root = Path(__file__).parents[1]
    text = (root / "docs" / "operation.md").read_text()
    known = {option for action in parser()._actions for option in action.option_strings}
    foreign = {"--system", "--home-dir", "--shell", "--now", "--format"}  # of useradd, systemctl, podman
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
