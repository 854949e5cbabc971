"""A text or a conversation to go on with, for dialects whose limits give way: tokens that don't fit are not
asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from starlette.requests import Request as HttpRequest

from rrtf_serve.api.encoding import Encoded, encode, encode_each
from rrtf_serve.api.errors import FieldPath, invalid_value
from rrtf_serve.api.generation import Job, room
from rrtf_serve.api.infill import DEFAULT_MAX_TOKENS, editor_of, infill_job, marked
from rrtf_serve.api.options import check_length, check_rows
from rrtf_serve.api.settings import ApiSettings, Served
from rrtf_serve.engine.protocol import Sampling

Prompt = str | tuple[int, ...]


async def continuation_job(
    request: HttpRequest,
    served: Served,
    settings: ApiSettings,
    prompts: tuple[Prompt, ...],
    sampling: Sampling,
    *,
    typed: Sampling,
    dialect: str,
    asked: int | None,
    stops: tuple[str, ...],
    copies: int = 1,
) -> Job:
    """`typed`: how an editor's request is sampled. `asked`: as tokens_left. A prompt that the client made of
    fill-in-the-middle markers by itself is an editor's, and is asked for as any other middle. Raises
    ApiError 400."""
    check_rows(settings, len(prompts), copies)
    [first, *others] = prompts
    around = marked(first) if isinstance(first, str) and not others else None
    if around is not None and served.prompts.has_infill:
        infill = replace(around, max_tokens=middle_tokens(served, asked), stops=stops)
        editor = editor_of(request, dialect, infill)
        return await infill_job(served, settings, infill, typed, copies=copies, editor=editor)
    encoded = await encode_each(
        served,
        copies,
        [
            partial(_encode, served, settings, prompt, asked, ("prompt", index) if others else ("prompt",))
            for index, prompt in enumerate(prompts)
        ],
    )
    interactive = all(_fills_middle(served, ids) for ids, _ in encoded)
    return Job(
        tuple(ids for ids, _ in encoded),
        copies,
        tuple(following for _, following in encoded),
        typed if interactive else sampling,
        served.prompts.completion_end_ids,
        stops,
        interactive=interactive,
    )


async def conversation_job(
    served: Served,
    settings: ApiSettings,
    messages: Sequence[Mapping[str, str]],
    sampling: Sampling,
    *,
    asked: int | None,
    stops: tuple[str, ...],
    path: FieldPath,
) -> Job:
    """The assistant's next message. `path`: of the field that the messages come from. Raises ApiError 400."""
    ids = await encode(_encode_messages, served, messages, path)
    return Job(
        (ids,),
        1,
        (tokens_left(served, settings, len(ids), asked, path),),
        sampling,
        served.prompts.chat_end_ids,
        stops + served.prompts.chat_stops,
    )


def tokens_left(
    served: Served, settings: ApiSettings, prompt: int, asked: int | None, path: FieldPath = ("prompt",)
) -> int:
    """How many tokens may follow `prompt` tokens. asked: None: as many as a chat may have; less than 0: what
    the context holds. Raises ApiError context_length_exceeded where it holds none."""
    context = served.scheduler.capabilities.max_context
    wanted = settings.chat_max_tokens if asked is None else context if asked < 0 else asked
    return room(context, prompt, None, wanted, path)


def middle_tokens(served: Served, asked: int | None) -> int:
    """How many tokens a middle may have. asked: None: what editors want; less than 0: all that fits."""
    if asked is None:
        return DEFAULT_MAX_TOKENS
    return served.scheduler.capabilities.max_context if asked < 0 else asked


def _fills_middle(served: Served, ids: tuple[int, ...]) -> bool:
    fim = served.prompts.family.fim
    if fim is None or not served.prompts.has_infill:
        return False
    return served.tokenizer.token_id(fim.prefix) in ids and served.tokenizer.token_id(fim.middle) in ids


def _encode(
    served: Served, settings: ApiSettings, prompt: Prompt, asked: int | None, path: FieldPath
) -> Encoded:
    if isinstance(prompt, str):
        check_length(served, prompt, path)
        ids = tuple(served.prompts.completion(prompt))
    else:
        ids = prompt
        if max(ids) >= served.tokenizer.size:
            raise invalid_value(path, f"its ids must be below {served.tokenizer.size}.")
    if not ids:
        raise invalid_value(path, "it is empty; the model needs at least one token to start from.")
    return ids, tokens_left(served, settings, len(ids), asked)


def _encode_messages(
    served: Served, messages: Sequence[Mapping[str, str]], path: FieldPath
) -> tuple[int, ...]:
    check_length(served, "".join(message["content"] for message in messages), path)
    try:
        return tuple(served.prompts.chat(messages))
    except ValueError as error:  # PromptError, or what the model's own template says
        raise invalid_value(path, str(error)) from error
