"""Host and Origin: what a page in a browser could make it do, and what programs may."""

from __future__ import annotations

import http.client

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from live import serving

from rrtf_serve.api.app import ApiSettings
from rrtf_serve.api.origin import Origins, is_loopback

LOCAL = Origins(hosts=(), literals=False)
BODY = {"prompt": "abc", "max_tokens": 2}


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8000",
        "LOCALHOST",
        "localhost.",
        "a.localhost:1",
        "127.0.0.1:80",
        "127.8.0.1",
        "[::1]:80",
        "[::1]",
    ],
)
def test_loopback_names_are_always_served(host: str) -> None:
    assert LOCAL.serves(host)


@pytest.mark.parametrize(
    "host",
    [
        *[
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "192.168.1.5:8000",
            "0.0.0.0",
            "[fe80::1]",
        ],
        *[
            "localhost:x",
            "localhost:8000:1",
            "a@localhost",
            "localhost/x",
            "::1",
            "2130706433",
            "[localhost]",
        ],
        "",
        " ",
    ],
)
def test_on_loopback_no_other_name_is(host: str) -> None:
    assert not LOCAL.serves(host)


def test_names_can_be_allowed() -> None:
    origins = Origins(hosts=("Code.example.org", "fe80::1"), literals=False)
    assert origins.serves("code.EXAMPLE.org:443")
    assert origins.serves("[fe80::1]:80")
    assert not origins.serves("x.code.example.org")
    assert Origins(hosts=("*",)).serves("evil.example")
    reached = Origins(hosts=("code.example.org",), literals=True)
    assert reached.serves("192.168.1.5:8000")
    assert not reached.serves("evil.example")


@given(st.text(max_size=30))
def test_any_host_gets_an_answer(host: str) -> None:
    assert LOCAL.serves(host) in (True, False)
    assert Origins().allows(host) is False


@pytest.mark.parametrize(
    "host", ["", "https://code.example", "code.example:443", "code.example/x", "a b", "user@code.example"]
)
def test_a_wrong_allowed_host_is_named(host: str) -> None:
    with pytest.raises(ValueError, match="--allowed-host"):
        Origins(hosts=(host,))


@pytest.mark.parametrize(
    "origin",
    ["", "code.example", "https://", "https://*", "http://*", "https://code.example/", "https://a/b", "https://*.example",
     "HTTPS://code.example", "https://code.example:x", "https://a b"],
)  # fmt: skip
def test_a_wrong_cors_origin_is_named(origin: str) -> None:
    if origin == "https://*.example":
        assert not Origins(origins=(origin,)).allows("https://code.example"), "no patterns"
        return
    with pytest.raises(ValueError, match="--cors-origin"):
        Origins(origins=(origin,))


def test_origins_are_allowed_as_they_stand() -> None:
    origins = Origins(origins=("https://code.example", "vscode-webview://*", "null"))
    for allowed in ("https://code.example", "vscode-webview://1b2c", "null"):
        assert origins.allows(allowed)
    for other in (
        "http://code.example",
        "https://code.example:8443",
        "https://code.example.evil",
        "vscode-webviewx://1",
    ):
        assert not origins.allows(other)
    assert Origins(origins=("*",)).allows("https://anything.example")


def test_loopback_is_told_from_the_rest() -> None:
    assert is_loopback("127.0.0.1") and is_loopback("::1")
    assert not is_loopback("0.0.0.0") and not is_loopback("localhost") and not is_loopback("192.168.1.5")


READ = ("/health", "/v1/models", "/ui/", "/ui/gradio_api/queue/data", "/metrics", "/nowhere")
PATHS = [
    *(("GET", path) for path in READ),
    ("POST", "/v1/completions"),
    ("POST", "/ui/sign-in"),
    ("OPTIONS", "/v1/completions"),
]


