"""Which step was best: pass@1 on a suite for choosing, greedy, by the engine that serves the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rrtf_serve.config import ServeConfig
from rrtf_serve.engine.torch.checkpoint import ARCHITECTURES
from rrtf_serve.loading import describe_source, load_engine
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.prompts import prompts_of
from rrtf_serve.models.records import Record
from rrtf_serve.models.source import Kind, Source
from rrtf_serve.models.tokens import Tokenizer
from rrtf_serve.problems.evaluate import Run, draw
from rrtf_serve.problems.judging import judge_file
from rrtf_serve.problems.samplers import Decoding, EngineSampler
from rrtf_serve.problems.suites import SUITES, load_suite
from rrtf_serve.sandbox.judge import Sandbox
from training.fingerprints import refuse_benchmarks
from training.fit_options import FitOptions

BATCH = 16  # answers that are decoded at a time


class Validation:
    """Opened before training begins, so that a missing sandbox or data set is known at once."""

    def __init__(self, options: FitOptions, student: Path, prompt_format: str) -> None:
        """student: the folder that training starts from. Raises ValueError on a suite that can't be had or
        put in this format, ModelError on a family that the engine can't run, SandboxUnavailable."""
        assert options.validate is not None
        model_type = Record.read(student / "config.json").text("model_type")
        if model_type not in ARCHITECTURES:
            raise ModelError(
                f"--validate: {model_type} can't be run by the torch engine (known: "
                f"{', '.join(ARCHITECTURES)}); leave it out"
            )
        suite = load_suite(options.validate)
        if options.validate not in SUITES:  # a file may hold a test under another name
            refuse_benchmarks(suite.problems.values(), f"--validate {options.validate}")
        self._run = Run(suite, prompt_format, Decoding(max_tokens=options.validate_tokens))
        self._options = options
        self._sandbox = Sandbox()

    def close(self) -> None:
        self._sandbox.close()

    def score(self, folder: Path, work: Path) -> dict[str, Any]:
        """Of a model's folder: problems passed, and how many there are. `work`: an empty folder for the
        samples and verdicts.

        Raises ModelError, SamplerError.
        """
        serving = ServeConfig(
            model=str(folder), engine="torch", device=self._options.device, threads=self._options.threads,
            max_batch=BATCH, kv_cache_tokens=0,
        )  # fmt: skip
        source = Source(folder, Kind.HF, folder.name)
        card = describe_source(serving, source)
        tokenizer = Tokenizer.load(folder)
        with _threads_kept():
            engine = load_engine(serving, source, card)
            try:
                sampler = EngineSampler(
                    engine, tokenizer, prompts_of(card, tokenizer), model=card.name, digest="", batch=BATCH
                )
                keys = draw(sampler, self._run, work / "samples.jsonl")
            finally:
                engine.close()
        tally = judge_file(
            work / "samples.jsonl", self._run.suite, work / "results.jsonl", self._sandbox, only=keys
        )
        return {"passed": sum(passed for _, passed in tally.counts.values()), "problems": len(tally.counts)}


@contextmanager
def _threads_kept() -> Iterator[None]:
    """The engine sets how many threads torch uses, and the sums of a training step depend on it."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
