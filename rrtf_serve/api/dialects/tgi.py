"""Text Generation Inference, as llm-ls and Continue ask it: POST /generate, /generate_stream, /; GET /info.

https://huggingface.github.io/text-generation-inference. `inputs` is one text to go on with. Where the client
put it together of fill-in-the-middle markers (llm-ls always does, with StarCoder's by default), prefix and
suffix are taken out of it and asked for as this model wants it, and the answer is an editor's.

What can't be honoured is named in the header `x-rrtf-dropped`; a `grammar` is refused. An event of a stream
may hold the text of several tokens; its `id` and `logprob` are those of the last one, and only known where
`details` are asked for. POST / leads to /models/{name}, which answers as TGI does there.
"""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import quote

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from rrtf_serve import __version__
from rrtf_serve.api import openapi
from rrtf_serve.api.answer import Plan
from rrtf_serve.api.dialects.endpoint import Body, add_endpoint
from rrtf_serve.api.dialects.tgi_fields import FIELDS, PARAMETERS, sampling
from rrtf_serve.api.dialects.tgi_shape import ERROR, TgiShape, error_body
from rrtf_serve.api.encoding import encode
from rrtf_serve.api.errors import SHAPES, invalid_value
from rrtf_serve.api.fields import MAX_STOPS, Values, parse
from rrtf_serve.api.generation import Job, room
from rrtf_serve.api.infill import editor_of, infill_job, is_marked, marked
from rrtf_serve.api.models import Models
from rrtf_serve.api.options import check_length, check_rows
from rrtf_serve.api.settings import ApiSettings, Served
from rrtf_serve.api.shapes import Record
from rrtf_serve.models.prompts import PromptError

DEFAULT_MAX_TOKENS = 100  # as TGI's


def add(app: FastAPI, models: Models, settings: ApiSettings) -> None:
    # "/generate" is the beginning of /generate_stream, too.
    SHAPES.update(dict.fromkeys(("/generate", "/info"), error_body))

    async def find(_request: Request, _body: Body) -> Served:
        return await models.get(None)

    for path, stream in (("/generate", False), ("/generate_stream", True)):

        async def plan(
            request: Request, served: Served, settings: ApiSettings, body: Body, stream: bool = stream
        ) -> Plan:
            return await plan_generate(request, served, settings, body, stream=stream)

        add_endpoint(
            app,
            path,
            find,
            plan,
            settings=settings,
            table=FIELDS,
            summary="Text after a text" + (", as events" if stream else ""),
            errors=ERROR,
        )

    @app.post("/", response_class=Response, responses={307: {"description": "Where the model answers"}})
    async def root() -> Response:
        """Leads to the model."""
        return RedirectResponse(f"/models/{quote(models.all[0].name, safe='')}")

    @app.get("/info", responses=openapi.errors(401, schema=ERROR))
    async def info() -> Record:
        """The model and the limits that hold for it."""
        return _info(await models.get(None), settings)


async def plan_generate(
    request: Request,
    served: Served,
    settings: ApiSettings,
    body: Body,
    *,
    stream: bool = False,
    listed: bool = False,
) -> Plan:
    """`listed`: the answer is a list of one. Raises ApiError."""
    engine = served.scheduler.capabilities
    asked = parse(FIELDS, body, engine).values
    parsed = parse(PARAMETERS, asked["parameters"] or {}, engine)
    values = parsed.values
    stream = stream or asked["stream"]
    copies: int = values["best_of"]
    check_rows(settings, 1, copies)
    if stream and copies > 1:
        raise invalid_value(("parameters", "best_of"), "it can't be streamed: ranking needs whole answers.")
    text: str = asked["inputs"]
    around = marked(text)
    detailed = values["details"] and engine.max_logprobs > 0
    drawn = sampling(values, engine, scored=detailed or copies > 1)
    fills = around is not None and served.prompts.has_infill and copies == 1
    if around is not None and fills:
        limit = values["max_new_tokens"] or DEFAULT_MAX_TOKENS
        kept = values["truncate"]
        infill = replace(around, max_tokens=limit, stops=values["stop"], prompt_tokens=kept)
        job = await infill_job(served, settings, infill, drawn, editor=editor_of(request, "tgi", infill))
    else:
        ids = await encode(_encode, served, text, values)
        limit = room(engine.max_context, len(ids), values["max_new_tokens"], DEFAULT_MAX_TOKENS, ("inputs",))
        ends = served.prompts.completion_end_ids
        typed = is_marked(served, text)
        job = Job((ids,), copies, (limit,), drawn, ends, values["stop"], interactive=typed)
    return Plan(
        job=job,
        shape=TgiShape(
            served.tokenizer,
            text if values["return_full_text"] else "",
            details=values["details"],
            seed=drawn.seed,
            stops=values["stop"],
            keeps_stop=not fills,
            listed=listed,
        ),
        stream=stream,
        keep=1,
        show_logprobs=detailed,
        dropped=parsed.dropped,
    )


def _encode(served: Served, text: str, values: Values) -> tuple[int, ...]:
    check_length(served, text, ("inputs",))
    try:
        ids = tuple(served.prompts.completion(text))
    except PromptError as error:
        raise invalid_value(("inputs",), str(error)) from error
    kept: int | None = values["truncate"]
    if kept is not None:
        ids = ids[-kept:]
    if not ids:
        raise invalid_value(("inputs",), "it is empty; the model needs at least one token to start from.")
    return ids


def _info(served: Served, settings: ApiSettings) -> Record:
    engine = served.scheduler.capabilities
    return {
        "model_id": served.name,
        "model_sha": None,
        "model_dtype": served.card.quantization,
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": engine.max_batch,
        "max_best_of": settings.max_rows,
        "max_stop_sequences": MAX_STOPS,
        "max_input_length": engine.max_context - 1,
        "max_input_tokens": engine.max_context - 1,
        "max_total_tokens": engine.max_context,
        "max_client_batch_size": 1,
        "validation_workers": 1,
        "router": "rrtf-serve",
        "version": __version__,
    }
