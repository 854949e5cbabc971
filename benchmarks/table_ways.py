"""Ways of running a model that `rrtf-bench table` compares: this project's engines, plain transformers.

Both decode greedily from token ids, all rows together, and note when each token was there.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rrtf_serve.config import ServeConfig
from rrtf_serve.engine.cores import available_cores
from rrtf_serve.engine.protocol import Request, Sampling
from rrtf_serve.loading import describe_source, load_engine
from rrtf_serve.models.records import Record
from rrtf_serve.models.source import Source, detect_kind, name_of

GREEDY = Sampling(temperature=0)
# Prompts of a suite's batch may differ by so much: CTranslate2 reads what is longer token by token.
PROMPT_SPREAD = 16


class DeviceMemory:
    """Peak memory of a CUDA device, as torch counts what it reserved, or for another library as what the
    whole device holds more than before: nothing else must then run on it."""

    def __init__(self, *, by_torch: bool) -> None:
        import torch  # noqa: PLC0415 - not where a CPU is measured

        self._cuda = torch.cuda
        self._by_torch = by_torch
        self._before = self._used()
        self._most = 0

    def peak_mb(self) -> float:
        if self._by_torch:
            return float(self._cuda.max_memory_reserved()) / 1e6
        self._most = max(self._most, self._used() - self._before)
        return self._most / 1e6

    def _used(self) -> int:
        free, total = self._cuda.mem_get_info()
        return int(total - free)


@dataclass
class Written:
    """What one row has made so far."""

    tokens: list[int] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    ended: bool = False

    def add(self, token: int, at: float, end_ids: frozenset[int]) -> None:
        if token in end_ids:
            self.ended = True
        elif not self.ended:
            self.tokens.append(token)
            self.at.append(at)


class EngineWay:
    """An engine of this project, loaded as the server loads it."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._engine: Any = None
        self._packages = ["ctranslate2"]
        if settings["engine"] == "torch":
            import torch  # noqa: PLC0415, F401 - before the base of the memory is read
            import transformers  # noqa: PLC0415, F401

            self._packages = ["torch", "transformers"]
            import rrtf_serve.engine.torch.engine  # noqa: PLC0415, F401
        self._config = ServeConfig(
            model=settings["path"],
            engine=settings["engine"],
            dtype=settings["type"] if settings["engine"] == "torch" and settings["type"] else "auto",
            device=settings["device"],
            threads=settings["threads"],
            max_batch=settings["rows"],
        )
        path = Path(settings["path"])  # prepared by the parent: nothing to fetch, convert or hash
        self._source = Source(path, detect_kind(path), name_of(path))
        self._card = describe_source(self._config, self._source)
        cuda = settings["device"] == "cuda"
        self._memory = DeviceMemory(by_torch=settings["engine"] == "torch") if cuda else None

    def versions(self) -> dict[str, str]:
        return _versions(self._packages)

    def load(self) -> dict[str, Any]:
        self._engine = load_engine(self._config, self._source, self._card, prompt_spread=PROMPT_SPREAD)
        described: dict[str, Any] = self._engine.describe()
        return described

    def generate(
        self, prompts: list[list[int]], max_tokens: int, end_ids: list[list[int]]
    ) -> list[dict[str, list[Any]]]:
        started = time.perf_counter()
        rows = [Written() for _ in prompts]
        batch = self._engine.start(
            [
                Request(tuple(prompt), max_tokens, frozenset(ends), GREEDY)
                for prompt, ends in zip(prompts, end_ids, strict=True)
            ]
        )
        try:
            while deltas := batch.step():
                now = time.perf_counter() - started
                for delta in deltas:
                    if delta.token is not None:
                        rows[delta.row].add(delta.token, now, frozenset())
        finally:
            batch.close()
        return [{"tokens": row.tokens, "at": row.at} for row in rows]

    def device_mb(self) -> float | None:
        return self._memory.peak_mb() if self._memory else None


class TransformersWay:
    """A transformers model as it comes: its own attention, its DynamicCache, the likeliest token each time.

    What `generate` does greedily, without what `generate` does besides.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        import torch  # noqa: PLC0415 - the child of another way has no use for it
        import transformers  # noqa: PLC0415

        self._torch, self._transformers = torch, transformers
        self._settings = settings
        if settings["device"] == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device cuda: torch finds no CUDA device on this machine")
        torch.set_num_threads(settings["threads"] or available_cores())
        self._causal: Any = transformers.AutoModelForCausalLM
        # Otherwise imported while the model is loaded, and counted as its time and memory.
        kind = Record.read(Path(settings["path"]) / "config.json").text("model_type")
        import_module(f"transformers.models.{kind}.modeling_{kind}")
        self._model: Any = None
        self._memory = DeviceMemory(by_torch=True) if settings["device"] == "cuda" else None

    def versions(self) -> dict[str, str]:
        return _versions(["torch", "transformers"])

    def load(self) -> dict[str, Any]:
        torch, device = self._torch, self._settings["device"]
        reports: Any = self._transformers.utils.logging
        reports.disable_progress_bar()
        self._model = self._causal.from_pretrained(
            Path(self._settings["path"]),
            dtype=getattr(torch, self._settings["type"]),
            # Straight to the device: through the CPU's memory a model would have to fit there too.
            device_map={"": device} if device == "cuda" else None,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        ).eval()
        return {
            "device": device if device == "cpu" else torch.cuda.get_device_name(),
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "attention": self._model.config._attn_implementation,
        }

    def generate(
        self, prompts: list[list[int]], max_tokens: int, end_ids: list[list[int]]
    ) -> list[dict[str, list[Any]]]:
        with self._torch.inference_mode():
            rows = self._decode(prompts, max_tokens, [frozenset(ends) for ends in end_ids])
        return [{"tokens": row.tokens, "at": row.at} for row in rows]

    def _decode(self, prompts: list[list[int]], max_tokens: int, ends: list[frozenset[int]]) -> list[Written]:
        torch, device = self._torch, self._model.device
        started = time.perf_counter()
        rows = [Written() for _ in prompts]
        longest = max(map(len, prompts))
        # Padded on the left: [rows, longest] ids, and a mask where lengths differ.
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
        padded = bool((mask == 0).any())
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        cache = self._transformers.DynamicCache(config=self._model.config)
        for step in range(max_tokens):
            logits = self._model(
                input_ids=ids,
                attention_mask=mask if padded else None,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits  # [rows, 1, vocabulary]
            ids = logits[:, -1].argmax(-1, keepdim=True)  # [rows, 1]
            chosen, now = ids[:, 0].tolist(), time.perf_counter() - started
            for row, token, end in zip(rows, chosen, ends, strict=True):
                row.add(token, now, end)
            if all(row.ended for row in rows) or step + 1 == max_tokens:
                break
            positions = positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        return rows

    def device_mb(self) -> float | None:
        return self._memory.peak_mb() if self._memory else None


def _versions(packages: list[str]) -> dict[str, str]:
    found = {}
    for name in [*packages, "gptqmodel"]:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
