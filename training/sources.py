"""Sources of answers: models behind an engine or a URL, and the data sets' own solutions.

The paper's teachers are "more powerful models or human experts" (arXiv 2307.14936, section 3); the reference
solutions of a data set stand for the experts.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from rrtf_serve.problems.evaluate import Run
from rrtf_serve.problems.problem import Suite
from rrtf_serve.problems.prompts import FORMATS
from rrtf_serve.problems.samplers import Decoding
from rrtf_serve.sampling import SamplerConfig
from training.records import ROLES

KINDS = ("engine", "url", "reference")
ENGINES = ("ct2", "torch")
REFERENCE = "reference"  # the prompt format that a reference's line names: it was asked nothing


@dataclass(frozen=True)
class Source:
    """One [[source]] table, or the flags of `rrtf-train sample`. Raises ValueError naming source and key.

    Temperature 0 is greedy and gives one answer; every other one gives `k`.
    """

    name: str  # of its files; letters, digits and ._-
    role: str  # "teacher" or "student"
    kind: str = "engine"
    model: str = ""  # a model spec, or the name at a URL ("": the first that it serves)
    engine: str = "ct2"
    url: str = ""
    api_key_env: str = ""  # the environment variable that holds the URL's key
    format: str = ""  # of the prompt; "": the run's, which the student is trained on
    k: int = 8  # answers to each problem at each temperature
    temperatures: tuple[float, ...] = (0.8,)
    top_p: float = 0.95
    max_tokens: int = 512
    seed: int = 0
    batch: int = 16  # rows decoded together, or requests at a time
    prompt_spread: int = 16  # tokens by which the prompts of a batch may differ (ct2)
    threads: int = 0
    device: str = "auto"
    dtype: str = "auto"  # of the torch engine
    quantization: str = "int8"  # of ct2, where the model must be converted

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ValueError(f"source {self.name!r}: --name may hold letters, digits, '.', '_' and '-'")
        self._known("role", ROLES)
        self._known("kind", KINDS)
        if self.kind == "reference":
            if self.model or self.url:
                raise ValueError(f"source {self.name}: a reference has neither --model nor --url")
            return
        self._known("engine", ENGINES)
        if self.format:
            self._known("format", tuple(FORMATS))
        if self.kind == "engine" and not self.model:
            raise ValueError(f"source {self.name}: --model is missing")
        if (self.kind == "url") != bool(self.url):
            raise ValueError(f"source {self.name}: --url and --kind url go together")
        if not 1 <= self.k <= 10_000:
            raise ValueError(f"source {self.name}: --k must be from 1 to 10000, not {self.k}")
        if not self.temperatures or len(set(self.temperatures)) < len(self.temperatures):
            raise ValueError(f"source {self.name}: --temperatures must be one or more, each once")
        try:
            self.decodings()
            self.sampler_config("" if self.url else None)
        except ValueError as error:
            raise ValueError(f"source {self.name}: {error}") from error

    def _known(self, key: str, known: tuple[str, ...]) -> None:
        value = getattr(self, key)
        if value not in known:
            raise ValueError(f"source {self.name}: --{key} {value}: must be one of {', '.join(known)}")

    def decodings(self) -> tuple[Decoding, ...]:
        """One for each temperature; none for a reference."""
        if self.kind == "reference":
            return ()
        return tuple(Decoding(float(t), self.top_p, self.max_tokens, self.seed) for t in self.temperatures)

    def run(self, suite: Suite, decoding: Decoding, run_format: str) -> Run:
        """What is drawn at one temperature. Raises ValueError where a problem can't be put in the format."""
        return Run(suite, self.format or run_format, decoding, self.k if decoding.temperature else 1)

    def sampler_config(self, api_key: str | None = None) -> SamplerConfig:
        """Raises ValueError naming the flag; for a URL, where the key's environment variable is not set."""
        if self.url and api_key is None and self.api_key_env:
            api_key = os.environ.get(self.api_key_env)
            if not api_key:
                raise ValueError(
                    f"source {self.name}: the environment variable {self.api_key_env} "
                    "(--api-key-env) is not set"
                )
        return SamplerConfig(
            model=self.model,
            engine="http" if self.url else self.engine,
            url=self.url or None,
            api_key=api_key or None,
            batch=self.batch,
            prompt_spread=self.prompt_spread,
            threads=self.threads,
            device=self.device,
            dtype=self.dtype,
            quantization=self.quantization,
        )

    @property
    def asked(self) -> str:
        """Who answers, in words: answers of another can't stand under this source's name."""
        if self.kind == "reference":
            return REFERENCE
        return (
            f"{self.model or 'the first model'} at {self.url}"
            if self.url
            else f"{self.model} on {self.engine}"
        )

    def stems(self) -> list[str]:
        """Of all its files."""
        return [self.stem(decoding) for decoding in self.decodings() or (None,)]

    def stem(self, decoding: Decoding | None) -> str:
        """Of the files that hold its answers; a reference has no decoding."""
        return self.name if decoding is None else f"{self.name}-t{decoding.temperature:g}"
