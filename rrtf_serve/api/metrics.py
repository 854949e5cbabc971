"""Figures for Prometheus, in a registry of their own: what schedulers tell, and what HTTP requests became.

Names are vLLM's where it has one (https://docs.vllm.ai/en/latest/usage/metrics.html), so that its dashboards
work; ours begin with rrtf:. Labels take few values: models, route templates, methods, statuses, error codes.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from rrtf_serve import __version__
from rrtf_serve.api.visit import Visit
from rrtf_serve.engine.observer import Ending, Observer, Refusal

# Seconds: 5 ms to 60 s.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
# vLLM's words for how a request ended.
_FINISHED: dict[Ending, str] = {
    "stop": "stop", "length": "length", "error": "error",
    "cancelled": "abort", "replaced": "abort", "deadline": "abort",
}  # fmt: skip
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


class Metrics:
    """by_key: also count by the names of API keys, which makes as many series as there are keys."""

    def __init__(self, *, by_key: bool = False) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        model = ("model_name",)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, model, registry=registry)

        def seconds(name: str, text: str) -> Histogram:
            return Histogram(name, text, model, buckets=BUCKETS, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        self.running = gauge("vllm:num_requests_running", "Completions being decoded, prompts being scored.")
        self.waiting = gauge("vllm:num_requests_waiting", "Requests in the queue.")
        self.first_token = seconds("vllm:time_to_first_token_seconds", "From a request to its first token.")
        self.next_token = seconds("vllm:inter_token_latency_seconds", "From one token to the next.")
        self.latency = seconds("vllm:e2e_request_latency_seconds", "From a request to a completion's end.")
        self.queue = seconds("vllm:request_queue_time_seconds", "From a request to its batch.")
        self.prompt_tokens = counter("vllm:prompt_tokens", "Tokens read.", *model)
        self.generation_tokens = counter("vllm:generation_tokens", "Tokens made.", *model)
        self.success = counter("vllm:request_success", "Completions ended.", *model, "finished_reason")
        self.cancellations = counter("rrtf:cancellations", "Completions ended early.", *model, "reason")
        self.queue_refusals = counter("rrtf:queue_refusals", "Requests not queued.", *model, "reason")
        self.batch = Histogram(
            "rrtf:batch_size_rows", "Rows decoded in one step.", model, buckets=ROWS, registry=registry
        )
        self.http = counter("rrtf:http_requests", "HTTP requests.", "route", "method", "status")
        self.http_seconds = Histogram(
            "rrtf:http_request_duration_seconds", "HTTP requests, to the end of the answer.", ("route",),
            buckets=BUCKETS, registry=registry,
        )  # fmt: skip
        self.editor_events = counter("rrtf:editor_events", "What became of editors' completions.", "type")
        self.errors = counter("rrtf:errors", "Requests answered with an error, by its code.", "code")
        self.disconnects = counter("rrtf:disconnects", "Clients that left before the end.", "route")
        self.lost_lines = counter("rrtf:log_lines_lost", "Lines that could not be written.")
        build = Gauge("rrtf:build_info", "This server's version.", ("version",), registry=registry)
        build.labels(__version__).set(1)
        self.key_requests: Counter | None = None
        self.key_tokens: Counter | None = None
        if by_key:
            self.key_requests = counter("rrtf:key_requests", "HTTP requests by API key.", "key")
            self.key_tokens = counter("rrtf:key_tokens", "Tokens by API key.", "key", "kind")

    def observer(self, model: str) -> Observer:
        """For the scheduler that serves this model."""
        return _ModelFigures(self, model)

    def count(self, visit: Visit) -> None:
        """An HTTP request has ended."""
        method = visit.method if visit.method in _METHODS else "other"
        status = "none" if visit.status is None else str(visit.status)
        self.http.labels(visit.route, method, status).inc()
        self.http_seconds.labels(visit.route).observe(visit.ended - visit.started)
        if visit.error is not None:
            self.errors.labels(visit.error).inc()
        if visit.gone:
            self.disconnects.labels(visit.route).inc()
        if visit.key is not None and self.key_requests is not None and self.key_tokens is not None:
            self.key_requests.labels(visit.key).inc()
            self.key_tokens.labels(visit.key, "prompt").inc(visit.prompt_tokens)
            self.key_tokens.labels(visit.key, "completion").inc(visit.completion_tokens)

    def render(self) -> bytes:
        """All of them in Prometheus' text format, of the type CONTENT_TYPE."""
        return generate_latest(self.registry)


class _ModelFigures(Observer):
    """One model's; called from the scheduler's threads."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        # Looked up once: some of these are called for every token.
        self._running = metrics.running.labels(model)
        self._waiting = metrics.waiting.labels(model)
        self._first_token = metrics.first_token.labels(model)
        self._next_token = metrics.next_token.labels(model)
        self._latency = metrics.latency.labels(model)
        self._queue = metrics.queue.labels(model)
        self._prompt = metrics.prompt_tokens.labels(model)
        self._generation = metrics.generation_tokens.labels(model)
        self._batch = metrics.batch.labels(model)
        self._success = {how: metrics.success.labels(model, reason) for how, reason in _FINISHED.items()}
        cut: tuple[Ending, ...] = ("cancelled", "replaced", "deadline")
        self._cancellations = {how: metrics.cancellations.labels(model, how) for how in cut}
        whys: tuple[Refusal, ...] = ("queue_full", "too_many_tokens")
        self._refusals = {why: metrics.queue_refusals.labels(model, why) for why in whys}

    def queued(self, jobs: int) -> None:
        self._waiting.set(jobs)

    def running(self, rows: int) -> None:
        self._running.set(rows)

    def started(self, queue_seconds: float) -> None:
        self._queue.observe(queue_seconds)

    def first_token(self, seconds: float) -> None:
        self._first_token.observe(seconds)

    def next_token(self, seconds: float) -> None:
        self._next_token.observe(seconds)

    def tokens(self, prompt: int, completion: int) -> None:
        self._prompt.inc(prompt)
        self._generation.inc(completion)

    def batch(self, rows: int) -> None:
        self._batch.observe(rows)

    def ended(self, how: Ending, seconds: float) -> None:
        self._success[how].inc()
        self._latency.observe(seconds)
        if how in self._cancellations:
            self._cancellations[how].inc()

    def refused(self, why: Refusal) -> None:
        self._refusals[why].inc()
