"""The training loop, on `accelerate`: one CPU, one GPU, DDP, FSDP and DeepSpeed run it unchanged.

The gradient of a step is that of the mean loss over its batch of tuples, however the batch is cut into
forward passes and shared among processes.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import accelerate  # type: ignore[import-untyped]  # ships no type information
import torch
from torch import Tensor
from torch._dynamo.exc import BackendCompilerFailed

from rrtf_serve.engine.heap import trim_memory
from rrtf_serve.engine.torch.batch import is_out_of_memory
from rrtf_serve.models.errors import ModelError
from training import checkpoint
from training.adapters import check_tuning
from training.best import Best, best_of
from training.dpo import Reference, dpo_terms, reference_sums
from training.encoding import Encoded
from training.fit import Work
from training.fit_options import FitOptions
from training.history import History
from training.interruption import stop_flag
from training.loss import Terms, loss_terms
from training.packing import Rows, micro_batches, pack
from training.schedule import share
from training.scorer import Scorer, score_rows
from training.student import compile_layers, load_model, merged_state, write_student
from training.validation import Validation

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
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed before it could
        return report | _found_best(options) | {"steps_now": 0}
    if options.threads:
        torch.set_num_threads(options.threads)
    with _told_what_to_change(options), ExitStack() as stack:
        trainer = Trainer(options, work)
        stack.callback(trainer.close)
        start = checkpoint.latest(folder) or 0
        history, best = None, None
        if trainer.accelerator.is_main_process:
            if (
                options.validate is not None
            ):  # first of all: hours of training must not end in "no sandbox here"
                best = stack.enter_context(_best(options, work))
            history = History(options.output, start, steps)
            stack.callback(history.close)
        if start:
            checkpoint.load(trainer.accelerator, folder, start)
        stop = stack.enter_context(stop_flag())
        if start and _validates(options, work, start):  # perhaps stopped in the middle of that one
            with stop.at_once():
                _validate(trainer, options.output, start, best, resolved)
        for step in range(start, steps):
            values = trainer.step(step)
            if history is not None:
                history.add(step + 1, values)
            stopping = trainer.any(stop.asked is not None)
            validates = _validates(options, work, step + 1)
            due = options.checkpoint_every and (step + 1) % options.checkpoint_every == 0
            # Before a validation too, which takes minutes and needn't be waited for.
            if validates or (step + 1 < steps and (stopping or due)):
                checkpoint.save(trainer.accelerator, folder, step + 1, options.keep)
            if stopping and stop.asked is not None and (validates or step + 1 < steps):
                stop.leave()
            if validates:
                with stop.at_once():
                    _validate(trainer, options.output, step + 1, best, resolved)
        trainer.write(last, resolved)
        checkpoint.clear(trainer.accelerator, folder)
    return report | _found_best(options) | {"steps_now": steps - start}


@contextmanager
def _best(options: FitOptions, work: Work) -> Iterator[Best]:
    validation = Validation(options, work.student.folder, work.prompt_format)
    try:
        best = Best(options.output, validation)
        try:
            yield best
        finally:
            best.close()
    finally:
        validation.close()


def _validates(options: FitOptions, work: Work, step: int) -> bool:
    """Whether a validation follows step 1..; where there are any, one follows the last."""
    if options.validate is None:
        return False
    every = options.validate_every or work.schedule.steps_per_epoch
    return step % every == 0 or step == work.schedule.steps


def _validate(trainer: Trainer, folder: Path, step: int, best: Best | None, resolved: dict[str, Any]) -> None:
    """Every process writes its part of the model; the first scores it."""
    candidate, merged = folder / ".candidate", folder / ".merged"
    trainer.write(candidate, resolved)
    adapted = trainer.adapted
    if adapted:
        trainer.write(merged, resolved, merged=True)
    if best is not None:
        best.consider(step, candidate, merged if adapted else candidate)
        for path in (candidate, merged):
            shutil.rmtree(path, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()


def _found_best(options: FitOptions) -> dict[str, Any]:
    if options.validate is None:
        return {}
    found = best_of(options.output)
    return {"validated_by": options.validate, **found}


class Trainer:
    """Model and optimiser, and a step of them."""

    def __init__(self, options: FitOptions, work: Work) -> None:
        """Raises ModelError."""
        mixed = "bf16" if options.precision == "bf16" else "no"
        # Without a GPU processes find each other only where the CPU is asked for.
        cpu = options.device == "cpu" or not torch.cuda.is_available()
        if options.device == "cuda" and cpu:
            raise ModelError(
                "--device cuda: torch finds no CUDA device on this machine, or is a CPU build; take cpu"
            )
        self.accelerator = accelerate.Accelerator(
            mixed_precision=mixed,
            cpu=cpu,
            # Given, because a launcher's own setting would divide each gradient once more.
            gradient_accumulation_plugin=accelerate.utils.GradientAccumulationPlugin(num_steps=1),
        )
        deepspeed = self.accelerator.state.deepspeed_plugin
        if deepspeed is not None:  # which asks for a batch size, though the loop makes its own batches
            deepspeed.deepspeed_config["train_micro_batch_size_per_gpu"] = 1
            deepspeed.deepspeed_config["gradient_accumulation_steps"] = 1
            deepspeed.deepspeed_config["gradient_clipping"] = options.clip
        check_tuning(options.tune, self.accelerator.device)
        torch.manual_seed(options.seed)  # adapters begin at random
        half = torch.bfloat16 if mixed == "bf16" else None
        model = load_model(
            work.student, options.tune, options.adapter(), attention=options.attention, half=half
        )
        if options.gradient_checkpointing:
            # transformers 5.23 deprecates the second name.
            enable = (
                getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            )
            enable({"use_reentrant": False})
            if options.tune != "full":
                model.enable_input_require_grads()
        if options.compile:
            compile_layers(model)
        self._options, self._work = options, work
        sharded = str(self.accelerator.distributed_type.value) in ("FSDP", "DEEPSPEED")
        scorer = Scorer(model, options.row_layout, sharded=sharded).train()
        trained = [weight for weight in scorer.parameters() if weight.requires_grad]
        optimiser = torch.optim.AdamW(trained, lr=1.0, weight_decay=options.weight_decay)
        self.scorer, self.optimiser = self.accelerator.prepare(scorer, optimiser)
        self._reference: Reference | None = None
        if options.method == "dpo":  # before a checkpoint is loaded: the reference is the model as it came
            self._reference = reference_sums(
                self.scorer, work.items, options.micro_tokens, options.row_layout, self.accelerator.device
            )

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
                terms = self._terms(score_rows(self.scorer, rows), rows, items)
                # DDP and its kin average over processes what is to be summed.
                loss = terms.total.sum() * (world / len(batch) * counts)
                self.accelerator.backward(loss)
            if counts:
                sums += _sums(terms, rows, self._options.margin)
        sums = self.accelerator.reduce(sums.to(self.accelerator.device), "sum").cpu()
        _check_finite(sums[:3].tolist(), step + 1, "loss", lr)
        norm = self.accelerator.clip_grad_norm_(self.scorer.parameters(), self._options.clip)
        norm = None if norm is None else float(norm)
        if norm is not None:
            _check_finite([norm], step + 1, "gradient", lr)
        self.optimiser.step()
        self.optimiser.zero_grad()
        trim_memory()  # rows of ever other lengths leave holes in the heap that grow from step to step
        seconds = time.monotonic() - began
        return {
            "epoch": step // schedule.steps_per_epoch,
            **_means(sums),
            "lr": lr,
            "grad_norm": norm,
            "seconds": round(seconds, 3),
            "tokens_per_s": round(float(sums[_SUMS.index("tokens")]) / seconds, 1),
        }

    def _terms(self, sums: Tensor, rows: Rows, items: list[Encoded]) -> Terms:
        if self._reference is not None:
            return dpo_terms(sums, rows, items, self._reference, self._options.beta)
        return loss_terms(sums, rows, self._options.loss())

    def any(self, flag: bool) -> bool:
        """Of all processes."""
        if self.accelerator.num_processes == 1:
            return flag
        found = self.accelerator.reduce(torch.tensor(float(flag), device=self.accelerator.device), "sum")
        return bool(found > 0)

    @property
    def adapted(self) -> bool:
        return self._options.tune != "full"

    def write(self, folder: Path, resolved: dict[str, Any], *, merged: bool = False) -> None:
        """The model as it is now; an adapter alone, or `merged` into the whole model. `resolved`: what the
        card may say of how it was made."""
        self.accelerator.wait_for_everyone()
        state = self.accelerator.get_state_dict(self.scorer)
        if self.accelerator.is_main_process:
            inner = self.accelerator.unwrap_model(self.scorer).model
            if merged:
                plain = merged_state(inner)
            else:
                plain = {name.removeprefix("model."): value for name, value in state.items()}
            made = {name: resolved[name] for name in ("method", "tuples_sha256", "seed", "lr", "steps")}
            write_student(self._work.student, inner, plain, folder, made=made, merged=merged)
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


def _sums(terms: Terms, rows: Rows, margin: float) -> Tensor:
    gap, p = terms.gap.detach(), terms.p.detach()
    values = (
        terms.total.detach().sum(), terms.rank.detach().sum(), terms.ft.detach().sum(), len(rows.chosen),
        p[rows.chosen].sum(), p[rows.teacher].sum(), p[rows.student].sum(), (gap < margin).sum(),
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


@contextmanager
def _told_what_to_change(options: FitOptions) -> Iterator[None]:
    """Out of memory, or without a compiler, in words."""
    try:
        yield
    except BackendCompilerFailed as error:
        reason = str(error.inner_exception).strip().partition("\n")[0]
        raise ModelError(
            f"--compile: torch.compile failed ({reason}); it needs a C++ compiler, on a GPU Triton. Leave "
            "--compile out, or install one"
        ) from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ModelError(
            f"out of memory: lower --micro-tokens (now {options.micro_tokens}) or, where single tuples are "
            f"longer, --max-tokens (now {options.max_tokens}); add --gradient-checkpointing, or take --tune "
            f"lora. Once there is a checkpoint, changed settings need another --output ({error})"
        ) from error
