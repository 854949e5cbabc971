"""POST /v1/completions: text after a prompt, or between a prompt and a suffix.

Most editors know no other route, and few can send a header: a prompt with a `suffix`, or one that its client
made of fill-in-the-middle markers, is taken for an editor's. The header `x-rrtf-interactive` says otherwise.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from functools import partial

from starlette.requests import Request as HttpRequest

from rrtf_serve.api.answer import Echo, Plan
from rrtf_serve.api.encoding import Encoded, encode_each
from rrtf_serve.api.errors import ApiError, FieldPath, invalid_value, unsupported
from rrtf_serve.api.fields import COMPLETION_FIELDS, Parsed, Values, parse
from rrtf_serve.api.generation import Job, Scored, refusals, reserve, room
from rrtf_serve.api.infill import Infill, editor_of, holds_markers, infill_job, is_marked, marked, no_infill
from rrtf_serve.api.options import check_length, check_rows, include_usage, sampling
from rrtf_serve.api.settings import ApiSettings, Served
from rrtf_serve.api.shapes import CompletionShape
from rrtf_serve.api.visit import current
from rrtf_serve.engine.scheduler import QueueFull
from rrtf_serve.models.prompts import PromptError
from rrtf_serve.models.tokens import Detokenizer, Tokenizer

Prompt = str | tuple[int, ...]

DEFAULT_MAX_TOKENS = 16  # as OpenAI documents
SHORT_TOKENS = 64  # who asks for no more doesn't wait for those who ask for more
# "true": somebody types and waits. "false": nobody does. Else the request itself tells.
INTERACTIVE = "x-rrtf-interactive"


async def plan_completion(
    request: HttpRequest, served: Served, settings: ApiSettings, body: dict[str, object], *, dialect: str
) -> Plan:
    """An editor's request is answered as infill_job does, and greedily where it names no temperature: Zed and
    others have no setting for one. Raises ApiError."""
    engine = served.scheduler.capabilities
    parsed = parse(COMPLETION_FIELDS, body, engine)
    values = parsed.values
    given: tuple[Prompt, ...] = values["prompt"]
    copies = values["best_of"] or values["n"]
    check_rows(settings, len(given), copies)
    waits = _waits(request)
    typed = waits is not False and _as_editors_ask(given, values)
    typed = typed and (bool(waits or values["suffix"]) or is_marked(served, _text(given)))
    if typed and copies == 1 and body.get("temperature") is None:
        parsed = parse(COMPLETION_FIELDS, {**body, "temperature": 0}, engine)
        values = parsed.values
    between = _between(served, _text(given), values) if typed else None
    if between is not None:
        editor = editor_of(request, dialect, between)
        drawn = sampling(values, None)
        job = await infill_job(served, settings, between, drawn, copies=copies, editor=editor)
        return _plan(served, parsed, job)
    infill = bool(values["suffix"])
    several = len(given) > 1
    encoded = await encode_each(
        served,
        copies,
        [
            partial(_encode, served, prompt, values, ("prompt", index) if several else ("prompt",))
            for index, prompt in enumerate(given)
        ],
    )
    asked: int | None = values["logprobs"]
    ranked = copies > values["n"]
    job = Job(
        tuple(ids for ids, _ in encoded),
        copies,
        tuple(following for _, following in encoded),
        sampling(values, asked if asked is not None or not ranked else 0),
        served.prompts.infill_end_ids if infill else served.prompts.completion_end_ids,
        values["stop"] + (served.prompts.middle_stops(_text(given), values["suffix"]) if infill else ()),
        interactive=typed or (waits is not False and _max_tokens(values) <= SHORT_TOKENS),
        editor=editor_of(request, dialect, Infill(_text(given), "", user=values["user"])) if typed else None,
    )
    echoes: tuple[Echo, ...] = ()
    if values["echo"]:
        echoes = await _echoes(served, given, job, asked, infill=infill)
    return _plan(served, parsed, job, echoes)


def _plan(served: Served, parsed: Parsed, job: Job, echoes: tuple[Echo, ...] = ()) -> Plan:
    values = parsed.values
    return Plan(
        job=job,
        shape=CompletionShape(
            served.tokenizer,
            served.name,
            int(time.time()),
            logprobs=values["logprobs"] is not None,
            include_usage=include_usage(values),
        ),
        stream=values["stream"],
        include_usage=include_usage(values),
        keep=values["n"],
        echoes=echoes,
        show_logprobs=values["logprobs"] is not None,
        dropped=parsed.dropped,
    )


def _waits(request: HttpRequest) -> bool | None:
    said = request.headers.get(INTERACTIVE, "").strip().lower()
    return True if said in ("true", "1") else False if said in ("false", "0") else None


def _max_tokens(values: Values) -> int:
    asked: int | None = values["max_tokens"]
    return DEFAULT_MAX_TOKENS if asked is None else asked


def _as_editors_ask(given: tuple[Prompt, ...], values: Values) -> bool:
    """False where more is asked for than an editor does: then it is answered as to anybody."""
    ranked = (values["best_of"] or values["n"]) > values["n"]
    one = len(given) == 1 and isinstance(given[0], str)
    return one and not values["echo"] and not ranked and values["logprobs"] is None


def _between(served: Served, prompt: str, values: Values) -> Infill | None:
    """None where the client has put the prompt together of the model's markers in a way of its own: cut
    anywhere, or read as text, it would not say what was meant."""
    suffix = values["suffix"] or ""
    found = None if suffix else marked(prompt)
    if found is None and not suffix and holds_markers(served, prompt):
        return None
    return replace(
        found or Infill(prompt, suffix),
        user=values["user"],
        max_tokens=_max_tokens(values),
        stops=values["stop"],
    )


def _encode(served: Served, prompt: Prompt, values: Values, path: FieldPath) -> Encoded:
    asked: int | None = values["max_tokens"]
    context = served.scheduler.capabilities.max_context
    if isinstance(prompt, tuple):
        ids = _own_ids(served, prompt, values, path)
    elif values["suffix"]:
        ids = _infill(served, prompt, values["suffix"], context, asked)
    else:
        check_length(served, prompt, ("prompt",))
        ids = tuple(served.prompts.completion(prompt))
    if not ids:
        raise invalid_value(path, "it is empty; the model needs at least one token to start from.")
    return ids, room(context, len(ids), asked, DEFAULT_MAX_TOKENS, ("prompt",))


def _text(given: tuple[Prompt, ...]) -> str:
    return "\n".join(prompt for prompt in given if isinstance(prompt, str))


def _own_ids(served: Served, prompt: tuple[int, ...], values: Values, path: FieldPath) -> tuple[int, ...]:
    if values["suffix"]:
        raise unsupported(("suffix",), "It goes with a text prompt, not with token ids.")
    size = served.tokenizer.size
    if max(prompt) >= size:
        raise invalid_value(path, f"token id {str(max(prompt))[:20]} is outside the vocabulary of {size}.")
    return prompt


def _infill(served: Served, prefix: str, suffix: str, context: int, asked: int | None) -> tuple[int, ...]:
    """An editor sends what it has: what doesn't fit is cut at the ends far from the cursor. So that an answer
    of any length can be asked for, it takes no more than half of the context away from the prompt."""
    if not served.prompts.has_infill:
        raise no_infill(served)
    completion = min(DEFAULT_MAX_TOKENS if asked is None else asked, context // 2)
    try:
        return tuple(served.prompts.infill_limited(prefix, suffix, context - completion))
    except PromptError as error:
        raise invalid_value(("suffix",), str(error)) from error


async def _echoes(
    served: Served,
    given: tuple[Prompt, ...],
    job: Job,
    top: int | None,
    *,
    infill: bool,
) -> tuple[Echo, ...]:
    tokenizer = served.tokenizer
    texts = [
        prompt if isinstance(prompt, str) else tokenizer.decode(prompt, skip_specials=False)
        for prompt in given
    ]
    if top is None:
        return tuple(map(Echo, texts))
    if infill:
        raise unsupported(
            ("logprobs",), "With echo and suffix the prompt's tokens aren't in the text's order."
        )
    longest = served.scheduler.capabilities.max_scored_tokens
    if max(map(len, job.prompts)) > longest:
        raise ApiError(
            400,
            f"echo with logprobs takes prompts of at most {longest} tokens on this server, but got "
            f"{max(map(len, job.prompts))}.",
            "invalid_value",
            path=("prompt",),
        )
    reserve(served, job)
    return tuple(
        [
            Echo(text, await _score(served, text, prompt, top))
            for text, prompt in zip(texts, job.prompts, strict=True)
        ]
    )


async def _score(served: Served, text: str, prompt: tuple[int, ...], top: int) -> tuple[Scored, ...]:
    visit = current()
    visit.scored(served.name, len(prompt), text)
    with refusals(("prompt",)):
        try:
            records = await served.scheduler.score(prompt, top, visit.ticket())
        except QueueFull:
            visit.prompt_tokens -= len(prompt)  # it was not read
            raise
    offsets = await asyncio.to_thread(_offsets, served.tokenizer, text, prompt)
    first = Scored(prompt[0], offsets[0], None)
    rest = [
        Scored(record.token, offset, record.logprob, record.top)
        for record, offset in zip(records, offsets[1:], strict=True)
    ]
    return (first, *rest)


def _offsets(tokenizer: Tokenizer, text: str, prompt: tuple[int, ...]) -> list[int]:
    """Where each token's text begins in `text`. A token that was put before the text (BOS) begins at 0."""
    detokenizer = Detokenizer(tokenizer, skip_specials=False)
    starts, length = [], 0
    for token in prompt:
        starts.append(length)
        length += len(detokenizer.push(token))
    added = length + len(detokenizer.flush()) - len(text)
    return [min(len(text), max(0, start - added)) for start in starts]
