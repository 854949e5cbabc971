"""Training steps against the clock, in a child of `rrtf-bench training-speed`.

All sides take the same tuples in the same batches, cut into the same rows of tokens:

rrtf      this project's step: block mask, positions that go on from the prompt, chunked log-probabilities
sft       the same with the rank loss off: what L_rank itself costs
plain     SFT as transformers does it: its own forward with labels on every answer token, plain causal mask,
          logits of the whole row
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from training.fit import Work, prepare
from training.fit_options import FitOptions
from training.loop import Trainer
from training.packing import PADDING, micro_batches, pack

SIDES = ("rrtf", "sft", "plain")
_IGNORED = -100  # a label that transformers leaves out of its loss


def time_steps(settings: dict[str, Any]) -> dict[str, Any]:
    """settings: side, warmup, steps, options (fields of FitOptions). `seconds` and `tokens` of each step
    after the warm-up; tokens without padding. Raises ValueError, ModelError."""
    given = settings["options"]
    options = FitOptions(**{**given, "tuples": Path(given["tuples"]), "output": Path(given["output"])})
    if settings["side"] == "sft":
        options = replace(options, rank_weight=0.0)
    work = prepare(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    trainer = Trainer(options, work)
    seconds: list[float] = []
    tokens: list[int] = []
    for step in range(settings["warmup"] + settings["steps"]):
        began = time.perf_counter()
        if settings["side"] == "plain":
            count = plain_step(trainer, work, options, step)
        else:
            count = trainer.step(step)["tokens"]
        if trainer.accelerator.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        tokens.append(count)
    device = str(trainer.accelerator.device)
    trainer.close()
    kept = settings["warmup"]
    return {"seconds": seconds[kept:], "tokens": tokens[kept:], "device": device}


def plain_step(trainer: Trainer, work: Work, options: FitOptions, step: int) -> int:
    """Cross-entropy of every answer token by transformers' own loss; the tokens of the batch."""
    accelerator = trainer.accelerator
    model = accelerator.unwrap_model(trainer.scorer).model
    for group in trainer.optimiser.param_groups:
        group["lr"] = work.schedule.learning_rate(step)
    batch = [work.items[at] for at in work.schedule.rows(step)]
    passes = micro_batches(batch, options.micro_tokens, options.row_layout)
    count = 0
    for items in passes:
        rows = pack(items, options.row_layout).to(accelerator.device)
        labels = torch.where(rows.segments > 0, rows.ids, _IGNORED)
        with accelerator.autocast():
            loss = model(
                input_ids=rows.ids, attention_mask=(rows.segments != PADDING).long(), labels=labels,
                use_cache=False,
            ).loss  # fmt: skip
        accelerator.backward(loss / len(passes))
        count += rows.tokens
    float(accelerator.clip_grad_norm_(trainer.scorer.parameters(), options.clip))
    trainer.optimiser.step()
    trainer.optimiser.zero_grad()
    return count
