"""A model of any kind, loaded by CTranslate2 with its weights exact: what `verify` measures.

A CTranslate2 folder runs as it is. Every other kind (a GGUF file, a Hugging Face, GPTQ or adapter folder) is
written as float32 into a scratch folder first, which changes no weight, so that torch is not needed.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ctranslate2

from convert.architectures import specify
from convert.checkpoint import open_checkpoint
from convert.ct2 import convert
from convert.parity import FloatArray
from convert.writer import plan, planned_size
from rrtf_serve.engine.cores import available_cores
from rrtf_serve.engine.ct2_batch import to_numpy
from rrtf_serve.engine.ct2_files import learned_positions, read_vocabulary
from rrtf_serve.engine.heap import trim_memory
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.folder import Card, read_card
from rrtf_serve.models.source import Kind, Source, read_json
from rrtf_serve.models.tokens import Tokenizer

_GREEDY_BATCH = 16
DEVICES = ("cpu", "cuda", "auto")


@dataclass(frozen=True)
class Plan:
    """How a model is to be run. `scratch_bytes` is what has to be written first, 0 for a folder that runs.

    `loaded_bytes` is what the loaded model takes, `loading_bytes` the most while it is loaded.
    `architecture` is empty where the files don't say.
    """

    source: Source
    quantization: str  # CTranslate2 type that runs
    loaded_bytes: int
    loading_bytes: int
    scratch_bytes: int
    architecture: str
    vocabulary_size: int  # rows of the embedding


def plan_run(source: Source, quantization: str, device: str) -> Plan:
    """Look at `source` without loading it. `quantization` is what it is written as where it doesn't run yet.

    Raises ModelError on what can't be read or converted.
    """
    if source.kind is Kind.CT2:
        size = (source.path / "model.bin").stat().st_size
        stored = quantization_of(source)
        card = read_card(source.path)
        rows = len(read_vocabulary(source.path))
        return Plan(
            source, stored, *_memory(size, stored, device), 0, card.architecture if card else "", rows
        )
    checkpoint = open_checkpoint(source)
    try:
        specification = specify(checkpoint.tensors)
        size = planned_size(plan(specification, quantization))
        architecture, rows = checkpoint.tensors.config.architecture, specification.vocabulary_size
    finally:
        checkpoint.tensors.close()
    return Plan(source, quantization, *_memory(size, quantization, device), size, architecture, rows)


def quantization_of(source: Source) -> str:
    """What a folder's weights are stored as: its card's word, or its configuration's; empty: not known."""
    folder = source.path
    if folder.is_dir() and (card := read_card(folder)):
        return card.quantization
    return configured_quantization(source)


def configured_quantization(source: Source) -> str:
    """What a CTranslate2 or GPTQ folder's configuration calls its weights; empty: not known."""
    folder = source.path
    if source.kind is Kind.CT2:
        found = read_json(folder / "config.json").get("quantization_type")
        return found if isinstance(found, str) else ""
    if source.kind is Kind.GPTQ:
        for name in ("config.json", "quantize_config.json"):
            if (folder / name).is_file():
                record = read_json(folder / name)
                nested = record.get("quantization_config", record)
                if isinstance(nested, dict) and isinstance(nested.get("bits"), int):
                    return f"gptq-{nested['bits']}bit"
    return ""


def _memory(size: int, quantization: str, device: str) -> tuple[int, int]:
    """Bytes that a model.bin of `size` bytes takes once loaded, and at most while it is loaded.

    Measured with CTranslate2 4.8.5: a tied output matrix is copied, and loading takes a second copy of
    everything. On a CPU 16-bit types become float32, which takes a third.
    """
    if device != "cuda" and quantization in ("int16", "float16", "bfloat16"):
        return round(2.8 * size), round(6.2 * size)
    return round(1.4 * size), round(2.1 * size)


class Runnable:
    """A loaded model. Made by `loaded`; not to be kept beyond its block."""

    def __init__(self, name: Path, folder: Path, generator: Any) -> None:
        self.name = name  # what the user called it; `folder` is where it runs
        self.folder = folder
        self.card: Card | None = read_card(folder)
        self.tokenizer = Tokenizer.load(folder)
        self.vocabulary = read_vocabulary(folder)
        self.positions = learned_positions(folder) or (self.card.context_length if self.card else 0)
        self.compute_type = str(generator.compute_type)
        self.device = str(generator.device)
        self._generator = generator

    def log_probabilities(self, ids: Sequence[int]) -> FloatArray:
        """(len(ids), vocabulary): row i is what follows ids[:i + 1]. Raises ModelError when it can't run."""
        try:
            view = self._generator.forward_batch([list(ids)], return_log_probs=True)
        except RuntimeError as error:
            raise ModelError(f"{self.name}: can't be run on {len(ids)} tokens ({error})") from error
        found: FloatArray = to_numpy(view)[0]
        return found

    def greedy(
        self, prompts: Sequence[Sequence[int]], limit: int, end_tokens: Sequence[str]
    ) -> Iterator[list[int]]:
        """The likeliest continuation of each prompt, at most `limit` tokens, its end token included.

        Prompts are of equal length: CTranslate2 would feed what a longer one has beyond the shortest token by
        token, which rounds differently.
        """
        ends = [token for token in end_tokens if token in set(self.vocabulary)]
        for at in range(0, len(prompts), _GREEDY_BATCH):
            batch = [[self.vocabulary[token] for token in ids] for ids in prompts[at : at + _GREEDY_BATCH]]
            results = self._generator.generate_batch(
                batch,
                max_length=limit,
                include_prompt_in_result=False,
                return_end_token=True,
                end_token=ends or None,
            )
            for result in results:
                yield list(result.sequences_ids[0])


@contextmanager
def loaded(
    planned: Plan,
    scratch: Path,
    *,
    device: str,
    compute_type: str = "default",
    threads: int = 0,
    progress: bool = True,
) -> Iterator[Runnable]:
    """Write the model into `scratch` where it has to be, load it, and free it when the block ends.

    `threads`: 0 is one per available core. Raises ModelError on an unreadable model or a device that is not
    there.
    """
    source = planned.source
    folder = source.path
    if source.kind is not Kind.CT2:
        folder = convert(source, scratch, quantization=planned.quantization, progress=progress)
    try:
        generator = ctranslate2.Generator(
            str(folder),
            device=device,
            compute_type=compute_type,
            intra_threads=threads or available_cores(),
        )
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"{source.path}: CTranslate2 can't load it on {device} as {compute_type} ({error})"
        ) from error
    trim_memory()  # loading leaves a second copy of the weights with the allocator
    runnable = Runnable(source.path, folder, generator)
    try:
        yield runnable
    finally:
        # A generator that outlives the interpreter aborts the process.
        runnable._generator = None
        del generator
        gc.collect()
        trim_memory()
        if source.kind is not Kind.CT2:
            shutil.rmtree(folder)  # gigabytes, and the next model goes to the same place
