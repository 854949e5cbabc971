"""Sources of responses: an engine in this process, or any server that speaks OpenAI's API.

Both answer a list of asks in whatever order the answers finish, so that each can be kept at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

import requests

from rrtf_serve.engine.protocol import Engine, EngineError, Request, Sampling
from rrtf_serve.engine.protocol import FinishReason as EngineFinish
from rrtf_serve.models.prompts import Prompts
from rrtf_serve.models.tokens import TextStream, Tokenizer
from rrtf_serve.problems.prompts import Prompt

RETRIES = 6
_RETRIED = {408, 429, 500, 502, 503, 504}
# What of an engine's own description may move a greedy answer; the rest of it follows from these.
_MOVING = ("engine", "device", "compute_type", "dtype", "kv_dtype", "kernels", "threads")
# Requests that wait in an engine for each row that it decodes at once.
_WAITING = 64

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decoding:
    """How responses are drawn. temperature 0 is greedy. Raises ValueError naming the flag."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 512
    seed: int | None = (
        None  # of sample 0; sample i of a problem gets seed + i, where the source honours seeds
    )

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < 100:
            raise ValueError(f"--temperature must be from 0 to 100, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"--top-p must be above 0 and at most 1, not {self.top_p}")
        if self.max_tokens < 1:
            raise ValueError(f"--max-tokens must be at least 1, not {self.max_tokens}")


@dataclass(frozen=True)
class Ask:
    """One response wanted: the `index`-th for this prompt."""

    prompt: Prompt
    index: int


@dataclass(frozen=True)
class Response:
    text: str
    finish: str  # "stop" or "length"
    tokens: int | None  # of the response; None: not said


class SamplerError(RuntimeError):
    """The source can't answer; what was answered before is kept."""


class Sampler(Protocol):
    """`model` and `digest` say what answers; the digest must change when the answers may."""

    @property
    def model(self) -> str: ...

    @property
    def digest(self) -> str: ...

    def provenance(self) -> dict[str, Any]:
        """What else may move a greedy answer, as plain data: engine, arithmetic, batches. Each sample names
        it, and samples of another are not taken for this one's."""

    def settings(self) -> dict[str, Any]:
        """The provenance, and what else a report should say."""

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raises ValueError on a prompt that can't be put to this model."""

    def answer(
        self, asks: Sequence[Ask], decoding: Decoding, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Response]]:
        """(position in `asks`, response) of each as it is finished, but for the positions in `done`. Raises
        SamplerError; ValueError as `check` does."""


