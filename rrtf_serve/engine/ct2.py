"""CTranslate2 behind the Engine contract.

CTranslate2 pushes: `generate_batch` blocks and calls back per row and token from a thread of its own. A batch
(ct2_batch) runs it on one thread and hands each step's deltas over through a queue, so that `step` can pull.

What CTranslate2 leaves to its caller is done here:
- limits, end tokens and cancelling are per row, in the callback; CTranslate2 has one set of options per call
- rows whose prompts differ much in length run one after another: it feeds everything beyond the shortest
  prompt token by token
- the context is enforced: models with learned positions fail in mid-answer beyond it
- it keeps all logits of a call until its end (4 bytes x vocabulary x tokens), so calls that want
  log-probabilities are cut into legs, each going on from where the last one stood
- a second worker with the same weights runs a batch of its own, so that a few tokens for an editor need not
  wait for a long answer; the two share the cores
- a generator that outlives the interpreter aborts the process, so it is dropped at exit whatever happens

A prompt is read in one piece: what is cancelled while its prompt is read stops after it. So an interactive
job waits at most for the batch in its own lane, which holds no more than INTERACTIVE_TOKENS.

Fixed beginnings of prompts are read each time. `static_prompt` would keep the state of each one for ever,
once per worker. The longest that is sent unasked is Qwen's system prompt of 21 tokens: keeping it saves
0.02 s of processor time, 8 % with 100 tokens behind it and 3 % with 300 (0.5B in int8). FIM prompts have
none.

Not covered: seeds, presence and frequency penalties, logit bias, min_p, joining a running batch. The
repetition penalty counts generated tokens only, not the prompt. With top_p the 8,192 best tokens are
candidates.
"""

from __future__ import annotations

import weakref
from pathlib import Path

import ctranslate2

from rrtf_serve.engine.checks import check_ids, check_request
from rrtf_serve.engine.cores import available_cores
from rrtf_serve.engine.ct2_batch import (
    LOGITS_BYTES,
    PROMPT_SPREAD,
    Ct2Batch,
    Loaded,
    Row,
    partition,
    steps_in_memory,
    to_numpy,
)
from rrtf_serve.engine.ct2_files import learned_positions, read_vocabulary
from rrtf_serve.engine.heap import trim_memory
from rrtf_serve.engine.logprobs import token_logprob
from rrtf_serve.engine.protocol import (
    BATCH_TOKENS,
    Capabilities,
    EngineError,
    Request,
    Sampling,
    TokenLogprob,
)
from rrtf_serve.models.errors import ModelError

MAX_LOGPROBS = 20
# Prompts and completions of what is run for interactive jobs at once; a job that needs more is a long one.
INTERACTIVE_TOKENS = 4096


