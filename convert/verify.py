"""What a conversion costs: a converted model against its source, over held-out code.

    found = verify(source, destination, Options())
    found.parity.mean_kl.value        # nats per token
    write_parity(destination.path, found.record)

The reference is the source itself, run by CTranslate2 in float32 (its weights unchanged; that this equals
transformers is tested in tests/test_convert.py). Neither torch nor transformers is needed. What is measured:
`parity`. On what: `held_out`. How much is allowed: `thresholds`.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from convert.held_out import HeldOut, held_out_windows, window_count
from convert.memory import available_memory
from convert.parity import FloatArray, Parity, Tally, first_difference, summarise, tally
from convert.provenance import check_plans, check_tokenizers, digest_warnings
from convert.runnable import DEVICES, Plan, Runnable, loaded, plan_run, quantization_of
from convert.thresholds import THRESHOLDS, failures, variant
from rrtf_serve.models.disk import require_room, size_text
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.folder import QUANTIZATIONS, read_card, write_card
from rrtf_serve.models.source import Source

_FIXED_MEMORY = 300 << 20  # interpreter, libraries, tokenizers and CTranslate2's own buffers
# Arrays of (positions, vocabulary) in float32 at the peak: both results, and a result while it is made.
_OUTPUTS = 3
# More than any known code model's; the true size is known only once the model is read.
_VOCABULARY = 200_000
_MOST_THREADS = 1024

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """Sizes count tokens. `prompts` greedy answers of `continuation` tokens are compared, each after the
    first half of a window. Raises ValueError naming the flag."""

    tokens: int = 4096
    length: int = 128
    prompts: int = 32
    continuation: int = 64
    seed: int = 0
    device: str = "cpu"
    reference_quantization: str = "float32"
    compute_type: str = "default"  # the model's; "float32" with int8 weights leaves the activations unrounded
    threads: int = 0  # 0: one per available core
    scratch: Path | None = None  # None: the system's temporary folder

    def __post_init__(self) -> None:
        window_count(self.tokens, self.length)
        for flag, value in (("--prompts", self.prompts), ("--continuation", self.continuation)):
            if value < 1:
                raise ValueError(f"{flag} is {value}; it must be at least 1")
        if not 0 <= self.threads <= _MOST_THREADS:
            raise ValueError(f"--threads is {self.threads}; it must be from 0 to {_MOST_THREADS}")
        if self.seed < 0:
            raise ValueError(f"--seed is {self.seed}; it must be at least 0")
        if self.scratch is not None and not self.scratch.is_dir():
            raise ValueError(f"--scratch {self.scratch}: no such folder")
        if self.device not in DEVICES:
            raise ValueError(f"--device {self.device!r} is unknown; known: {', '.join(DEVICES)}")
        if self.reference_quantization not in QUANTIZATIONS:
            known = ", ".join(QUANTIZATIONS)
            raise ValueError(f"--reference-quantization {self.reference_quantization!r}; known: {known}")


@dataclass(frozen=True)
class Verification:
    """`record` is what goes into the card. `variant` is a row of THRESHOLDS, empty where none applies."""

    parity: Parity
    variant: str
    failures: list[str]
    warnings: list[str]
    record: dict[str, Any]


def verify(source: Source, destination: Source, options: Options, *, progress: bool = True) -> Verification:
    """Measure `destination` against `source`.

    Raises ModelError on models that can't be read, compared or held in memory and disk, ValueError on sizes
    that the held-out text or the model's context can't serve.
    """
    with Reference.open(source, options, progress=progress, beside=destination) as reference:
        return reference.compare(destination)


class Reference:
    """A loaded reference, to compare one or several models with. Made by `open`."""

    def __init__(
        self,
        planned: Plan,
        runnable: Runnable,
        options: Options,
        folder: Path,
        progress: bool,
        *,
        keeps: bool,
    ) -> None:
        self.source, self.options, self.progress, self._keeps = planned.source, options, progress, keeps
        self._planned, self._runnable, self._folder = planned, runnable, folder
        card = runnable.card
        first = runnable.tokenizer.token_id(card.bos_token) if card and card.add_bos else None
        self._check_context()
        self.data: HeldOut = held_out_windows(
            runnable.tokenizer,
            tokens=options.tokens,
            length=options.length,
            seed=options.seed,
            first=first,
        )
        self._answers: list[list[int]] = []

    @classmethod
    @contextmanager
    def open(
        cls, source: Source, options: Options, *, progress: bool, beside: Source | None = None
    ) -> Iterator[Reference]:
        """Load `source`. Memory and disk are checked for it, and for the model `beside` it, before anything
        is written; what is written goes when the block ends.

        Without `beside` it is for several models: the reference's outputs are then kept on disk, so that it
        reads the text once.
        """
        planned = plan_run(source, options.reference_quantization, options.device)
        if planned.quantization != options.reference_quantization:
            raise ModelError(
                f"{source.path}: holds {planned.quantization} weights, which are no reference; name the "
                f"model it was made from, or say --reference-quantization {planned.quantization}"
            )
        plans = [planned]
        if beside is not None:
            plans.append(plan_run(beside, "float32", options.device))
            check_plans(*plans)
        scratch = options.scratch or Path(tempfile.gettempdir())
        _check_room(plans, scratch, options, kept_tokens=options.tokens if beside is None else 0)
        with tempfile.TemporaryDirectory(prefix="rrtf-verify-", dir=scratch) as name:
            folder = Path(name)
            with loaded(
                planned,
                folder / "reference",
                device=options.device,
                threads=options.threads,
                progress=progress,
            ) as runnable:
                yield cls(planned, runnable, options, folder, progress, keeps=beside is None)

    def compare(self, destination: Source, *, compute_type: str = "") -> Verification:
        """Measure `destination` against this reference, by default in the options' compute type. Raises as
        `verify` does."""
        options = self.options
        planned = plan_run(destination, "float32", options.device)
        check_plans(self._planned, planned)
        with loaded(
            planned,
            self._folder / "model",
            device=options.device,
            compute_type=compute_type or options.compute_type,
            threads=options.threads,
            progress=self.progress,
        ) as model:
            sample = self._runnable.tokenizer.decode(self.data.windows[0].ids)
            check_tokenizers(self._runnable, model, sample)
            tallies = self._tallies(model)
            parity = summarise(tallies.values(), self._differences(model), options.continuation, options.seed)
            return self._verification(destination, planned, model, parity)

    def _check_context(self) -> None:
        longest = self._runnable.positions
        needed = max(self.options.length, self.options.length // 2 + self.options.continuation)
        if longest and needed > longest:
            raise ValueError(
                f"--length {self.options.length} and --continuation {self.options.continuation} need "
                f"{needed} tokens of context, {self._runnable.name} has {longest}; make them smaller"
            )

    def _tallies(self, model: Runnable) -> dict[str, Tally]:
        """One tally per document, in the order in which they first occur."""
        found: dict[str, Tally] = {}
        with self._bar("comparing", len(self.data.windows) * self.options.length) as bar:
            for at, window in enumerate(self.data.windows):
                ids, following = window.ids[:-1], window.ids[1:]
                p, q = self._reference_output(at, ids), model.log_probabilities(ids)
                found[window.document] = found.get(window.document, Tally()) + tally(p, q, following)
                bar.update(len(ids))
        return found

    def _reference_output(self, at: int, ids: Sequence[int]) -> FloatArray:
        """The reference's log-probabilities over window `at`, (tokens, vocabulary)."""
        kept = self._folder / f"window{at}.npy"
        if kept.is_file():
            found: FloatArray = np.load(kept)
            return found
        made = self._runnable.log_probabilities(ids)
        if self._keeps:
            np.save(kept, made)
        return made

    def _differences(self, model: Runnable) -> list[int]:
        """Where the greedy answers first differ, per prompt."""
        options, card = self.options, self._runnable.card
        prompts = [window.ids[: options.length // 2] for window in self.data.windows[: options.prompts]]
        ends = card.end_tokens if card else []
        if not self._answers:  # the reference's are the same for every model
            with self._bar("reference, greedy", len(prompts)) as bar:
                for answer in self._runnable.greedy(prompts, options.continuation, ends):
                    self._answers.append(answer)
                    bar.update()
        found = []
        with self._bar("model, greedy", len(prompts)) as bar:
            answers = model.greedy(prompts, options.continuation, ends)
            for expected, answer in zip(self._answers, answers, strict=True):
                found.append(first_difference(expected, answer, options.continuation))
                bar.update()
        return found

    def _bar(self, what: str, total: int) -> Any:
        return tqdm(total=total, desc=what, disable=None if self.progress else True)

    def _verification(
        self, destination: Source, planned: Plan, model: Runnable, parity: Parity
    ) -> Verification:
        options = self.options
        card = read_card(destination.path) if destination.path.is_dir() else None
        stored = quantization_of(destination)
        row = variant(stored)
        threshold = THRESHOLDS.get(row)
        broken = failures(parity, threshold) if threshold else []
        warnings = digest_warnings(self.source, card)
        if options.reference_quantization != "float32":
            warnings.append(
                f"the reference is {options.reference_quantization}; its own rounding is in the figures"
            )
        record = {
            "reference": {
                "name": self.source.name,
                "file": self.source.path.name,
                "sha256": self.source.digest,
                "quantization": options.reference_quantization,
                "compute_type": self._runnable.compute_type,
            },
            "compute_type": model.compute_type,
            "device": model.device,
            "weights": "as stored" if planned.scratch_bytes == 0 else "exact, written as float32",
            "data": {
                "source": self.data.source,
                "sha256": self.data.digest,
                "tokens": len(self.data.windows) * options.length,
                "length": options.length,
            },
            "seed": options.seed,
            **parity.record(),
            "variant": row,
            "threshold": threshold.record() if threshold else None,
            "failures": broken,
            "warnings": warnings,
            "tools": {tool: version(tool) for tool in ("rrtf-serve", "ctranslate2", "numpy")},
        }
        return Verification(parity, row, broken, warnings, record)


def _check_room(plans: list[Plan], scratch: Path, options: Options, *, kept_tokens: int) -> None:
    """Say what will be needed, and raise ModelError where it is not there."""
    disk = sum(planned.scratch_bytes for planned in plans) + 4 * kept_tokens * _VOCABULARY
    outputs = _OUTPUTS * 4 * options.length * _VOCABULARY
    # One after the other: what is loaded stays while the next one is loaded.
    loaded_before = [sum(planned.loaded_bytes for planned in plans[:at]) for at in range(len(plans) + 1)]
    loading = [each.loading_bytes + before for each, before in zip(plans, loaded_before, strict=False)]
    memory = max(*loading, loaded_before[-1] + outputs) + _FIXED_MEMORY
    where = "GPU and main memory together" if options.device == "cuda" else "memory"
    logger.info(
        "Needs about %s of %s, and %s of disk in %s meanwhile.",
        size_text(memory),
        where,
        size_text(disk),
        scratch,
    )
    require_room(scratch, disk, "name another folder with --scratch")
    available = available_memory()
    if options.device == "cpu" and available is not None and memory > available:
        raise ModelError(
            f"verifying needs about {size_text(memory)} of memory, {size_text(available)} are available; "
            "take --reference-quantization int8 (a quarter of the memory; its own rounding is then in the "
            "figures), a GPU with --device cuda, or a shorter --length"
        )


def write_parity(folder: Path, record: dict[str, Any]) -> bool:
    """Put a verification's record into the folder's card, whole or not at all; False where it has no card."""
    card = read_card(folder) if folder.is_dir() else None
    if card is None:
        return False
    write_card(replace(card, parity=record), folder)
    return True
