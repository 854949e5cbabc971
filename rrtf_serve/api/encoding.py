"""Where texts become tokens: beside the event loop, a prompt at a time, and editors' apart from all others.

A long text takes tenths of a second, and all encoding of a model shares its tokenizer's lock. So whoever has
many prompts queues anew for each, and an editor waits for one prompt of somebody else at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

from rrtf_serve.api.generation import refusals
from rrtf_serve.api.settings import Served

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

Encoded = tuple[tuple[int, ...], int]  # a prompt's token ids, and how many may follow

# The event loop's own threads are for what waits (models that load, files); encoding would take them all.
_OTHERS = ThreadPoolExecutor(2, "encode")
_EDITORS = ThreadPoolExecutor(2, "encode-editor")


async def encode(
    function: Callable[Parameters, Result], *args: Parameters.args, **fields: Parameters.kwargs
) -> Result:
    """The function's result, in its turn among all that is encoded."""
    return await _run(_OTHERS, partial(function, *args, **fields))


async def encode_for_editor(
    function: Callable[Parameters, Result], *args: Parameters.args, **fields: Parameters.kwargs
) -> Result:
    """As `encode`, where somebody types and waits."""
    return await _run(_EDITORS, partial(function, *args, **fields))


async def encode_each(served: Served, copies: int, prompts: Iterable[Callable[[], Encoded]]) -> list[Encoded]:
    """One after another, each in its turn. Raises ApiError 400 as soon as the request has become larger than
    the server accepts, `copies` rows a prompt; the rest is then not encoded."""
    found: list[Encoded] = []
    tokens = 0
    for prompt in prompts:
        ids, following = await encode(prompt)
        found.append((ids, following))
        tokens += copies * (len(ids) + following)
        with refusals(("prompt",)):
            served.scheduler.check_tokens(tokens)
    return found


async def _run(threads: Executor, function: Callable[[], Result]) -> Result:
    return await asyncio.get_running_loop().run_in_executor(threads, copy_context().run, function)
