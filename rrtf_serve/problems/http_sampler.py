"""A server with OpenAI's API as a source of responses."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any
from urllib.parse import urlsplit

import requests

from rrtf_serve.problems.prompts import Prompt
from rrtf_serve.problems.samplers import Ask, Decoding, Response, SamplerError, TooLong

RETRIES = 6
TIMED_OUT = 2  # answers that don't come in time, until the server is given up
CONNECT_S = 20.0
LIST_S = 60.0  # for the list of models
LONGEST_PAUSE_S = 120.0  # that a server may ask for
_RETRIED = {408, 429, 500, 502, 503, 504}
_TOO_LONG = {400, 413, 422}
# How rrtf-serve, vLLM, llama.cpp and OpenAI say that a prompt leaves no room.
_OF_CONTEXT = re.compile(r"\bcontext|too (?:long|large)\b", re.IGNORECASE)

log = logging.getLogger(__name__)

_Asked = tuple[int, str, dict[str, Any]]  # position, path and body of a request


class HttpSampler:
    """A server with OpenAI's API, `workers` requests at a time.

    `url` is the server's address with or without /v1. Plain prompts go to /completions, chat to
    /chat/completions; infilling uses `suffix`. A begun answer has no field there, so it is refused.
    """

    def __init__(
        self,
        url: str,
        model: str | None,
        *,
        workers: int = 1,
        api_key: str | None = None,
        timeout_s: float = 600,
    ) -> None:
        """Asks the server for its models. Raises SamplerError where it does not answer or lacks `model`,
        ValueError on an address that is none, and on one or a key that must not or can't be sent."""
        host = urlsplit(url).netloc
        if "@" in host:  # every sample names the address
            raise ValueError("--url: holds a user's name or password; leave it out and give an API key")
        if not url.startswith(("http://", "https://")) or not host:
            raise ValueError(f"--url {url}: must be http:// or https:// and a host")
        self._base = url.rstrip("/").removesuffix("/v1") + "/v1"
        self._workers = workers
        self._timeout_s = timeout_s
        self._session = requests.Session()
        # What is measured is the whole answer to the whole prompt: ours would cut both as for an editor.
        self._session.headers["x-rrtf-interactive"] = "false"
        self._telling = threading.Lock()
        self._told_until = 0.0  # time.monotonic() until which a warning has announced the wait
        if api_key:
            key = api_key.strip()  # a file's last line end comes along easily
            if not key.isascii() or not key.isprintable():
                raise ValueError("the API key holds characters that can't be sent in a header")
            self._session.headers["Authorization"] = f"Bearer {key}"
        listed = self._call("GET", "models", None, threading.Event()).get("data") or []
        entries = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
        names = [entry.get("id") for entry in entries]
        if model is not None and names and model not in names:
            raise SamplerError(f"--model {model}: {self._base} serves {', '.join(map(str, names))}")
        if model is None and not names:
            raise SamplerError(f"{self._base}/models names no model; give --model")
        self.model = model or str(names[0])
        entry = next((each for each in entries if each.get("id") == self.model), {})
        card = _object(entry.get("card"))
        source = _object(card.get("source"))
        self._card = {"quantization": card.get("quantization"), "source": source} if card else {}
        # A foreign server says nothing of its weights: then the name and the address stand for them.
        self.digest = f"{source['sha256']}:{card.get('quantization')}" if source.get("sha256") else self._base

    def settings(self) -> dict[str, Any]:
        return {**self.provenance(), **self._card}

    def provenance(self) -> dict[str, Any]:
        # Requests that arrive together may share the server's batches.
        return {"engine": "http", "url": self._base, "batch": self._workers}

    def check(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            if prompt.prefill:
                raise ValueError(
                    f"--prompt {prompt.format}: an answer can't be begun through a URL; use --engine ct2"
                )

    def answer(
        self, asks: Sequence[Ask], decoding: Decoding, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Response]]:
        self.check([ask.prompt for ask in asks])
        wanted = [(at, *self._body(ask, decoding)) for at, ask in enumerate(asks) if at not in done]
        waiting, taking = iter(wanted), threading.Lock()
        stopping = threading.Event()
        ended: SimpleQueue[tuple[int, Future[Response]]] = SimpleQueue()

        def work() -> None:
            while not stopping.is_set():
                with taking:
                    asked = next(waiting, None)
                if asked is None:
                    return
                future = self._tried(asked, stopping)
                ended.put((asked[0], future))  # before the others stop, so that its reason is what is told
                if future.exception() is not None:
                    stopping.set()

        # Daemons, and not a pool: that would wait for a server that hangs before it let a stop be one.
        for _ in range(min(self._workers, len(wanted))):
            threading.Thread(target=work, name="asking", daemon=True).start()
        try:
            for _ in wanted:
                position, future = ended.get()
                try:
                    response = future.result()
                except TooLong as error:
                    error.at = position
                    raise
                yield position, response
        finally:
            stopping.set()

    def _body(self, ask: Ask, decoding: Decoding) -> tuple[str, dict[str, Any]]:
        prompt = ask.prompt
        body: dict[str, Any] = {
            "model": self.model,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "max_tokens": decoding.max_tokens,
        }
        if decoding.seed is not None:
            body["seed"] = decoding.seed + ask.index
        if prompt.message:
            return "chat/completions", {**body, "messages": [{"role": "user", "content": prompt.message}]}
        # Servers differ in how many stop strings they take (OpenAI: 4); `to_sample` cuts at all of them.
        body |= {"prompt": prompt.text, "stop": list(prompt.stop[:4]) or None}
        return "completions", body if prompt.suffix is None else {**body, "suffix": prompt.suffix}

    def _tried(self, asked: _Asked, stopping: threading.Event) -> Future[Response]:
        """Answered or failed; whoever waits for it hears of either."""
        future: Future[Response] = Future()
        try:
            future.set_result(self._one(asked[1], asked[2], stopping))
        except BaseException as error:
            future.set_exception(error)
        return future

    def _one(self, path: str, body: dict[str, Any], stopping: threading.Event) -> Response:
        answer = self._call("POST", path, body, stopping)
        try:
            choice = answer["choices"][0]
            text = choice["message"]["content"] if path.startswith("chat") else choice["text"]
            finish = choice.get("finish_reason") or "stop"
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise SamplerError(f"{self._base}/{path}: not an OpenAI answer ({error!r})") from error
        if not isinstance(text or "", str) or not isinstance(finish, str):
            raise SamplerError(f"{self._base}/{path}: not an OpenAI answer (its text is {text!r:.100})")
        tokens = _object(answer.get("usage")).get("completion_tokens")
        return Response(text or "", finish, tokens if type(tokens) is int else None)

    def _call(
        self, method: str, path: str, body: dict[str, Any] | None, stopping: threading.Event
    ) -> dict[str, Any]:
        """Repeats what may pass: no connection, overload, a restarting server; until `stopping`."""
        failure = ""
        asked_for = 0.0  # seconds
        timeouts = 0
        for attempt in range(RETRIES):
            if timeouts >= TIMED_OUT:
                break
            if attempt:
                self._pause(failure, max(min(2 ** (attempt - 1), 20), asked_for), stopping)
            if stopping.is_set():
                break
            try:
                limit = LIST_S if body is None else self._timeout_s
                reply = self._session.request(
                    method, f"{self._base}/{path}", json=body, timeout=(CONNECT_S, limit)
                )
            except requests.exceptions.InvalidURL as error:
                raise ValueError(f"--url {self._base}: {error}") from error
            except requests.RequestException as error:
                failure, asked_for = self._no_answer(path, error, limit), 0.0
                timeouts += isinstance(error, requests.ReadTimeout)
                continue
            if reply.status_code == 200:
                try:
                    found = reply.json()
                except (ValueError, RecursionError) as error:
                    raise SamplerError(f"{self._base}/{path}: answered with no JSON ({error})") from error
                if not isinstance(found, dict):
                    raise SamplerError(f"{self._base}/{path}: not an OpenAI answer ({found!r:.100})")
                return found
            failure = f"{self._base}/{path}: {reply.status_code} {reply.text[:500]}"
            if reply.status_code in _TOO_LONG and _OF_CONTEXT.search(reply.text):
                raise TooLong(failure)
            if reply.status_code not in _RETRIED:
                break
            asked_for = _retry_after(reply)
        raise SamplerError(failure or f"{self._base}/{path}: stopped")

    def _no_answer(self, path: str, error: requests.RequestException, limit: float) -> str:
        if isinstance(error, requests.exceptions.SSLError | requests.exceptions.ProxyError):
            return f"{self._base}/{path}: {error}"
        if isinstance(error, requests.ReadTimeout):
            return f"{self._base}/{path}: no answer within {limit:g} s"
        if isinstance(error, requests.ConnectionError):
            return f"no server answers at {self._base}: is rrtf-serve running there?"
        return f"{self._base}/{path}: {error}"

    def _pause(self, failure: str, seconds: float, stopping: threading.Event) -> None:
        """Wait before the next try; of all workers that wait, one says so."""
        with self._telling:
            now = time.monotonic()
            if now >= self._told_until:
                log.warning("%s; trying again in %g s", failure, seconds)
                self._told_until = now + seconds
        rest(stopping, seconds)


def rest(stopping: threading.Event, seconds: float) -> None:
    """Wait, unless all is stopped."""
    stopping.wait(seconds)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _retry_after(reply: requests.Response) -> float:
    """Seconds that an overloaded server asks for (RFC 9110, section 10.2.3; its other form, a date, counts as
    nothing)."""
    text = reply.headers.get("Retry-After", "")
    return min(float(text), LONGEST_PAUSE_S) if text.isascii() and text.isdigit() else 0.0
