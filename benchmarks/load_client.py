"""The client of a load: sends an `Ask` over kept connections, waits where told to, notes what came when.

What is wrong with an answer by itself is in `Reply.faults`: a shape that is not OpenAI's, another request's
id, an end that did not come. Whether its text is right is for load_check.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2

from benchmarks.load_asks import CHAT, Ask
from rrtf_serve.api.completions import INTERACTIVE

TIMEOUT_S = 600.0
LONGEST_WAIT_S = 30.0  # of one Retry-After; a server may be wrong about how long it takes
MOST_RETRIES = 200


@dataclass
class Reply:
    """One answer. Times in seconds of time.perf_counter, from the request that was let in."""

    ask: Ask
    texts: dict[int, str] = field(default_factory=dict)  # by choice
    finishes: dict[int, str] = field(default_factory=dict)
    id: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int = 0  # as the server counts, or the events with text where it doesn't say
    started: float = 0.0
    ended: float = 0.0
    arrivals: list[float] = field(default_factory=list)  # of events with text
    refused: int = 0  # times that 429 came before
    left: bool = False  # the client went away, as the ask says
    faults: list[str] = field(default_factory=list)

    @property
    def first_token_s(self) -> float | None:
        return self.arrivals[0] - self.started if self.arrivals else None


def client(address: str, key: str | None, connections: int) -> httpx2.AsyncClient:
    """Keeps its connections; takes no proxy and no settings from the environment."""
    return httpx2.AsyncClient(
        base_url=address,
        headers={"authorization": f"Bearer {key}"} if key else {},
        timeout=httpx2.Timeout(TIMEOUT_S),
        limits=httpx2.Limits(max_connections=connections, max_keepalive_connections=connections),
        trust_env=False,
    )


async def send(http: httpx2.AsyncClient, ask: Ask, name: str, *, strict: bool = True) -> Reply:
    """name: the request's own id. strict: what ours does is asked of it: the request's id comes back, the
    answer has an id of its own, a stream ends with [DONE] and tells its usage where that was asked for."""
    reply = Reply(ask)
    while True:
        reply.started = time.perf_counter()
        try:
            wait_s = await _try(http, ask, name, reply, strict=strict)
        except httpx2.HTTPError as error:
            reply.faults.append(f"{type(error).__name__}: {error}")
            wait_s = None
        if wait_s is None:
            break
        reply.refused += 1
        if reply.refused == MOST_RETRIES:
            reply.faults.append(f"refused {MOST_RETRIES} times")
            break
        await asyncio.sleep(wait_s)
    reply.ended = time.perf_counter()
    return reply


async def _try(http: httpx2.AsyncClient, ask: Ask, name: str, reply: Reply, *, strict: bool) -> float | None:
    """None: done. Else seconds to wait before the next try."""
    headers = {} if ask.interactive is None else {INTERACTIVE: str(ask.interactive).lower()}
    if strict:  # not to others: llama-cpp-python's server takes UUIDs alone
        headers["x-request-id"] = name
    async with http.stream("POST", ask.path, json=ask.body, headers=headers) as response:
        if response.status_code == 429:
            return _wait_s(response.headers.get("retry-after"), reply)
        if strict and response.headers.get("x-request-id") != name:
            reply.faults.append(f"x-request-id is {response.headers.get('x-request-id')!r}, not ours")
        if response.status_code != 200:
            text = (await response.aread()).decode(errors="replace")
            reply.faults.append(f"status {response.status_code}: {text[:300]}")
        elif ask.streamed:
            await _read_stream(response, reply, strict=strict)
        else:
            _read_whole(json.loads(await response.aread()), reply)
        if strict and response.status_code == 200 and not reply.id:
            reply.faults.append("the answer has no id")
    return None


def _wait_s(given: str | None, reply: Reply) -> float:
    if given is None or not given.isdecimal():
        reply.faults.append(f"429 with Retry-After {given!r}, not whole seconds")
        return 1.0
    return min(LONGEST_WAIT_S, float(given))


def _read_whole(record: Mapping[str, Any], reply: Reply) -> None:
    try:
        reply.id = record["id"]
        for choice in record["choices"]:
            text = choice["message"]["content"] if reply.ask.path == CHAT else choice["text"]
            reply.texts[choice["index"]] = text
            reply.finishes[choice["index"]] = choice["finish_reason"]
        reply.prompt_tokens = record["usage"]["prompt_tokens"]
        reply.completion_tokens = record["usage"]["completion_tokens"]
    except (KeyError, TypeError) as error:
        reply.faults.append(f"not the shape of an answer ({error!r}): {json.dumps(record)[:300]}")
    _check_ends(reply)


async def _read_stream(response: httpx2.Response, reply: Reply, *, strict: bool) -> None:
    done = False
    usage: Mapping[str, Any] | None = None
    async for data in events(response):
        if data == "[DONE]":
            done = True
            continue
        if done:
            reply.faults.append(f"an event after [DONE]: {data[:100]}")
        record = json.loads(data)
        usage = record.get("usage") or usage
        try:
            _read_event(record, reply)
        except (KeyError, TypeError) as error:
            reply.faults.append(f"not the shape of an event ({error!r}): {data[:300]}")
        if reply.ask.leave_after is not None and len(reply.arrivals) >= reply.ask.leave_after:
            reply.left = True
            break
    reply.completion_tokens = len(reply.arrivals)
    if usage is not None:
        reply.prompt_tokens, reply.completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]
    if not reply.left:
        if strict and not done:  # `transformers serve` sends none
            reply.faults.append("the stream ended without [DONE]")
        if strict and usage is None and reply.ask.body.get("stream_options", {}).get("include_usage"):
            reply.faults.append("the stream told no usage, which was asked for")
        _check_ends(reply)


def _read_event(record: Mapping[str, Any], reply: Reply) -> None:
    if reply.id and record["id"] != reply.id:
        reply.faults.append(f"the stream of {reply.id} holds an event of {record['id']}")
    reply.id = record["id"]
    for choice in record["choices"]:
        index = choice["index"]
        text = choice["delta"].get("content") if reply.ask.path == CHAT else choice["text"]
        if text:
            if index in reply.finishes:
                reply.faults.append(f"choice {index} goes on after its end")
            reply.arrivals.append(time.perf_counter())
            reply.texts[index] = reply.texts.get(index, "") + text
        reply.texts.setdefault(index, "")
        if choice.get("finish_reason") is not None:
            reply.finishes[index] = choice["finish_reason"]


def _check_ends(reply: Reply) -> None:
    expected = set(range(reply.ask.choices))
    if set(reply.texts) != expected:
        reply.faults.append(f"choices {sorted(reply.texts)} came, not {sorted(expected)}")
    if unfinished := [index for index in reply.texts if reply.finishes.get(index) not in ("stop", "length")]:
        reply.faults.append(f"choices {unfinished} have no finish reason")


async def events(response: httpx2.Response) -> AsyncIterator[str]:
    """The data of each server-sent event. Splits at newlines alone: U+2028 may stand in JSON."""
    rest = b""
    async for chunk in response.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip().decode()
