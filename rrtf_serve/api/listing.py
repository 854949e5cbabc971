"""GET /v1/models: the models that may be named, loaded or not, with their cards."""

from __future__ import annotations

from rrtf_serve.api.models import Models
from rrtf_serve.api.settings import Known
from rrtf_serve.api.shapes import Record


def model_record(served: Known) -> Record:
    """OpenAI's model object; `max_model_len` (tokens) is where vLLM's clients look for the context."""
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "rrtf-serve",
        "max_model_len": served.context,
        "aliases": list(served.aliases),
        "infill": served.prompts.has_infill,
        "card": served.card.public(),
    }


def list_models(models: Models) -> Record:
    return {"object": "list", "data": [model_record(served) for served in models.all]}


def find_model(models: Models, name: str) -> Record:
    """By name or alias. Raises ApiError 404."""
    return model_record(models.find(name))
