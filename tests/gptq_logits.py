"""What a loader makes of GPTQ folders, under whatever Python has it: `python gptq_logits.py LOADER SPEC`.

LOADER: transformers, gptqmodel or auto-gptq. SPEC is a JSON file: a list of {"folder", "ids", "out"}; `ids`
are rows of token ids of one length, and `out` takes an .npz: `logits` (rows, tokens, vocabulary), and each
quantised matrix under its name (outputs, inputs), read off by sending the identity through its module. All
compute in float32, but for gptqmodel, which takes float16.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

import numpy as np
import torch


def by_transformers(folder: str) -> Any:
    from transformers import AutoModelForCausalLM, GPTQConfig

    bits = json.loads((Path(folder) / "quantize_config.json").read_text("utf-8"))["bits"]
    return AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        device_map="cpu",
        quantization_config=GPTQConfig(bits=bits, backend="gptq_torch"),
    )


def by_gptqmodel(folder: str) -> Any:
    from gptqmodel import BACKEND, GPTQModel

    return GPTQModel.load(folder, device="cpu", backend=BACKEND.GPTQ_TORCH, dtype=torch.float16).model


def by_auto_gptq(folder: str) -> Any:
    from auto_gptq import AutoGPTQForCausalLM

    return AutoGPTQForCausalLM.from_quantized(
        folder, device="cpu", torch_dtype=torch.float32, use_safetensors=True, use_cuda_fp16=False
    ).model


LOADERS = {"transformers": by_transformers, "gptqmodel": by_gptqmodel, "auto-gptq": by_auto_gptq}


def matrix(module: Any, dtype: torch.dtype) -> np.ndarray:
    inputs = getattr(module, "in_features", None) or module.infeatures
    result = module(torch.eye(inputs, dtype=dtype))
    if module.bias is not None:
        result = result - module(torch.zeros(1, inputs, dtype=dtype))
    return result.float().numpy().T


def main(loader: str, spec: str) -> None:
    for item in json.loads(Path(spec).read_text("utf-8")):
        model = LOADERS[loader](item["folder"]).eval()
        dtype = next(model.parameters()).dtype
        with torch.no_grad():
            logits = model(torch.tensor(item["ids"]), use_cache=False).logits.float().numpy()
            found = {n: matrix(m, dtype) for n, m in model.named_modules() if hasattr(m, "qweight")}
        np.savez(item["out"], logits=logits, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
