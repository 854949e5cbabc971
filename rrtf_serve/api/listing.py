"""GET /v1/models: the one model that is served, with its card."""

from __future__ import annotations

from rrtf_serve.api.options import check_model
from rrtf_serve.api.settings import Served
from rrtf_serve.api.shapes import Record


def model_record(served: Served) -> Record:
    """OpenAI's model object; `max_model_len` (tokens) is where vLLM's clients look for the context."""
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "rrtf-serve",
        "max_model_len": served.scheduler.capabilities.max_context,
        "aliases": list(served.aliases),
        "infill": served.prompts.has_infill,
        "card": served.card.public(),
    }


def list_models(served: Served) -> Record:
    return {"object": "list", "data": [model_record(served)]}


def find_model(served: Served, name: str) -> Record:
    """By name or alias. Raises ApiError 404."""
    check_model(served, name)
    return model_record(served)