class Ct2Engine:
    """One model on one device. `start` and `score` are to be called from `workers` threads at a time.

    folder: a CTranslate2 folder. context_length: tokens, prompt and completion together. workers: batches
    that run at once, on the same weights; each may use all threads.
    device: "cpu", "cuda", or "auto" (cuda where there is one). compute_type: "default" (as stored, or the
    nearest that the device has), "auto" (the fastest) or a name. threads: 0 is one per available core.

    Raises ValueError on a device or compute type that this machine lacks, ModelError on an unreadable folder.
    """

    def __init__(
        self,
        folder: Path,
        *,
        context_length: int,
        device: str = "auto",
        compute_type: str = "default",
        threads: int = 0,
        max_batch: int = 16,
        prompt_spread: int | None = None,
        workers: int = 2,
    ) -> None:
        """`prompt_spread`: see Capabilities; None: rows share a call only where no answer changes by it."""
        if prompt_spread is not None and not 0 <= prompt_spread <= PROMPT_SPREAD:
            raise ValueError(f"prompt_spread is {prompt_spread}; it must be from 0 to {PROMPT_SPREAD}")
        if context_length < 2:
            raise ValueError(f"context_length is {context_length}; it must hold a prompt and a completion")
        if max_batch < 1:
            raise ValueError(f"max_batch is {max_batch}; it must be at least 1")
        if workers < 1:
            raise ValueError(f"workers is {workers}; it must be at least 1")
        self._device = _pick_device(device)
        _check_compute_type(compute_type, self._device)
        self._vocabulary = read_vocabulary(folder)
        positions = learned_positions(folder)
        if positions is not None and context_length > positions:
            raise ValueError(
                f"context_length is {context_length}, but the model has learned {positions} positions and "
                "fails beyond them"
            )
        self._threads = threads or available_cores()
        try:
            generator = ctranslate2.Generator(
                str(folder),
                device=self._device,
                compute_type=compute_type,
                intra_threads=self._threads,
                inter_threads=workers,
            )
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"{folder}: CTranslate2 can't load it ({error})") from error
        trim_memory()
        self._loaded = Loaded(generator)
        self._exit = weakref.finalize(self, self._loaded.drop)
        self._compute_type = str(generator.compute_type)
        self._weights_bytes = (folder / "model.bin").stat().st_size
        size = len(self._vocabulary)
        if prompt_spread is None:
            # In fewer bits a token that is fed one by one rounds differently than in a prefill, and a greedy
            # answer would depend on what else is waiting.
            prompt_spread = PROMPT_SPREAD if self._compute_type == "float32" else 0
        self._capabilities = Capabilities(
            max_context=context_length,
            max_batch=max_batch,
            max_logprobs=min(MAX_LOGPROBS, size),
            max_scored_tokens=min(context_length, LOGITS_BYTES // (4 * size)),
            max_batch_tokens=max(BATCH_TOKENS, context_length),
            prompt_spread=prompt_spread,
            parallel_batches=workers,
            interactive_rows=max_batch if workers > 1 else 0,
            interactive_tokens=INTERACTIVE_TOKENS if workers > 1 else 0,
        )

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def describe(self) -> dict[str, str | int]:
        """What was loaded: device, compute_type, threads, weights_bytes (model.bin), vocabulary (tokens)."""
        return {
            "device": self._device,
            "compute_type": self._compute_type,
            "threads": self._threads,
            "weights_bytes": self._weights_bytes,
            "vocabulary": len(self._vocabulary),
        }

    def start(self, requests: list[Request]) -> Ct2Batch:
        """See Engine.start. Rows that can't share a call are run in several, one after another."""
        if not requests:
            raise ValueError("no requests: a batch needs at least one row")
        sampling = requests[0].sampling
        for request in requests:
            if request.sampling != sampling:
                raise ValueError("rows of one batch must have equal sampling")
            self._check(request)
        rows = [self._row(number, request) for number, request in enumerate(requests)]
        legs = partition(rows, sampling, self._capabilities, len(self._vocabulary))
        return Ct2Batch(self._loaded, self._vocabulary, rows, legs, sampling)

    def score(self, prompt: tuple[int, ...], top: int) -> list[TokenLogprob]:
        """See Engine.score. Raises ValueError on a prompt longer than `max_scored_tokens`. Holds
        4 x vocabulary x len(prompt) bytes while it runs, and twice that at its peak with int8 weights."""
        check_ids(prompt, len(self._vocabulary))
        longest = self._capabilities.max_scored_tokens
        if len(prompt) > longest:
            raise ValueError(f"the prompt has {len(prompt)} tokens; at most {longest} can be scored")
        if not 0 <= top <= self._capabilities.max_logprobs:
            raise ValueError(f"top is {top}; it must be from 0 to {self._capabilities.max_logprobs}")
        if len(prompt) == 1:
            return []
        tokens = [self._vocabulary[token] for token in prompt]
        try:
            # [1, T, V]
            logprobs = to_numpy(self._loaded.get().forward_batch([tokens], return_log_probs=True))[0]
        except RuntimeError as error:
            raise EngineError(f"scoring failed: {error}") from error
        records = [token_logprob(logprobs[at], token, top) for at, token in enumerate(prompt[1:])]
        del logprobs
        trim_memory()
        return records

    def close(self) -> None:
        """Stop what runs and free the model. Idempotent."""
        self._exit()

    def _check(self, request: Request) -> None:
        check_request(request, self._capabilities, len(self._vocabulary))
        sampling = request.sampling
        for name in ("min_p", "seed", "presence_penalty", "frequency_penalty", "logit_bias"):
            if getattr(sampling, name) != getattr(Sampling, name):
                raise ValueError(f"{name} is set, but CTranslate2 has no such option")
        longest = steps_in_memory(sampling, len(self._vocabulary))
        if sampling.repetition_penalty != 1 and self._room(request) > longest:
            # The penalty counts what one call generated, so such a call can't be cut into legs.
            raise ValueError(
                f"max_tokens can be {longest} at most with repetition_penalty and logprobs together"
            )

    def _room(self, request: Request) -> int:
        return min(request.max_tokens, self._capabilities.max_context - len(request.prompt))

    def _row(self, number: int, request: Request) -> Row:
        left = self._room(request)
        # End tokens outside the vocabulary can't occur, and CTranslate2 would write out of bounds for them.
        end_ids = frozenset(token for token in request.end_ids if 0 <= token < len(self._vocabulary))
        least = min(max(request.min_tokens, 0), left) if end_ids else 0
        return Row(number, list(request.prompt), left, least, end_ids)


def _pick_device(device: str) -> str:
    if device not in {"auto", "cpu", "cuda"}:
        raise ValueError(f"--device {device}: choose cpu, cuda or auto")
    found = ctranslate2.get_cuda_device_count() > 0
    if device == "cuda" and not found:
        raise ValueError("--device cuda: no CUDA device found on this machine; use cpu or auto")
    return "cuda" if found and device != "cpu" else "cpu"


def _check_compute_type(compute_type: str, device: str) -> None:
    supported = sorted(ctranslate2.get_supported_compute_types(device))
    if compute_type not in {"default", "auto", *supported}:
        raise ValueError(
            f"--compute-type {compute_type}: this machine's {device} supports {', '.join(supported)}; "
            "'default' takes the model as it is stored, 'auto' the fastest of these"
        )
