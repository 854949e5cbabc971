"""The served models as Ollama's clients know them: by names with tags, with details and a template."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from rrtf_serve.api.errors import ApiError, missing
from rrtf_serve.api.models import Models
from rrtf_serve.api.settings import Known
from rrtf_serve.api.shapes import Record
from rrtf_serve.models import catalog
from rrtf_serve.models.families import Fim

_LATEST = ":latest"
_QUANTIZATION = re.compile(r"-(q[2-8]_\w+|iq[1-4]_\w+|fp?16|bf16|fp?32)")
# What clients show as "forever": a model stays until the server's own settings or another model make it go.
_KEPT = timedelta(days=36_500)


def find_model(models: Models, name: object) -> Known:
    """By name, as `resolve` reads it. Raises ApiError 400 without a name, 404."""
    if name is None or name == "":
        raise missing(("model",), "Give 'model', one of GET /api/tags.")
    if not isinstance(name, str):
        return models.all[0]  # the fields' own check says what is wrong
    found = resolve(models.all, name)
    if found is not None:
        return found
    known = ", ".join(f"'{listed_name(each)}'" for each in models.all)
    raise ApiError(
        404, f"model '{name[:200]}' not found; this server has {known}", "model_not_found", path=("model",)
    )


def resolve(served: Sequence[Known], name: str) -> Known | None:
    """Which model Ollama's name means. In this order, upper and lower case alike:

    1. a served name or alias as it is;
    2. the same without a namespace (library/, hf.co/org/), without the tag `latest`, without a quantisation
       (-q4_K_M, -fp16), and with `-` for the `:` of the tag;
    3. the only model whose name goes on where that one ends: qwen2.5-coder:0.5b is
       qwen2.5-coder-0.5b-instruct, and never the other way round.
    """
    asked = name.lower()
    names = {each.name: [one.lower() for one in (each.name, *each.aliases)] for each in served}
    plain = _plain(asked)
    for each in served:
        if asked in names[each.name]:
            return each
    for each in served:
        if plain in map(_plain, names[each.name]):
            return each
    longer = [each for each in served if any(_plain(one).startswith(f"{plain}-") for one in names[each.name])]
    return longer[0] if plain and len(longer) == 1 else None


def _plain(name: str) -> str:
    return _QUANTIZATION.sub("", name.rpartition("/")[2].removesuffix(_LATEST).replace(":", "-"))


def listed_name(served: Known) -> str:
    """With a tag, as every name of Ollama's has one: editors tell the family by what stands before it."""
    for name in (served.name, *served.aliases):
        if ":" in name and "/" not in name:
            return name
    return served.name + _LATEST


def tags_record(served: Known) -> Record:
    name = listed_name(served)
    return {
        "name": name,
        "model": name,
        "modified_at": _time(served),
        "size": served.card.size_bytes,
        "digest": _digest(served),
        "details": details(served),
    }


def running_record(served: Known) -> Record:
    record = tags_record(served)
    del record["modified_at"]
    return record | {
        "expires_at": timestamp(datetime.now(UTC) + _KEPT),
        "size_vram": 0,
        "context_length": served.context,
    }


def show_record(served: Known) -> Record:
    card = served.card
    context = served.context
    architecture = card.architecture or "unknown"
    known = catalog.find(card.name)
    ends = [f"stop {json.dumps(end, ensure_ascii=False)}" for end in card.end_tokens]
    return {
        "license": card.licence,
        "modelfile": f"FROM {served.name}",
        "parameters": "\n".join([f"num_ctx {context}", *ends]),
        "template": _template(served),
        "details": details(served),
        "model_info": {
            "general.architecture": architecture,
            "general.basename": card.name,
            "general.parameter_count": known.parameters if known else 0,
            f"{architecture}.context_length": context,
        },
        "capabilities": ["completion", *(["insert"] if served.prompts.has_infill else [])],
        "modified_at": _time(served),
    }


def details(served: Known) -> Record:
    card = served.card
    known = catalog.find(card.name)
    return {
        "parent_model": "",
        "format": "rrtf",
        "family": card.architecture,
        "families": [card.architecture],
        "parameter_size": _parameter_size(known.parameters) if known else "",
        "quantization_level": card.quantization.upper(),
    }


def _parameter_size(parameters: int) -> str:
    return f"{parameters / 1e9:.1f}B" if parameters >= 10**9 else f"{parameters / 1e6:.2f}M"


def _template(served: Known) -> str:
    """In Go's template language. Editors look for `.Suffix` in it, and none runs it: the server does that."""
    fim = served.prompts.family.fim
    if fim is None or not served.prompts.has_infill:
        return "{{ .Prompt }}"
    return "{{- if .Suffix }}" + _infill_template(fim) + "{{ else }}{{ .Prompt }}{{ end }}"


def _infill_template(fim: Fim) -> str:
    if fim.layout == "SPM":
        return f"{fim.prefix}{fim.suffix}{{{{ .Suffix }}}}{fim.middle}{{{{ .Prompt }}}}"
    return f"{fim.prefix}{{{{ .Prompt }}}}{fim.suffix}{{{{ .Suffix }}}}{fim.middle}"


def _digest(served: Known) -> str:
    """64 hex digits that stay the same as long as the model does."""
    return hashlib.sha256(json.dumps(served.card.public(), sort_keys=True).encode()).hexdigest()


def _time(served: Known) -> str:
    return timestamp(datetime.fromtimestamp(served.created, UTC))


def timestamp(moment: datetime) -> str:
    """As RFC 3339 writes it, to the microsecond, in UTC."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
