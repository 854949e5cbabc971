"""LoRA: which layers of each family take an adapter, and how it is put on.

QLoRA (arXiv 2305.14314) is the same over a base held in 4 bits by bitsandbytes, which needs CUDA.
"""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import torch

from rrtf_serve.models.errors import ModelError
from training.fit_options import AdapterOptions

_LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Every linear layer but the output matrix, by model_type.
TARGETS: dict[str, tuple[str, ...]] = {
    "gpt_bigcode": ("c_attn", "c_proj", "c_fc"),
    "starcoder2": ("q_proj", "k_proj", "v_proj", "o_proj", "c_fc", "c_proj"),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "phi3": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
}


def check_tuning(tuning: str, device: torch.device) -> None:
    """Raises ModelError where this machine can't do it."""
    if tuning == "qlora" and device.type != "cuda":
        raise ModelError(
            "--tune qlora needs a CUDA GPU: bitsandbytes has no 4-bit kernels elsewhere; use lora"
        )
    if tuning == "qlora" and importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError("--tune qlora needs bitsandbytes: pip install bitsandbytes")


def without_adapter(model: Any) -> Any:
    """The causal language model itself, where PEFT is around it."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def put_adapter(model: Any, tuning: str, options: AdapterOptions) -> Any:
    """The model with a fresh LoRA on it, all else frozen. Raises ModelError on a family without targets."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training  # noqa: PLC0415  # slow

    targets = TARGETS.get(model.config.model_type)
    if targets is None:
        raise ModelError(
            f"--tune {tuning}: no LoRA targets are known for {model.config.model_type}; known: "
            f"{', '.join(TARGETS)}"
        )
    if tuning == "qlora":
        prepare: Any = prepare_model_for_kbit_training
        model = prepare(model, use_gradient_checkpointing=False)
    settings = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=0.0,
        target_modules=list(targets),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft asks transformers by names that are deprecated from 5.23 on.
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, settings)
