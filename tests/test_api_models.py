"""GET /v1/models, /health, /version, and what /openapi.json says."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from live import Running, serving

from rrtf_serve.api.fields import CHAT_FIELDS, COMPLETION_FIELDS


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving() as running:
        yield running


def test_the_list_holds_the_model_with_its_card(server: Running) -> None:
    listing = httpx.get(server.address + "/v1/models").json()
    assert listing["object"] == "list"
    [model] = listing["data"]
    assert model["id"] == "tiny-coder"
    assert model["object"] == "model"
    assert model["created"] == 1_700_000_000
    assert model["max_model_len"] == 512
    assert model["infill"] is True
    assert model["card"]["quantization"] == "int8"
    assert "chat_template" not in model["card"]


@pytest.mark.parametrize("name", ["tiny-coder", "tiny", "org/tiny-coder"])
def test_a_model_is_found_by_name_and_alias(server: Running, name: str) -> None:
    assert httpx.get(f"{server.address}/v1/models/{name}").json()["id"] == "tiny-coder"


@pytest.mark.parametrize("model", ["tiny-coder", "tiny", "org/tiny-coder", None])
def test_requests_may_use_any_name_or_none(server: Running, model: str | None) -> None:
    body = {"prompt": "a", "max_tokens": 1, "model": model}
    assert httpx.post(server.address + "/v1/completions", json=body).json()["model"] == "tiny-coder"


def test_the_schema_describes_every_field(server: Running) -> None:
    document = httpx.get(server.address + "/openapi.json").json()
    for path, table in (("/v1/completions", COMPLETION_FIELDS), ("/v1/chat/completions", CHAT_FIELDS)):
        operation = document["paths"][path]["post"]
        body = operation["requestBody"]["content"]["application/json"]["schema"]
        assert set(body["properties"]) == {field.name for field in table}
        failures = {"400", "401", "403", "404", "408", "413", "415", "429", "500", "503", "504"}
        assert {"200", *failures} == set(operation["responses"])