@pytest.mark.parametrize(("method", "path"), PATHS)
@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"host": "evil.example:8000"}, "host_not_allowed"),
        # Rebinding: the page's own name, which by now leads here.
        ({"host": "evil.example", "origin": "http://evil.example"}, "host_not_allowed"),
        ({"origin": "https://evil.example"}, "origin_not_allowed"),
        ({"origin": "null"}, "origin_not_allowed"),
        ({"origin": "http://127.0.0.1:1"}, "origin_not_allowed"),
        ({"origin": "vscode-webview://1b2c"}, "origin_not_allowed"),
        ({"origin": ""}, "origin_not_allowed"),
        ({"origin": "https://evil.example", "access-control-request-method": "POST"}, "origin_not_allowed"),
    ],
)
def test_a_page_from_elsewhere_gets_nothing(
    local: str, method: str, path: str, headers: dict[str, str], code: str
) -> None:
    refused = httpx.request(method, local + path, headers=headers, json=BODY if method == "POST" else None)
    assert refused.status_code == 403
    error = refused.json()["error"]
    assert (error["code"], error["type"], error["param"]) == (code, "invalid_request_error", None)
    assert ("--allowed-host" if code == "host_not_allowed" else "--cors-origin") in error["message"]
    assert refused.headers["x-request-id"]
    assert "access-control-allow-origin" not in refused.headers


@pytest.fixture(scope="module")
def local():
    with serving(settings=ApiSettings(origins=LOCAL)) as server:
        yield server.address


def test_our_own_page_and_programs_are_served(local: str) -> None:
    port = local.rsplit(":", 1)[1]
    for host in (f"127.0.0.1:{port}", f"localhost:{port}"):
        headers = {"host": host, "origin": f"http://{host}"}
        answer = httpx.post(f"{local}/v1/completions", json=BODY, headers=headers)
        assert answer.status_code == 200
        assert "access-control-allow-origin" not in answer.headers, "CORS is off"
    assert httpx.post(f"{local}/v1/completions", json=BODY).status_code == 200


def test_a_proxy_may_speak_tls_for_us() -> None:
    origins = Origins(hosts=("code.example",), literals=False)
    with serving(settings=ApiSettings(origins=origins)) as server:

        def status(host: str, origin: str) -> int:
            headers = {"host": host, "origin": origin}
            return httpx.get(f"{server.address}/v1/models", headers=headers).status_code

        assert status("code.example", "https://code.example") == 200
        assert status("code.example:8443", "https://code.example:8443") == 200
        assert status("code.example:8443", "https://code.example") == 403
        assert status("code.example", "https://other.example") == 403


def test_two_hosts_or_none(local: str) -> None:
    place = local.removeprefix("http://")
    for hosts, status in (((), 200), (("localhost", "evil.example"), 403), (("localhost",), 200)):
        connection = http.client.HTTPConnection(place, timeout=30)
        connection.putrequest("GET", "/v1/models", skip_host=True)
        if not hosts:
            connection._http_vsn_str = "HTTP/1.0"
        for host in hosts:
            connection.putheader("Host", host)
        connection.endheaders()
        answer = connection.getresponse()
        answer.read()
        assert answer.status in (status, 400), "servers below may refuse two themselves"
        connection.close()


def test_a_listed_page_may_call_and_reads_refusals_too() -> None:
    origins = Origins(hosts=(), literals=False, origins=("https://code.example", "vscode-webview://*"))
    settings = ApiSettings(origins=origins, api_keys=frozenset(("0" * 64,)))
    with serving(settings=settings) as server:
        for origin in ("https://code.example", "vscode-webview://1b2c"):
            asked = {"origin": origin, "access-control-request-method": "POST",
                     "access-control-request-headers": "authorization,content-type"}  # fmt: skip
            preflight = httpx.options(f"{server.address}/v1/completions", headers=asked)
            assert preflight.status_code == 200
            assert preflight.headers["access-control-allow-origin"] == origin
            assert "POST" in preflight.headers["access-control-allow-methods"]
            assert "authorization" in preflight.headers["access-control-allow-headers"]
            assert "access-control-allow-credentials" not in preflight.headers
            refused = httpx.post(f"{server.address}/v1/completions", json=BODY, headers={"origin": origin})
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
            assert refused.headers["access-control-allow-origin"] == origin
            exposed = refused.headers["access-control-expose-headers"].split(", ")
            assert {"retry-after", "retry-after-ms", "x-ratelimit-limit-requests"} <= set(exposed)
            assert "Origin" in refused.headers["vary"]
        assert (
            httpx.get(f"{server.address}/health", headers={"origin": "https://a.example"}).status_code == 403
        )


def test_all_pages_where_told() -> None:
    with serving(settings=ApiSettings(origins=Origins(origins=("*",)))) as server:
        answer = httpx.get(f"{server.address}/health", headers={"origin": "null", "host": "any.example"})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "*"
