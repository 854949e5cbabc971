"""A Hugging Face folder loaded as a transformers model, with the attention of this engine.

Read are safetensors only; no code of the folder runs. On CUDA gptqmodel reads GPTQ folders and brings the
kernels too; on a CPU they are dequantised here, for what the compiled kernels (`native`) don't run.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from rrtf_serve.engine.torch import DTYPES, attention
from rrtf_serve.engine.torch.tensors import Tensors, check_finite, missing
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.gptq import (
    GptqSettings,
    Layer,
    consecutive_groups,
    dequantise,
    read_settings,
    unpack_zeros,
)
from rrtf_serve.models.records import Record
from rrtf_serve.models.source import Kind, detect_kind

ARCHITECTURES = ("gpt_bigcode", "llama", "qwen2", "starcoder2")


@contextmanager
def quiet() -> Iterator[None]:
    """Without what transformers reports and torch warns of while a model is opened: what of it matters is
    checked here and said in the user's words. And without a progress bar in a log file."""
    reports: Any = transformers.utils.logging
    before = reports.get_verbosity()
    reports.set_verbosity_error()
    if not sys.stderr.isatty():
        reports.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(torch|transformers|huggingface_hub)(\.|$)")
            yield
    finally:
        reports.set_verbosity(before)


@quiet()  # torch built for CUDA warns where there is no driver
def pick_device(device: str) -> torch.device:
    """Raises ValueError naming the flag where this machine has no such device."""
    if device not in {"auto", "cpu", "cuda"}:
        raise ValueError(f"--device {device}: choose cpu, cuda or auto")
    found = torch.cuda.is_available()
    if device == "cuda" and not found:
        raise ValueError(
            "--device cuda: torch finds no CUDA device on this machine (or is a CPU build); use cpu or auto"
        )
    return torch.device("cuda" if found and device != "cpu" else "cpu")


def pick_dtype(dtype: str, stored: str, device: torch.device) -> torch.dtype:
    """`stored`: the type that config.json names, or "". auto: as stored, but no float16 on a CPU, where it is
    slow: bfloat16 then. Raises ValueError naming the flag."""
    if dtype not in DTYPES:
        raise ValueError(f"--dtype {dtype}: choose {', '.join(DTYPES)}")
    name = (stored if stored in DTYPES[1:] else "float32") if dtype == "auto" else dtype
    if dtype == "auto" and name == "float16" and device.type == "cpu":
        name = "bfloat16"
    found: torch.dtype = getattr(torch, name)
    return found


@quiet()
def load(folder: Path, *, device: torch.device, dtype: str) -> Any:
    """The model in evaluation mode on `device`.

    Raises ModelError on an architecture that isn't read, missing or damaged weights, too little memory, and a
    GPTQ folder without gptqmodel; ValueError naming a wrong flag.
    """
    config = Record.read(folder / "config.json")
    model_type = config.text("model_type")
    if model_type not in ARCHITECTURES:
        raise ModelError(
            f"{config.path}: model_type {model_type!r} can't be run by the torch engine; "
            f"known: {', '.join(ARCHITECTURES)}"
        )
    kind = detect_kind(folder)
    attention.register()
    # transformers 5 writes dtype, older ones torch_dtype.
    stored = config.text("dtype") or config.text("torch_dtype")
    wanted = pick_dtype(dtype, stored, device)
    try:
        if kind is Kind.GPTQ:
            model = _load_gptq(folder, device) if device.type == "cuda" else _load_dequantised(folder, wanted)
        elif kind is Kind.HF:
            if config.record("quantization_config").values:
                read_settings(folder)  # refuses it by its name: it is not GPTQ
            model = _load_plain(folder, device, wanted)
        else:
            raise ModelError(f"{folder}: a {kind} folder; the torch engine reads Hugging Face folders")
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise too_large(folder, device, wanted) from error
    except (
        OSError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        ArithmeticError,
        AssertionError,
        SafetensorError,
        StrictDataclassError,
    ) as error:  # a configuration with other types or numbers than any model has
        raise ModelError(f"{folder}: can't be loaded ({error})") from error
    except RuntimeError as error:
        if "alloc" in str(error):
            raise too_large(folder, device, wanted) from error
        raise ModelError(f"{folder}: can't be loaded ({error})") from error
    model.set_attn_implementation(attention.NAME)
    return model.eval()


