"""/metrics: read with Prometheus' own parser, over a live server and from an observer's calls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import httpx
import pytest
from fake_engine import FakeEngine
from live import NAME, Running, serving
from prometheus_client.parser import text_string_to_metric_families

from rrtf_serve.api.app import ApiSettings
from rrtf_serve.api.keys import Keyring, read_variable
from rrtf_serve.api.metrics import BUCKETS, Metrics
from rrtf_serve.engine.observer import Ending, Observer

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def read(server: Running) -> Samples:
    answer = httpx.get(f"{server.address}/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return samples(answer.text)


def value(found: Samples, name: str, **labels: str) -> float | None:
    return found.get((name, tuple(sorted(labels.items()))))


def test_scored_prompts_are_tokens_read() -> None:
    with serving() as server, httpx.Client(base_url=server.address) as client:
        body = {"prompt": ["abc", "defg"], "max_tokens": 0, "echo": True, "logprobs": 0}
        assert client.post("/v1/completions", json=body).status_code == 200
        found = read(server)
    assert value(found, "vllm:prompt_tokens_total", model_name=NAME) == 7


def test_http_requests_are_counted_by_route_and_never_by_path() -> None:
    with serving() as server, httpx.Client(base_url=server.address) as client:
        client.get("/v1/models")
        for name in ("tiny", "org/tiny-coder", "nobody", "x/y/z"):
            client.get(f"/v1/models/{name}")
        for number in range(20):
            client.get(f"/nowhere/{number}")
            client.request(f"METHOD{number}", "/v1/models")
        client.get("/ui/some/page")
        client.post("/v1/completions", json={"prompt": "a", "max_tokens": 2})
        client.post("/v1/completions", json={"prompt": 5})
        client.post("/v1/completions", content=b"{}")
        found = read(server)
    count = "rrtf:http_requests_total"
    assert value(found, count, route="/v1/models", method="GET", status="200") == 1
    assert value(found, count, route="/v1/models/{name:path}", method="GET", status="200") == 2
    assert value(found, count, route="/v1/models/{name:path}", method="GET", status="404") == 2
    assert value(found, count, route="unmatched", method="GET", status="404") == 20
    assert value(found, count, route="/ui", method="GET", status="404") == 1
    assert value(found, count, route="/v1/completions", method="POST", status="200") == 1
    assert value(found, count, route="/v1/completions", method="POST", status="400") == 1
    assert value(found, count, route="/v1/completions", method="POST", status="415") == 1
    methods = {dict(labels)["method"] for name, labels in found if name == count}
    assert methods == {"GET", "POST", "other"}
    assert value(found, "rrtf:errors_total", code="unsupported_media_type") == 1
    assert value(found, "rrtf:errors_total", code="model_not_found") == 2
    duration = "rrtf:http_request_duration_seconds"
    assert value(found, f"{duration}_count", route="/v1/completions") == 3
    assert value(found, "process_resident_memory_bytes") is not None


def test_a_fault_of_ours_counts_as_500() -> None:
    with serving(FakeEngine(fails_after=0)) as server:
        httpx.post(f"{server.address}/v1/completions", json={"prompt": "a"})
        found = read(server)
    labels = {"route": "/v1/completions", "method": "POST", "status": "500"}
    assert value(found, "rrtf:http_requests_total", **labels) == 1
    assert value(found, "rrtf:errors_total", code="internal_error") == 1


def test_who_hangs_up_is_counted() -> None:
    engine = FakeEngine()
    engine.open.clear()
    metrics = Metrics()
    with serving(engine, metrics=metrics) as server:
        body = {"prompt": "a", "max_tokens": 2, "stream": True}
        with httpx.Client() as client, client.stream("POST", f"{server.address}/v1/completions", json=body):
            pass
        end = time.monotonic() + 60
        route = {"route": "/v1/completions"}
        while value(samples(metrics.render().decode()), "rrtf:disconnects_total", **route) != 1:
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.005)
        engine.open.set()


def test_keys_are_counted_by_name_only_where_asked() -> None:
    for asked in (True, False):
        keys = Keyring(read_variable("alice:one,bob:two"))
        settings = ApiSettings(open_paths=(*ApiSettings().open_paths, "/metrics"))
        with serving(keys=keys, metrics=Metrics(by_key=asked), settings=settings) as server:
            body = {"prompt": "abc", "max_tokens": 2}
            for key in ("one", "one", "wrong"):
                headers = {"api-key": key}
                httpx.post(f"{server.address}/v1/completions", json=body, headers=headers)
            found = read(server)
        assert value(found, "rrtf:key_requests_total", key="alice") == (2 if asked else None)
        assert value(found, "rrtf:key_tokens_total", key="alice", kind="prompt") == (6 if asked else None)
        assert value(found, "rrtf:key_tokens_total", key="alice", kind="completion") == (4 if asked else None)
        assert not any("bob" in str(labels) or "one" in str(labels) for _, labels in found)


def test_two_apps_in_one_process_count_apart() -> None:
    with serving() as first, serving() as second:
        httpx.get(f"{first.address}/health")
        route = {"route": "/health", "method": "GET", "status": "200"}
        assert value(read(first), "rrtf:http_requests_total", **route) == 1
        assert value(read(second), "rrtf:http_requests_total", **route) is None


def test_buckets_go_from_5_ms_to_60_s() -> None:
    assert (BUCKETS[0], BUCKETS[-1]) == (0.005, 60.0)
    assert list(BUCKETS) == sorted(BUCKETS)


def told(observer: Observer) -> None:
    observer.queued(3)
    observer.running(2)
    observer.started(0.004)
    observer.first_token(0.2)
    observer.next_token(0.03)
    observer.tokens(7, 5)
    observer.batch(4)
    observer.refused("queue_full")


@pytest.mark.parametrize(
    ("how", "reason", "cancelled"),
    [("stop", "stop", False), ("length", "length", False), ("error", "error", False),
     ("cancelled", "abort", True), ("replaced", "abort", True), ("deadline", "abort", True)],
)  # fmt: skip
def test_what_a_scheduler_tells_has_vllms_names(how: Ending, reason: str, cancelled: bool) -> None:
    metrics = Metrics()
    observer = metrics.observer(NAME)
    told(observer)
    observer.ended(how, 1.5)
    found = samples(metrics.render().decode())
    model = {"model_name": NAME}
    expected: list[tuple[str, dict[str, str], float | None]] = [
        ("vllm:num_requests_waiting", {}, 3),
        ("vllm:num_requests_running", {}, 2),
        ("vllm:request_queue_time_seconds_bucket", {"le": "0.005"}, 1),
        ("vllm:time_to_first_token_seconds_bucket", {"le": "0.25"}, 1),
        ("vllm:time_to_first_token_seconds_bucket", {"le": "0.1"}, 0),
        ("vllm:inter_token_latency_seconds_sum", {}, 0.03),
        ("vllm:prompt_tokens_total", {}, 7),
        ("vllm:generation_tokens_total", {}, 5),
        ("vllm:e2e_request_latency_seconds_count", {}, 1),
        ("vllm:request_success_total", {"finished_reason": reason}, 1),
        ("rrtf:batch_size_rows_bucket", {"le": "4.0"}, 1),
        ("rrtf:queue_refusals_total", {"reason": "queue_full"}, 1),
    ]
    for name, labels, figure in expected:
        assert value(found, name, **model, **labels) == figure, name
    total = sum(count for (name, _), count in found.items() if name == "rrtf:cancellations_total")
    assert total == cancelled


def test_figures_of_many_threads_add_up() -> None:
    metrics = Metrics()
    observer = metrics.observer(NAME)
    threads = [threading.Thread(target=lambda: [told(observer) for _ in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = samples(metrics.render().decode())
    assert value(found, "vllm:generation_tokens_total", model_name=NAME) == 4 * 200 * 5
    assert value(found, "vllm:time_to_first_token_seconds_count", model_name=NAME) == 800


def test_ready_says_when_not_to_send_requests() -> None:
    with serving(settings=replace(ApiSettings(), api_keys=frozenset(("0" * 64,)))) as server:
        ready = httpx.get(f"{server.address}/ready")
        health = httpx.get(f"{server.address}/health")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready"})
    assert health.json()["status"] == "ok"


def test_the_scheduler_tells_of_real_answers() -> None:
    engine, metrics = FakeEngine(), Metrics()
    with serving(engine, metrics=metrics) as server, httpx.Client(base_url=server.address) as client:
        client.post("/v1/completions", json={"prompt": "abcdef", "max_tokens": 5})
        client.post("/v1/completions", json={"prompt": "abcdef", "max_tokens": 50, "stop": "d"})
        found = read(server)
    model = {"model_name": NAME}
    assert value(found, "vllm:request_success_total", finished_reason="length", **model) == 1
    # What ends at a stop string has all it wanted: nobody broke it off.
    assert value(found, "vllm:request_success_total", finished_reason="stop", **model) == 1
    assert value(found, "vllm:request_success_total", finished_reason="abort", **model) == 0
    assert value(found, "vllm:time_to_first_token_seconds_count", **model) == 2
    assert value(found, "vllm:request_queue_time_seconds_count", **model) == 2
    assert value(found, "vllm:e2e_request_latency_seconds_count", **model) == 2
    assert value(found, "vllm:num_requests_running", **model) == 0
    assert value(found, "vllm:num_requests_waiting", **model) == 0
    assert (value(found, "vllm:generation_tokens_total", **model) or 0) >= 5 + 4


def test_who_is_sent_away_and_who_leaves_are_counted() -> None:
    engine, metrics = FakeEngine(), Metrics()
    engine.open.clear()

    def figure(name: str, **labels: str) -> float | None:
        return value(samples(metrics.render().decode()), name, model_name=NAME, **labels)

    def until(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.005)

    body = {"prompt": "a", "max_tokens": 2, "stream": True}
    with (
        serving(engine, metrics=metrics, max_queue=1) as server,
        httpx.Client(base_url=server.address) as client,
    ):
        with client.stream("POST", "/v1/completions", json=body):
            until(lambda: bool(engine.started))
            with client.stream("POST", "/v1/completions", json=body):
                until(lambda: figure("vllm:num_requests_waiting") == 1)
                assert client.post("/v1/completions", json=body).status_code == 429
                assert figure("rrtf:queue_refusals_total", reason="queue_full") == 1
                assert figure("vllm:num_requests_running") == 1
        until(lambda: figure("rrtf:cancellations_total", reason="cancelled") == 2)
        engine.open.set()
