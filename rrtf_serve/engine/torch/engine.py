"""PyTorch behind the Engine contract.

Covered: plain and GPTQ folders, CPU and CUDA, options per row (seeds, penalties, biases, min_p), requests
that join and leave a running batch at any step, prompts whose beginning is held already and not read again,
log-probabilities, scoring, cancelling between any two forward passes.

Two decoders, see `opening`: transformers' models, and on CPUs compiled kernels of our own. With the kernels,
and with transformers in float32, a row's tokens depend on nothing else that runs or ran; with transformers in
16 bits a product over several rows, or over a prompt in other pieces, may round differently.

Not covered yet: compiled or captured steps on CUDA.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Iterator
from pathlib import Path

import torch

from rrtf_serve.engine.checks import check_ids
from rrtf_serve.engine.cores import available_cores
from rrtf_serve.engine.protocol import BATCH_TOKENS, Capabilities, EngineError, Request, TokenLogprob
from rrtf_serve.engine.torch import DTYPES, OUTPUT_BITS
from rrtf_serve.engine.torch.batch import GAP_TOKENS, NOT_FINITE, Loaded, TorchBatch
from rrtf_serve.engine.torch.checkpoint import pick_device
from rrtf_serve.engine.torch.choice import logprobs
from rrtf_serve.engine.torch.opening import open_decoder
from rrtf_serve.engine.torch.shelf import Shelf

MAX_LOGPROBS = 20
# What is kept for reuse unless it is said: as many tokens as take this much memory, and no more than these.
KV_CACHE_BYTES = 512 * 2**20
KV_CACHE_TOKENS = 16_384
# One part in so many of a batch's rows and tokens is kept for interactive rows.
INTERACTIVE_SHARE = 4

log = logging.getLogger(__name__)


class TorchEngine:
    """One model on one device. `start` and `score` are to be called from one thread at a time.

    folder: a Hugging Face folder of safetensors, or a GPTQ one. context_length: tokens, prompt and completion
    together. device: "cpu", "cuda", or "auto" (cuda where there is one). dtype: "auto" (as stored; bfloat16
    for float16 on a CPU), "float32", "bfloat16" or "float16". threads: 0 is one per available core; the
    setting is torch's and holds for the whole process. kv_dtype: of keys and values; "auto" (as the weights
    compute) or one of the types. kv_cache_tokens: of how many tokens keys and values are kept for later
    requests once their rows have ended; 0: no reuse; None: 16,384 or what 512 MiB hold. output_bits: of the
    output matrix where the compiled CPU kernels run the model: 16, 8 or 4; None: 16 for plain models, 8 for
    quantised ones.

    Raises ValueError on a device or type that this machine lacks, ModelError on a folder that can't be read.
    """

    def __init__(
        self,
        folder: Path,
        *,
        context_length: int,
        device: str = "auto",
        dtype: str = "auto",
        threads: int = 0,
        max_batch: int = 16,
        kv_dtype: str = "auto",
        kv_cache_tokens: int | None = None,
        output_bits: int | None = None,
    ) -> None:
        if context_length < 2:
            raise ValueError(f"context_length is {context_length}; it must hold a prompt and a completion")
        if max_batch < 1:
            raise ValueError(f"max_batch is {max_batch}; it must be at least 1")
        if kv_dtype not in DTYPES:
            raise ValueError(f"--kv-dtype {kv_dtype}: choose {', '.join(DTYPES)}")
        if kv_cache_tokens is not None and kv_cache_tokens < 0:
            raise ValueError(f"--kv-cache-tokens is {kv_cache_tokens}; it must be 0 (no reuse) or more")
        if output_bits not in (None, *OUTPUT_BITS):
            raise ValueError(f"--output-bits {output_bits}: choose {', '.join(map(str, OUTPUT_BITS))}")
        chosen = pick_device(device)
        torch.set_num_threads(threads or available_cores())
        decoder = open_decoder(
            folder, context_length=context_length, device=chosen, dtype=dtype, output_bits=output_bits
        )
        slots = decoder.new_slots(None if kv_dtype == "auto" else getattr(torch, kv_dtype))
        per_token = slots.bytes_per_token
        kept = (
            min(KV_CACHE_TOKENS, KV_CACHE_BYTES // per_token) if kv_cache_tokens is None else kv_cache_tokens
        )
        log.info(
            "keys and values take %.1f kB a token (%s); %d tokens (%.0f MB) are kept for reuse",
            per_token / 1e3,
            _name(slots.dtype),
            kept,
            kept * per_token / 1e6,
        )
        self._vocabulary = decoder.vocabulary
        self._described: dict[str, str | int] = {
            "device": chosen.type if chosen.type == "cpu" else torch.cuda.get_device_name(chosen),
            "dtype": _name(decoder.dtype),
            "kv_dtype": _name(slots.dtype),
            "kv_bytes_per_token": per_token,
            "kv_cache_tokens": kept,
            "threads": torch.get_num_threads(),
            "kernels": decoder.kernels,
            "weights_bytes": decoder.weights_bytes,
            "vocabulary": decoder.vocabulary,
            "torch": torch.__version__,
        }
        # Every row of a full batch has a slot, and as many are left to keep.
        self._loaded = Loaded(decoder, Shelf(slots, max_kept=kept, max_slots=2 * max_batch + 8))
        weakref.finalize(self, self._loaded.let_go).atexit = False
        batch_tokens = max(BATCH_TOKENS, context_length)
        interactive_rows = max_batch // INTERACTIVE_SHARE
        self._capabilities = Capabilities(
            max_context=context_length,
            max_batch=max_batch,
            max_logprobs=min(MAX_LOGPROBS, decoder.vocabulary),
            max_scored_tokens=context_length,
            seed=True,
            penalties=True,
            logit_bias=True,
            min_p=True,
            admission=True,
            mixed_sampling=True,
            independent_rows=decoder.independent_rows,
            max_batch_tokens=batch_tokens,
            interactive_rows=interactive_rows,
            interactive_tokens=batch_tokens // INTERACTIVE_SHARE if interactive_rows else 0,
        )

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def describe(self) -> dict[str, str | int]:
        """What was loaded: device, dtype, kv_dtype, kv_bytes_per_token, kv_cache_tokens (kept for reuse at
        most), threads, kernels (what multiplies), weights_bytes (in memory), vocabulary (tokens), torch."""
        return dict(self._described)

    @property
    def reused_tokens(self) -> int:
        """Prompt tokens so far that were not read, as a slot held them. Raises EngineError once closed."""
        return self._loaded.get()[1].reused_tokens

    def start(self, requests: list[Request]) -> TorchBatch:
        """See Engine.start. Rows beyond `max_batch` enter as others end."""
        batch = TorchBatch(self._loaded, self._capabilities)
        batch.admit(requests)
        return batch

    def score(self, prompt: tuple[int, ...], top: int) -> list[TokenLogprob]:
        """See Engine.score. Raises ValueError on a prompt longer than the context."""
        return [record for piece in self.score_pieces(prompt, top) for record in piece]

    def score_pieces(self, prompt: tuple[int, ...], top: int) -> Iterator[list[TokenLogprob]]:
        """See AdmittingEngine.score_pieces."""
        check_ids(prompt, self._vocabulary)
        longest = self._capabilities.max_scored_tokens
        if len(prompt) > longest:
            raise ValueError(f"the prompt has {len(prompt)} tokens; at most {longest} can be scored")
        if not 0 <= top <= self._capabilities.max_logprobs:
            raise ValueError(f"top is {top}; it must be from 0 to {self._capabilities.max_logprobs}")
        decoder, shelf = self._loaded.get()
        slots = decoder.new_slots(shelf.slots.dtype)
        del decoder, shelf  # whoever has this generator must not keep the model beyond `close`
        for start in range(0, len(prompt) - 1, GAP_TOKENS):
            piece = list(prompt[start : min(start + GAP_TOKENS, len(prompt) - 1)])
            records: list[TokenLogprob] = []
            try:
                with self._loaded.lock, torch.inference_mode():
                    for logits in self._loaded.get()[0].logits_of(piece, slots, start):
                        following = prompt[start + len(records) + 1 :][: len(logits)]
                        found = logprobs(logits, following, [top] * len(following))
                        records += [record for record in found if record is not None]
            except (RuntimeError, MemoryError) as error:
                raise EngineError(f"scoring failed: {error}") from error
            if not all(math.isfinite(record.logprob) for record in records):
                raise EngineError(f"scoring failed: {NOT_FINITE}")
            yield records

    def close(self) -> None:
        """Stop what runs and free the model. Idempotent."""
        self._loaded.drop()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
