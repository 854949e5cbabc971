"""POST /v1/chat/completions: the assistant's next message."""

from __future__ import annotations

import time

from rrtf_serve.api.answer import Plan
from rrtf_serve.api.encoding import encode
from rrtf_serve.api.errors import invalid_value
from rrtf_serve.api.fields import CHAT_FIELDS, parse
from rrtf_serve.api.generation import Job, room
from rrtf_serve.api.messages import read_messages
from rrtf_serve.api.options import check_length, check_rows, include_usage, sampling
from rrtf_serve.api.settings import ApiSettings, Served
from rrtf_serve.api.shapes import ChatShape


async def plan_chat(served: Served, settings: ApiSettings, body: dict[str, object]) -> Plan:
    """Raises ApiError."""
    engine = served.scheduler.capabilities
    parsed = parse(CHAT_FIELDS, body, engine)
    values = parsed.values
    check_rows(settings, 1, values["n"])
    messages = read_messages(values["messages"])
    try:
        ids = await encode(_encode, served, messages)
    except ValueError as error:  # PromptError, or what the model's own template says
        raise invalid_value(("messages",), str(error)) from error
    asked: int | None = values["max_completion_tokens"] or values["max_tokens"]
    if asked is None and values["n_predict"] is not None and values["n_predict"] >= 0:
        asked = values["n_predict"]  # 0: llama.vim has the prompt read ahead while its user types
    top = (values["top_logprobs"] or 0) if values["logprobs"] else None
    return Plan(
        job=Job(
            (ids,),
            values["n"],
            (room(engine.max_context, len(ids), asked, settings.chat_max_tokens, ("messages",)),),
            sampling(values, top),
            served.prompts.chat_end_ids,
            values["stop"] + served.prompts.chat_stops,
        ),
        shape=ChatShape(
            served.tokenizer,
            served.name,
            int(time.time()),
            logprobs=top is not None,
            include_usage=include_usage(values),
        ),
        stream=values["stream"],
        include_usage=include_usage(values),
        keep=values["n"],
        show_logprobs=top is not None,
        dropped=parsed.dropped,
    )


def _encode(served: Served, messages: list[dict[str, str]]) -> tuple[int, ...]:
    check_length(served, "".join(message["content"] for message in messages), ("messages",))
    return tuple(served.prompts.chat(messages))
