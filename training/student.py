"""The model that is trained: loaded, and written as a folder that can be served."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.folder import write_card
from rrtf_serve.models.source import Kind
from training.adapters import put_adapter
from training.fit import Student
from training.fit_options import AdapterOptions

# What a folder needs beside its weights and its configuration, where the source has it.
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
)  # fmt: skip


def load_model(
    student: Student, tuning: str, adapter: AdapterOptions, *, attention: str, half: torch.dtype | None
) -> Any:
    """A transformers model, or a PEFT model around one, to be trained.

    Weights that are trained are float32; those that are frozen are `half`, where that is given. Dropout is
    off: p_tea and p_stu are compared as the served model has them. Raises ModelError.
    """
    frozen = half if tuning != "full" and half is not None else torch.float32
    options: dict[str, Any] = {}
    if tuning == "qlora":
        four_bits: Any = transformers.BitsAndBytesConfig
        options["quantization_config"] = four_bits(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    try:
        config: Any = transformers.AutoConfig.from_pretrained(student.folder, local_files_only=True)
        for name in vars(config):
            if name.endswith(("dropout", "pdrop")):
                setattr(config, name, 0.0)
        causal: Any = transformers.AutoModelForCausalLM
        model, found = causal.from_pretrained(
            student.folder, config=config, dtype=frozen, attn_implementation=attention, use_safetensors=True,
            trust_remote_code=False, local_files_only=True, output_loading_info=True, **options,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise ModelError(f"{student.folder}: can't be loaded for training ({error})") from error
    missing = sorted(found["missing_keys"])
    if missing:  # transformers makes them up at random and only warns
        raise ModelError(f"{student.folder}: tensor {missing[0]} is missing; the folder is incomplete")
    return model if tuning == "full" else put_adapter(model, tuning, adapter)


def write_student(
    student: Student, model: Any, state: dict[str, torch.Tensor], folder: Path, *, made: dict[str, Any]
) -> None:
    """Write the trained model, complete or not at all, over what was there. `state`: its weights, by the
    model's own names. A PEFT model's adapter is written alone. `made`: for the card.
    """
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        if hasattr(model, "peft_config"):
            model.save_pretrained(fresh, state_dict=state)
            (fresh / "README.md").unlink(missing_ok=True)  # a template full of blanks
        else:
            whole = {
                name: value.to(torch.bfloat16) if value.is_floating_point() else value
                for name, value in state.items()
            }
            model.config.dtype = torch.bfloat16
            model.save_pretrained(fresh, state_dict=whole)
            generation = student.folder / "generation_config.json"
            if generation.is_file():
                shutil.copyfile(generation, fresh / generation.name)
            for name in _TOKENIZER_FILES:
                if (student.folder / name).is_file():
                    shutil.copyfile(student.folder / name, fresh / name)
            size = sum(path.stat().st_size for path in fresh.glob("*.safetensors"))
            origin = {"kind": str(Kind.HF), "origin": "rrtf-train fit", "base": student.card.source, **made}
            card = replace(
                student.card,
                quantization="bfloat16",
                size_bytes=size,
                source=origin,
                parity=None,
                recipe=None,
            )
            write_card(card, fresh)
        if folder.exists():
            shutil.rmtree(folder)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