class EngineSampler:
    """An engine of this process, in batches of prompts of similar length.

    Where the engine's arithmetic makes an answer depend a little on its batch, the batches are made of all
    asks, done or not, so that a run that was stopped ends with the same answers as one that was not.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        prompts: Prompts,
        *,
        model: str,
        digest: str,
        batch: int,
        described: dict[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.digest = digest
        self._engine = engine
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._batch = max(1, min(batch, engine.capabilities.max_batch))
        self._described = described or {}
        self._seeded = engine.capabilities.seed

    def settings(self) -> dict[str, Any]:
        spread = self._engine.capabilities.prompt_spread
        return {
            "batch": self._batch,
            "prompt_spread": spread,
            "seeds_honoured": self._seeded,
            **self._described,
        }

    def provenance(self) -> dict[str, Any]:
        kept = {name: self._described[name] for name in _MOVING if name in self._described}
        spread = self._engine.capabilities.prompt_spread
        arithmetic = self._described.get("compute_type", self._described.get("dtype"))
        # In float32, and among prompts of one length, no answer depends on its batch.
        return (
            kept
            if arithmetic == "float32" or spread == 0 or self._engine.capabilities.independent_rows
            else kept | {"batch": self._batch, "prompt_spread": spread}
        )

    def check(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            self._encode(prompt)

    def room(self, prompt: Prompt) -> int:
        """Tokens that the model's context has left for an answer; below 1 the prompt itself is too long."""
        return self._engine.capabilities.max_context - len(self._encode(prompt)[0])

    def answer(
        self, asks: Sequence[Ask], decoding: Decoding, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Response]]:
        encoded = [self._encode(ask.prompt) for ask in asks]
        order = sorted(range(len(asks)), key=lambda at: (len(encoded[at][0]), at))
        size = self._batch
        if self._engine.capabilities.independent_rows:
            # Then the engine has more to choose from: a row enters as another leaves.
            order = [at for at in order if at not in done]
            size *= _WAITING
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            if done and all(at in done for at in rows):
                continue
            for at, response in self._run(rows, [asks[row].index for row in rows], encoded, decoding):
                if at not in done:
                    yield at, response

    def _encode(self, prompt: Prompt) -> tuple[list[int], frozenset[int], tuple[str, ...]]:
        """Token ids, end tokens and stop strings."""
        prompts = self._prompts
        if prompt.message:
            ids = prompts.chat([{"role": "user", "content": prompt.message}])
            # The answer's beginning follows the template's own opening of the assistant's turn.
            ids = ids + self._tokenizer.encode(prompt.prefill, specials=False, continues=True)
            return ids, prompts.chat_end_ids, (*prompts.chat_stops, *prompt.stop)
        if prompt.suffix is not None:
            ids = prompts.infill(prompt.text, prompt.suffix)
            stops = prompts.middle_stops(prompt.text, prompt.suffix)  # as the server does
            return ids, prompts.infill_end_ids, (*stops, *prompt.stop)
        return prompts.completion(prompt.text), prompts.completion_end_ids, prompt.stop

    def _sampling(self, decoding: Decoding, sample: int) -> Sampling:
        seed = decoding.seed if self._seeded and decoding.temperature else None
        return Sampling(
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            seed=None if seed is None else seed + sample,
        )

    def _run(
        self,
        rows: list[int],
        samples: list[int],
        encoded: list[tuple[list[int], frozenset[int], tuple[str, ...]]],
        decoding: Decoding,
    ) -> Iterator[tuple[int, Response]]:
        streams = [TextStream(self._tokenizer, encoded[at][2]) for at in rows]
        parts: list[list[str]] = [[] for _ in rows]
        counts = [0] * len(rows)
        ended = [False] * len(rows)
        batch = self._engine.start(
            [
                Request(
                    tuple(encoded[at][0]),
                    decoding.max_tokens,
                    encoded[at][1],
                    self._sampling(decoding, sample),
                )
                for at, sample in zip(rows, samples, strict=True)
            ]
        )
        try:
            while deltas := batch.step():
                for delta in deltas:
                    row = delta.row
                    if ended[row]:
                        continue
                    finish: EngineFinish | None = delta.finish
                    if delta.token is not None:
                        text, stopped = streams[row].push(delta.token)
                        parts[row].append(text)
                        counts[row] += 1
                        if stopped:
                            finish = "stop"
                            batch.cancel(row)
                    if finish is None:
                        continue
                    ended[row] = True
                    if not streams[row].stopped:
                        parts[row].append(streams[row].flush())
                    yield rows[row], Response("".join(parts[row]), finish, counts[row])
        except EngineError as error:
            raise SamplerError(f"{self.model}: {error}") from error
        finally:
            batch.close()


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
        ValueError on an address that is none."""
        if not url.startswith(("http://", "https://")) or not urlsplit(url).netloc:
            raise ValueError(f"--url {url}: must be http:// or https:// and a host")
        self._base = url.rstrip("/").removesuffix("/v1") + "/v1"
        self._workers = workers
        self._timeout_s = timeout_s
        self._session = requests.Session()
        self._telling = threading.Lock()
        self._told_until = 0.0  # time.monotonic() until which a warning has announced the wait
        if api_key:
            self._session.headers["Authorization"] = f"Bearer {api_key}"
        listed = self._call("GET", "models", None).get("data") or []
        names = [entry.get("id") for entry in listed if isinstance(entry, dict)]
        if model is not None and names and model not in names:
            raise SamplerError(f"--model {model}: {self._base} serves {', '.join(map(str, names))}")
        if model is None and not names:
            raise SamplerError(f"{self._base}/models names no model; give --model")
        self.model = model or str(names[0])
        entry = next((each for each in listed if isinstance(each, dict) and each.get("id") == self.model), {})
        card = entry.get("card") or {}
        source = card.get("source") or {} if isinstance(card, dict) else {}
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
        bodies = [(at, self._body(ask, decoding)) for at, ask in enumerate(asks) if at not in done]
        with ThreadPoolExecutor(self._workers) as pool:
            running: dict[Future[Response], int] = {}
            waiting = iter(bodies)
            try:
                while True:
                    # No more than the workers can take: an error must not leave a long queue behind.
                    while len(running) < self._workers and (following := next(waiting, None)) is not None:
                        position, (path, body) = following
                        running[pool.submit(self._one, path, body)] = position
                    if not running:
                        return
                    ended, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in ended:
                        yield running.pop(future), future.result()
            finally:
                for future in running:
                    future.cancel()

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

    def _one(self, path: str, body: dict[str, Any]) -> Response:
        answer = self._call("POST", path, body)
        try:
            choice = answer["choices"][0]
            text = choice["message"]["content"] if path.startswith("chat") else choice["text"]
            tokens = (answer.get("usage") or {}).get("completion_tokens")
        except (KeyError, IndexError, TypeError) as error:
            raise SamplerError(f"{self._base}/{path}: not an OpenAI answer ({error!r})") from error
        return Response(text or "", choice.get("finish_reason") or "stop", tokens)

    def _call(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        """Repeats what may pass: no connection, overload, a restarting server."""
        failure = ""
        for attempt in range(RETRIES):
            if attempt:
                self._pause(failure, min(2 ** (attempt - 1), 20))
            try:
                reply = self._session.request(
                    method, f"{self._base}/{path}", json=body, timeout=self._timeout_s
                )
            except requests.exceptions.InvalidURL as error:
                raise ValueError(f"--url {self._base}: {error}") from error
            except requests.RequestException as error:
                failure = self._no_answer(path, error)
                continue
            if reply.status_code == 200:
                try:
                    found: dict[str, Any] = reply.json()
                except ValueError as error:
                    raise SamplerError(f"{self._base}/{path}: answered with no JSON ({error})") from error
                return found
            failure = f"{self._base}/{path}: {reply.status_code} {reply.text[:500]}"
            if reply.status_code not in _RETRIED:
                break
        raise SamplerError(failure)

    def _no_answer(self, path: str, error: requests.RequestException) -> str:
        if isinstance(error, requests.exceptions.SSLError | requests.exceptions.ProxyError):
            return f"{self._base}/{path}: {error}"
        if isinstance(error, requests.Timeout):
            return f"{self._base}/{path}: no answer within {self._timeout_s:g} s"
        if isinstance(error, requests.ConnectionError):
            return f"no server answers at {self._base}: is rrtf-serve running there?"
        return f"{self._base}/{path}: {error}"

    def _pause(self, failure: str, seconds: float) -> None:
        """Wait before the next try; of all workers that wait, one says so."""
        with self._telling:
            now = time.monotonic()
            if now >= self._told_until:
                log.warning("%s; trying again in %g s", failure, seconds)
                self._told_until = now + seconds
        time.sleep(seconds)