def _load_plain(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    causal: Any = transformers.AutoModelForCausalLM
    model, found = causal.from_pretrained(
        folder,
        dtype=dtype,
        # Straight to the device: through the CPU's memory a model would have to fit there too.
        device_map={"": device} if device.type == "cuda" else None,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        attn_implementation=attention.NAME,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    # transformers makes up at random what is missing or doesn't fit, and only warns.
    absent = sorted(found["missing_keys"])
    if absent:
        raise missing(folder, absent[0], len(absent) - 1)
    misshapen = sorted(name if isinstance(name, str) else name[0] for name in found["mismatched_keys"])
    if misshapen:
        more = f" and {len(misshapen) - 1} more" if len(misshapen) > 1 else ""
        raise ModelError(
            f"{folder}: tensor {misshapen[0]}{more} is of another shape than config.json says; the folder is "
            "incomplete, fetch it again"
        )
    for name, parameter in model.named_parameters():
        check_finite(folder, name, parameter.detach())
    return model


def _load_dequantised(folder: Path, dtype: torch.dtype) -> Any:
    """A GPTQ folder as a plain model of what its weights are worth, rounded to `dtype`: no GPTQ library is
    needed, and in float32 nothing is rounded, but the weights take their full size."""
    settings = read_settings(folder)
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    config.quantization_config = None  # it may stand in quantize_config.json alone
    causal: Any = transformers.AutoModelForCausalLM
    tensors = Tensors(folder)
    try:
        # An output matrix that is stored counts, whatever the configuration says: as transformers has it.
        if "lm_head.weight" in tensors or "lm_head.qweight" in tensors:
            config.tie_word_embeddings = False
        model = causal.from_config(config, dtype=dtype, attn_implementation=attention.NAME)
        # A tied output matrix is named once, as the embedding.
        for name, target in model.named_parameters():
            base, shape = name.removesuffix(".weight"), tuple(target.shape)
            if f"{base}.qweight" in tensors:
                target.data.copy_(_dequantised(tensors, base, shape, settings))
            else:
                target.data.copy_(tensors.get(name, shape))
    finally:
        tensors.close()
    return model


def _dequantised(tensors: Tensors, name: str, shape: tuple[int, ...], settings: GptqSettings) -> torch.Tensor:
    outputs, inputs = shape
    parts = {key: part.numpy() for key, part in tensors.quantised(name, outputs, inputs, settings).items()}
    layer = Layer(
        parts["qweight"],
        unpack_zeros(parts["qzeros"], settings, outputs),
        parts["scales"].astype(np.float32),
        parts.get("g_idx", consecutive_groups(settings, inputs)),
    )
    return torch.from_numpy(dequantise(layer, settings.bits, 0, outputs))


def _load_gptq(folder: Path, device: torch.device) -> Any:
    try:
        # It reports on stdout, which belongs to what the server has to say.
        with redirect_stdout(sys.stderr):
            import gptqmodel  # noqa: PLC0415 - optional, and takes seconds to import
    except ModuleNotFoundError as error:
        raise ModelError(
            f"{folder}: is a GPTQ checkpoint, and gptqmodel, which runs them on {device.type}, is not "
            f"installed ({error.name} is missing): pip install gptqmodel, or take --device cpu"
        ) from error
    with redirect_stdout(sys.stderr):
        wrapped = gptqmodel.GPTQModel.load(str(folder), device=str(device), trust_remote_code=False)
    return wrapped.model


def too_large(folder: Path, device: torch.device, dtype: torch.dtype) -> ModelError:
    """The error that says what does not fit, and what would."""
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return ModelError(
        f"{folder}: does not fit into the memory of this machine's {device.type} (its files hold "
        f"{size / 1e9:.1f} GB, loaded as {str(dtype).removeprefix('torch.')}); take --dtype bfloat16, a GPTQ "
        "or CTranslate2 int8 conversion, or a smaller model"
    )
