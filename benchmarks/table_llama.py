"""llama.cpp through llama-cpp-python's low-level calls, as a way of `rrtf-bench table`.

Runs inside the peer's own environment (Python, llama-cpp-python and the numpy that it brings): imports
nothing of the project. Rows are sequences of one context, decoded together; the likeliest token each time.

API: https://github.com/ggml-org/llama.cpp/blob/master/include/llama.h
"""

from __future__ import annotations

import ctypes
import os
import time
from importlib import import_module
from typing import Any

_PIECE = 512  # prompt tokens read at a time: the library's own default of a micro-batch


class LlamaWay:
    def __init__(self, settings: dict[str, Any]) -> None:
        self._api: Any = import_module("llama_cpp")
        self._numpy: Any = import_module("numpy")
        self._settings = settings
        self._threads = settings["threads"] or len(os.sched_getaffinity(0))
        self._context: Any = None
        self._vocabulary = 0
        self._api.llama_backend_init()

    def versions(self) -> dict[str, str]:
        return {"llama-cpp-python": str(self._api.__version__), "numpy": str(self._numpy.__version__)}

    def load(self) -> dict[str, Any]:
        api, settings = self._api, self._settings
        options = api.llama_model_default_params()
        options.n_gpu_layers = -1 if settings["device"] == "cuda" else 0
        # Repacked weights bring the AMX kernels, which end the process where the system does not allow AMX.
        options.use_extra_bufts = settings["type"] != "plain"
        self._model = api.llama_model_load_from_file(settings["path"].encode(), options)
        if not self._model:
            raise RuntimeError(f"{settings['path']}: llama.cpp can't load it")
        self._vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        wanted = api.llama_context_default_params()
        wanted.n_ctx, wanted.n_seq_max, wanted.kv_unified = settings["context"], settings["rows"], True
        wanted.n_batch = wanted.n_ubatch = _PIECE
        wanted.n_threads = wanted.n_threads_batch = self._threads
        self._context = api.llama_init_from_model(self._model, wanted)
        if not self._context:
            raise RuntimeError(
                f"{settings['path']}: llama.cpp makes no context of {settings['context']} tokens"
            )
        self._batch = api.llama_batch_init(_PIECE, 0, 1)
        return {
            "device": settings["device"],
            "threads": self._threads,
            "repacked": bool(options.use_extra_bufts),
            "context": int(api.llama_n_ctx(self._context)),
            "vocabulary": self._vocabulary,
        }

    def generate(
        self, prompts: list[list[int]], max_tokens: int, end_ids: list[list[int]]
    ) -> list[dict[str, list[Any]]]:
        started = time.perf_counter()
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), False)
        rows: list[dict[str, list[Any]]] = [{"tokens": [], "at": []} for _ in prompts]
        last = {number: self._read(number, prompt) for number, prompt in enumerate(prompts)}
        for step in range(max_tokens):
            now = time.perf_counter() - started
            for number, token in list(last.items()):
                if token in end_ids[number]:
                    del last[number]
                    continue
                rows[number]["tokens"].append(token)
                # The prompts are read one after the other: all have their first token after the last one.
                rows[number]["at"].append(now)
            if not last or step + 1 == max_tokens:
                break
            entries = [(n, token, len(prompts[n]) + step, True) for n, token in last.items()]
            chosen = self._run(entries)
            last = dict(zip(last, chosen, strict=True))
        return rows

    def device_mb(self) -> float | None:
        return None

    def _read(self, number: int, prompt: list[int]) -> int:
        """Read one row's prompt; its first new token."""
        chosen: list[int] = []
        for start in range(0, len(prompt), _PIECE):
            piece = prompt[start : start + _PIECE]
            final = start + len(piece) == len(prompt)
            chosen = self._run(
                [
                    (number, token, start + at, final and at == len(piece) - 1)
                    for at, token in enumerate(piece)
                ]
            )
        return chosen[0]

    def _run(self, entries: list[tuple[int, int, int, bool]]) -> list[int]:
        """One pass over (row, token, position, wanted); the likeliest next token of each that is wanted."""
        batch = self._batch
        batch.n_tokens = len(entries)
        for at, (number, token, position, wanted) in enumerate(entries):
            batch.token[at], batch.pos[at], batch.logits[at] = token, position, wanted
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, number
        status = self._api.llama_decode(self._context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode gave {status}; 1 means that the context is full")
        return [self._likeliest(at) for at, entry in enumerate(entries) if entry[3]]

    def _likeliest(self, at: int) -> int:
        logits = self._api.llama_get_logits_ith(self._context, at)
        pointer = ctypes.cast(logits, ctypes.POINTER(ctypes.c_float))
        return int(self._numpy.ctypeslib.as_array(pointer, (self._vocabulary,)).argmax())
