"""The training loop, on `accelerate`: one CPU, one GPU, DDP, FSDP and DeepSpeed run it unchanged.

The gradient of a step is that of the mean loss over its batch of tuples, however the batch is cut into
forward passes and shared among processes.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import accelerate  # type: ignore[import-untyped]  # ships no type information
import torch
from torch import Tensor

from rrtf_serve.models.errors import ModelError
from training import checkpoint
from training.adapters import check_tuning
from training.encoding import Encoded
from training.fit import Work
from training.fit_options import FitOptions
from training.history import History
from training.loss import Terms, loss_terms
from training.packing import Rows, micro_batches, pack
from training.schedule import share
from training.scorer import Scorer, score_rows
from training.student import load_model, write_student

# What is summed over a batch, in this order.
_SUMS = (
    "loss", "rank", "ft", "tuples", "p_chosen", "p_tea", "p_stu", "active", "ordered", "pairs", "tokens",
    "answer_tokens",
)  # fmt: skip


def train(options: FitOptions, work: Work, resolved: dict[str, Any]) -> dict[str, Any]:
    """Every step that is still to be done; the report. Raises ModelError."""
    last = options.output / "last"
    folder = options.output / "checkpoints"
    steps = work.schedule.steps
    report = {
        "folder": str(last), "steps": steps, "tuples": len(work.items), "too_long": len(work.left_out),
        "model": work.student.card.name, "method": options.method,
    }  # fmt: skip
    if last.is_dir():
        return report | {"steps_now": 0}
    if options.threads:
        torch.set_num_threads(options.threads)
    trainer = Trainer(options, work)
    start = checkpoint.latest(folder) or 0
    with _told_what_to_change(options), ExitStack() as stack:
        stack.callback(trainer.close)
        if start:
            checkpoint.load(trainer.accelerator, folder, start)
        history = None
        if trainer.accelerator.is_main_process:
            history = History(options.output, start, steps)
            stack.callback(history.close)
        stop = stack.enter_context(_stop_flag())
        for step in range(start, steps):
            values = trainer.step(step)
            if history is not None:
                history.add(step + 1, values)
            stopping = trainer.any(stop.asked is not None)
            due = options.checkpoint_every and (step + 1) % options.checkpoint_every == 0
            if step + 1 < steps and (stopping or due):
                checkpoint.save(trainer.accelerator, folder, step + 1, options.keep)
            if stopping and stop.asked is not None and step + 1 < steps:
                stop.leave()
        trainer.write(last, work, resolved)
        checkpoint.clear(trainer.accelerator, folder)
    return report | {"steps_now": steps - start}


class Trainer:
    """Model and optimiser, and a step of them."""

    def __init__(self, options: FitOptions, work: Work) -> None:
        """Raises ModelError."""
        cpu = options.device == "cpu" or not torch.cuda.is_available()
        mixed = "bf16" if options.precision == "bf16" else "no"
        self.accelerator = accelerate.Accelerator(mixed_precision=mixed, cpu=cpu)
        check_tuning(options.tune, self.accelerator.device)
        half = torch.bfloat16 if mixed == "bf16" else None
        model = load_model(
            work.student, options.tune, options.adapter(), attention=options.attention, half=half
        )
        if options.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            if options.tune != "full":
                model.enable_input_require_grads()
        self._options, self._work, self._loss = options, work, options.loss()
        scorer = Scorer(model, options.row_layout).train()
        trained = [weight for weight in scorer.parameters() if weight.requires_grad]
        optimiser = torch.optim.AdamW(trained, lr=1.0, weight_decay=options.weight_decay)
        self.scorer, self.optimiser = self.accelerator.prepare(scorer, optimiser)

    def close(self) -> None:
        """Give the memory back, and let the next run of this process choose its own precision."""
        self.accelerator.free_memory()
        # There is no public way: the state is one for the whole process and refuses other settings.
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)

    def step(self, step: int) -> dict[str, Any]:
        """Step 0..; what the log says of it. Raises ModelError where loss or gradient is not finite."""
        began = time.monotonic()
        schedule, world = self._work.schedule, self.accelerator.num_processes
        batch = [self._work.items[at] for at in schedule.rows(step)]
        lr = schedule.learning_rate(step)
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        sums = torch.zeros(len(_SUMS), dtype=torch.float64)
        passes = self._passes(batch)
        for number, (items, counts) in enumerate(passes, 1):
            rows = pack(items, self._options.row_layout).to(self.accelerator.device)
            final = number == len(passes)
            self.accelerator.sync_gradients = final
            with nullcontext() if final else self.accelerator.no_sync(self.scorer):
                terms = loss_terms(score_rows(self.scorer, rows), rows, self._loss)
                # DDP and its kin average over processes what is to be summed.
                loss = terms.total.sum() * (world / len(batch) * counts)
                self.accelerator.backward(loss)
            if counts:
                sums += _sums(terms, rows)
        sums = self.accelerator.reduce(sums.to(self.accelerator.device), "sum").cpu()
        _check_finite(sums[:3].tolist(), step + 1, "loss", lr)
        norm = self.accelerator.clip_grad_norm_(self.scorer.parameters(), self._options.clip)
        norm = None if norm is None else float(norm)
        if norm is not None:
            _check_finite([norm], step + 1, "gradient", lr)
        self.optimiser.step()
        self.optimiser.zero_grad()
        seconds = time.monotonic() - began
        return {
            "epoch": step // schedule.steps_per_epoch,
            **_means(sums),
            "lr": lr,
            "grad_norm": norm,
            "seconds": round(seconds, 3),
            "tokens_per_s": round(float(sums[_SUMS.index("tokens")]) / seconds, 1),
        }

    def any(self, flag: bool) -> bool:
        """Of all processes."""
        if self.accelerator.num_processes == 1:
            return flag
        found = self.accelerator.reduce(torch.tensor(float(flag), device=self.accelerator.device), "sum")
        return bool(found > 0)

    def write(self, folder: Any, work: Work, resolved: dict[str, Any]) -> None:
        """The model as it is now."""
        self.accelerator.wait_for_everyone()
        state = self.accelerator.get_state_dict(self.scorer)
        if self.accelerator.is_main_process:
            inner = self.accelerator.unwrap_model(self.scorer).model
            plain = {name.removeprefix("model."): value for name, value in state.items()}
            made = {name: resolved[name] for name in ("method", "tuples_sha256", "seed", "lr", "steps")}
            write_student(work.student, inner, plain, folder, made=made)
        self.accelerator.wait_for_everyone()

    def _passes(self, batch: list[Encoded]) -> list[tuple[list[Encoded], int]]:
        """This process's forward passes, and whether each counts: where another process has more of them, the
        last are idle, because all must take part in each."""
        world, budget, layout = (
            self.accelerator.num_processes, self._options.micro_tokens, self._options.row_layout,
        )  # fmt: skip
        longest_first = sorted(batch, key=lambda item: (-item.shared_tokens, item.name))
        plans = [micro_batches(share(longest_first, rank, world), budget, layout) for rank in range(world)]
        most = max(map(len, plans))
        mine = [(items, 1) for items in plans[self.accelerator.process_index]]
        return mine + [([longest_first[-1]], 0)] * (most - len(mine))


def _sums(terms: Terms, rows: Rows) -> Tensor:
    gap, p = terms.gap.detach(), terms.p.detach()
    values = (
        terms.total.detach().sum(), terms.rank.detach().sum(), terms.ft.detach().sum(), len(rows.chosen),
        p[rows.chosen].sum(), p[rows.teacher].sum(), p[rows.student].sum(), (gap < 0).sum(),
        (gap > 0).sum(), len(gap), rows.tokens, len(rows.targets),
    )  # fmt: skip
    return torch.tensor([float(value) for value in values], dtype=torch.float64)


def _means(sums: Tensor) -> dict[str, float | int | None]:
    total = dict(zip(_SUMS, sums.tolist(), strict=True))
    tuples, pairs = total["tuples"], total["pairs"]
    means: dict[str, float | int | None] = {
        name: total[name] / tuples for name in ("loss", "rank", "ft", "p_chosen")
    }
    means |= {
        name: total[name] / pairs if pairs else None for name in ("p_tea", "p_stu", "active", "ordered")
    }
    return means | {name: int(total[name]) for name in ("tuples", "pairs", "tokens", "answer_tokens")}


def _check_finite(values: Sequence[float], step: int, what: str, lr: float) -> None:
    """Raises ModelError saying what to change."""
    if not all(abs(value) < float("inf") for value in values):  # written so that NaN fails it
        raise ModelError(
            f"step {step}: the {what} is not finite. Lower --lr (now {lr:g}), try --precision fp32, or "
            "--attention eager where an attention kernel is at fault; the same command goes on from the last "
            "checkpoint, with changed settings give another --output"
        )


@dataclass
class _Stop:
    """Which signal asks to stop, and what would have handled it."""

    asked: int | None = None
    before: dict[int, Any] = field(default_factory=dict)

    def ask(self, number: int, _: FrameType | None) -> None:
        if self.asked is not None:  # a second one doesn't wait for the step
            self.leave()
        self.asked = number

    def leave(self) -> None:
        """Hand the signal on to who would have had it."""
        assert self.asked is not None
        signal.signal(self.asked, self.before[self.asked])
        signal.raise_signal(self.asked)


@contextmanager
def _stop_flag() -> Iterator[_Stop]:
    """Ctrl-C and SIGTERM let the step end and the checkpoint be written."""
    stop = _Stop()
    for number in (int(signal.SIGINT), int(signal.SIGTERM)):
        stop.before[number] = signal.signal(number, stop.ask)
    try:
        yield stop
    finally:
        for number, handler in stop.before.items():
            signal.signal(number, handler)


@contextmanager
def _told_what_to_change(options: FitOptions) -> Iterator[None]:
    """Out of memory, in words."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ModelError(
            f"out of memory: lower --micro-tokens (now {options.micro_tokens}), add "
            f"--gradient-checkpointing, or take --tune lora ({error})"
        ) from error
