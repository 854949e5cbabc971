"""Schemathesis over /openapi.json: whatever a document of ours allows, no route answers with 5xx.

`pip install schemathesis`, then `pytest -m slow tests/test_benchmarks_load_schemathesis.py`.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from fake_engine import CAPABILITIES, FakeEngine
from live import serving

from rrtf_serve.api.metrics import Metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
EXAMPLES = 100  # of each route
# Refusals by design, in the shape of their dialect: what this server can't do at all.
NOT_IMPLEMENTED = 501


def test_no_route_answers_with_5xx() -> None:
    schemathesis = pytest.importorskip("schemathesis")
    hypothesis = pytest.importorskip("hypothesis")
    requests = pytest.importorskip("requests")
    engine = FakeEngine(capabilities=replace(CAPABILITIES, max_context=128))
    # Short: a document may ask for 128 choices as long as the context.
    with serving(engine, metrics=Metrics()) as server, requests.Session() as session:
        schema = schemathesis.openapi.from_url(f"{server.address}/openapi.json")
        routes = [result.ok() for result in schema.get_all_operations()]
        assert {"/v1/completions", "/v1/chat/completions"} <= {route.path for route in routes}
        for route in routes:

            @hypothesis.settings(
                max_examples=EXAMPLES, deadline=None, database=None,
                suppress_health_check=list(hypothesis.HealthCheck),
            )  # fmt: skip
            @hypothesis.seed(0)
            @hypothesis.given(case=route.as_strategy())
            def no_5xx(case: object) -> None:
                answer = case.call(session=session, timeout=60)  # type: ignore[attr-defined]  # a schemathesis Case
                problem = f"{case!r}: {answer.status_code} {answer.text[:300]}"
                assert answer.status_code < 500 or answer.status_code == NOT_IMPLEMENTED, problem

            no_5xx()
        assert server.scheduler.rows_running == server.scheduler.queue_depth == 0
