"""Sampling against the clock, in a child of `rrtf-bench training-speed`.

ct2, torch     this project's engines, as `rrtf-train sample` uses them: many rows at a time, each kept
transformers   `generate` on one prompt at a time, with the same prompts, temperature and length limit
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rrtf_serve.models.prompts import prompts_of
from rrtf_serve.models.tokens import Tokenizer
from rrtf_serve.problems.evaluate import Run, draw
from rrtf_serve.problems.origins import json_lines
from rrtf_serve.problems.problem import Suite
from rrtf_serve.problems.prompts import render
from rrtf_serve.problems.samplers import Decoding
from rrtf_serve.problems.suites import load_suite
from rrtf_serve.sampling import SamplerConfig, open_sampler

SIDES = ("ct2", "torch", "transformers")
WARMUP_TOKENS = 8


def time_sampling(settings: dict[str, Any]) -> dict[str, Any]:
    """settings: side, model, problems, format, limit, k, decoding, batch, threads, device, dtype,
    quantization, file (of the samples), data_dir. `samples`, `tokens` and `seconds` without loading.

    Raises ValueError, ModelError, SamplerError.
    """
    data_dir = Path(settings["data_dir"]) if settings["data_dir"] else None
    suite = load_suite(settings["problems"], data_dir)
    decoding = Decoding(**settings["decoding"])
    k = settings["k"] if decoding.temperature else 1
    run = Run(suite, settings["format"], decoding, k, settings["limit"])
    return _generate(settings, run) if settings["side"] == "transformers" else _sample(settings, run)


def _sample(settings: dict[str, Any], run: Run) -> dict[str, Any]:
    torch_side = settings["side"] == "torch"
    config = SamplerConfig(
        model=settings["model"],
        engine=settings["side"],
        batch=settings["batch"],
        threads=settings["threads"],
        device=settings["device"],
        dtype=settings["dtype"] if torch_side else "auto",
        quantization=settings["quantization"],
    )
    file = Path(settings["file"])
    with open_sampler(config) as sampler:
        first = run.problems[0]
        alone = Suite(run.suite.name, {first.task_id: first})
        warm = file.with_name(f"{file.stem}-warm.jsonl")
        draw(sampler, Run(alone, run.format, Decoding(max_tokens=WARMUP_TOKENS)), warm)
        warm.unlink()
        began = time.perf_counter()
        draw(sampler, run, file)
        seconds = time.perf_counter() - began
        described = sampler.settings()
    records = [record for _, record in json_lines(file)]
    tokens = sum(record["tokens"] or 0 for record in records)
    return {"samples": len(records), "tokens": tokens, "seconds": seconds, "settings": described}


def _generate(settings: dict[str, Any], run: Run) -> dict[str, Any]:
    # The other sides have no use for them.
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    from training.encoding import Encoder  # noqa: PLC0415
    from training.fit import find_student  # noqa: PLC0415

    if settings["threads"]:
        torch.set_num_threads(settings["threads"])
    student = find_student(settings["model"])
    encoder = Encoder.load(student.folder, student.card)
    ends = _ends(student.folder, student.card, chat=settings["format"].startswith("chat"))
    cuda = settings["device"] != "cpu" and torch.cuda.is_available()
    causal: Any = transformers.AutoModelForCausalLM
    model = causal.from_pretrained(
        student.folder,
        dtype=getattr(torch, settings["dtype"]),
        local_files_only=True,
        trust_remote_code=False,
    )
    model = model.to("cuda" if cuda else "cpu").eval()
    decoding = run.decoding
    chosen: dict[str, Any] = {"do_sample": False}
    if decoding.temperature:
        chosen = {"do_sample": True, "temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0}
    prompts = [torch.tensor([encoder.prompt(render(each, run.format))]) for each in run.problems]

    def generated(ids: torch.Tensor, most: int) -> int:
        ids = ids.to(model.device)
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, eos_token_id=ends,
                pad_token_id=ends[0], **chosen,
            )  # fmt: skip
        return int(out.shape[1] - ids.shape[1])

    generated(prompts[0], WARMUP_TOKENS)
    began = time.perf_counter()
    tokens = sum(generated(ids, decoding.max_tokens) for ids in prompts for _ in range(run.n))
    seconds = time.perf_counter() - began
    return {
        "samples": len(prompts) * run.n,
        "tokens": tokens,
        "seconds": seconds,
        "settings": {"engine": "transformers", "batch": 1, "dtype": settings["dtype"]},
    }


def _ends(folder: Path, card: Any, *, chat: bool) -> list[int]:
    prompts = prompts_of(card, Tokenizer.load(folder))
    return sorted(prompts.chat_end_ids if chat else prompts.completion_end_ids)
