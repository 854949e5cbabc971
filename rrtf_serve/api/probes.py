"""What supervisors, load balancers and Prometheus ask: /health, /ready, /metrics, /version."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import FastAPI
from starlette.responses import JSONResponse, Response

from rrtf_serve import __version__
from rrtf_serve.api import openapi
from rrtf_serve.api.metrics import CONTENT_TYPE, Metrics
from rrtf_serve.api.models import Models
from rrtf_serve.api.shapes import Record


@dataclass
class Readiness:
    """Whether the server is stopping; whoever runs it says so."""

    draining: bool = False


def add_probes(app: FastAPI, models: Models, metrics: Metrics, readiness: Readiness) -> None:
    @app.get("/health")
    async def health() -> Record:
        """Live: the process answers. llama.cpp's clients read the same."""
        return {"status": "ok", "model": models.all[0].name}

    @app.get("/ready", responses={503: {"description": "No model is loaded, or the server is stopping"}})
    async def ready() -> Response:
        """Whether to send requests here."""
        if readiness.draining:
            return JSONResponse({"status": "draining"}, 503, {"retry-after": "5"})
        if models.beginning:
            return JSONResponse({"status": "loading"}, 503, {"retry-after": "5"})
        return JSONResponse({"status": "ready"})

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **openapi.errors(401)},
    )
    async def figures() -> Response:
        """For Prometheus."""
        return Response(metrics.render(), headers={"content-type": CONTENT_TYPE})

    @app.get("/version")
    async def version() -> Record:
        return {"version": __version__}
