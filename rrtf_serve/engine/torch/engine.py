"""PyTorch behind the Engine contract.

Covered: plain and GPTQ folders, CPU and CUDA, options per row (seeds, penalties, biases, min_p), rows that
enter as others leave within one batch, log-probabilities, scoring, cancelling between any two forward passes.

Not covered yet: requests that join a running batch, reuse of a prefix between batches, compiled or captured
steps. In float32 a row's tokens depend on nothing else in its batch; in 16 bits a matrix product over several
rows may round differently than over one.
"""

from __future__ import annotations

import weakref
from pathlib import Path

import torch

from rrtf_serve.engine.checks import check_ids, check_request
from rrtf_serve.engine.cores import available_cores
from rrtf_serve.engine.protocol import Capabilities, EngineError, Request, TokenLogprob
from rrtf_serve.engine.torch.batch import PREFILL_TOKENS, Loaded, TorchBatch
from rrtf_serve.engine.torch.checkpoint import load, pick_device, weights_bytes
from rrtf_serve.engine.torch.choice import logprobs
from rrtf_serve.engine.torch.decoder import Decoder
from rrtf_serve.engine.torch.rows import new_row

MAX_LOGPROBS = 20


class TorchEngine:
    """One model on one device. `start` and `score` are to be called from one thread at a time.

    folder: a Hugging Face folder of safetensors, or a GPTQ one. context_length: tokens, prompt and completion
    together. device: "cpu", "cuda", or "auto" (cuda where there is one). dtype: "auto" (as stored; bfloat16
    for float16 on a CPU), "float32", "bfloat16" or "float16". threads: 0 is one per available core; the
    setting is torch's and holds for the whole process.

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
    ) -> None:
        if context_length < 2:
            raise ValueError(f"context_length is {context_length}; it must hold a prompt and a completion")
        if max_batch < 1:
            raise ValueError(f"max_batch is {max_batch}; it must be at least 1")
        chosen = pick_device(device)
        torch.set_num_threads(threads or available_cores())
        model = load(folder, device=chosen, dtype=dtype)
        positions = model.config.max_position_embeddings
        if model.config.model_type == "gpt_bigcode" and context_length > positions:
            raise ValueError(
                f"context_length is {context_length}, but the model has learned {positions} positions and "
                "fails beyond them"
            )
        decoder = Decoder(model)
        self._vocabulary = decoder.vocabulary
        self._described: dict[str, str | int] = {
            "device": chosen.type if chosen.type == "cpu" else torch.cuda.get_device_name(chosen),
            "dtype": str(decoder.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "weights_bytes": weights_bytes(model),
            "vocabulary": decoder.vocabulary,
            "torch": torch.__version__,
        }
        self._loaded = Loaded(decoder)
        self._exit = weakref.finalize(self, self._loaded.drop)
        self._capabilities = Capabilities(
            max_context=context_length,
            max_batch=max_batch,
            max_logprobs=min(MAX_LOGPROBS, decoder.vocabulary),
            max_scored_tokens=context_length,
            seed=True,
            penalties=True,
            logit_bias=True,
            min_p=True,
            mixed_sampling=True,
        )

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def describe(self) -> dict[str, str | int]:
        """What was loaded: device, dtype, threads, weights_bytes (in memory), vocabulary (tokens), torch."""
        return dict(self._described)

    def start(self, requests: list[Request]) -> TorchBatch:
        """See Engine.start. Rows beyond `max_batch` enter as others end."""
        if not requests:
            raise ValueError("no requests: a batch needs at least one row")
        for request in requests:
            check_request(request, self._capabilities, self._vocabulary)
        limits = self._capabilities
        rows = [
            new_row(number, request, context=limits.max_context, vocabulary=self._vocabulary)
            for number, request in enumerate(requests)
        ]
        return TorchBatch(self._loaded, rows, max_rows=limits.max_batch, max_tokens=limits.max_batch_tokens)

    @torch.inference_mode()
    def score(self, prompt: tuple[int, ...], top: int) -> list[TokenLogprob]:
        """See Engine.score. Raises ValueError on a prompt longer than the context."""
        check_ids(prompt, self._vocabulary)
        longest = self._capabilities.max_scored_tokens
        if len(prompt) > longest:
            raise ValueError(f"the prompt has {len(prompt)} tokens; at most {longest} can be scored")
        if not 0 <= top <= self._capabilities.max_logprobs:
            raise ValueError(f"top is {top}; it must be from 0 to {self._capabilities.max_logprobs}")
        records: list[TokenLogprob] = []
        try:
            with self._loaded.lock:
                decoder = self._loaded.get()
                slots = decoder.new_slots()
                for start in range(0, len(prompt) - 1, PREFILL_TOKENS):
                    piece = list(prompt[start : min(start + PREFILL_TOKENS, len(prompt) - 1)])
                    for logits in decoder.logits_of(piece, slots, start):
                        following = prompt[len(records) + 1 :][: len(logits)]
                        found = logprobs(logits, following, [top] * len(following))
                        records += [record for record in found if record is not None]
        except (RuntimeError, MemoryError) as error:
            raise EngineError(f"scoring failed: {error}") from error
        return records

    def close(self) -> None:
        """Stop what runs and free the model. Idempotent."""
        self._exit()
