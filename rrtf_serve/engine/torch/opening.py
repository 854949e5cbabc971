"""Which of the two decoders runs a folder: the compiled kernels where they can, transformers otherwise."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor

from rrtf_serve.engine.torch.checkpoint import load, pick_dtype, quiet, too_large
from rrtf_serve.engine.torch.decoder import Decoder
from rrtf_serve.engine.torch.native.checkpoint import FAMILIES, NotNativeError
from rrtf_serve.engine.torch.native.decoder import NativeDecoder
from rrtf_serve.engine.torch.native.library import KernelError
from rrtf_serve.engine.torch.native.packing import PackingError
from rrtf_serve.engine.torch.slots import Slots
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.records import Record
from rrtf_serve.models.source import Kind, detect_kind

log = logging.getLogger(__name__)


class AnyDecoder(Protocol):
    """What `Decoder` and `NativeDecoder` have in common; see there."""

    vocabulary: int
    device: torch.device
    dtype: torch.dtype
    kernels: str  # what multiplies: "torch", "gptqmodel" or one of library.UNITS
    independent_rows: bool  # see Capabilities
    weights_bytes: int

    def new_slots(self, dtype: torch.dtype | None = None) -> Slots: ...

    def prefill(self, tokens: list[int], slots: Slots, slot: int, start: int) -> Tensor: ...

    def decode(self, tokens: list[int], slots: Slots, places: list[int], starts: list[int]) -> Tensor: ...

    def logits_of(self, tokens: list[int], slots: Slots, start: int) -> Iterator[Tensor]: ...


@quiet()
def open_decoder(
    folder: Path, *, context_length: int, device: torch.device, dtype: str, output_bits: int | None
) -> AnyDecoder:
    """Load a plain or GPTQ folder. output_bits: of the output matrix in the kernels; None: 16 where the model
    is plain, 8 where it is quantised.

    Raises ModelError on what can't be loaded, ValueError naming a wrong flag.
    """
    config = Record.read(folder / "config.json")
    learned = config.optional_count("n_positions") if config.text("model_type") == "gpt_bigcode" else None
    if learned is not None and context_length > learned:
        raise ValueError(
            f"context_length is {context_length}, but the model has learned {learned} positions and "
            "fails beyond them"
        )
    gptq = detect_kind(folder) is Kind.GPTQ
    wanted = pick_dtype(
        dtype, "bfloat16" if gptq else config.text("dtype") or config.text("torch_dtype"), device
    )
    known = config.text("model_type") in FAMILIES
    if device.type == "cpu" and wanted == torch.bfloat16 and known:
        try:
            decoder = NativeDecoder(folder, context_length=context_length, output_bits=output_bits)
            log.info("CPU kernels (%s), %.0f MB of weights", decoder.kernels, decoder.weights_bytes / 1e6)
            return decoder
        except (NotNativeError, PackingError, KernelError) as error:
            log.warning("the CPU kernels don't run this model (%s); it runs slower without them", error)
        except MemoryError as error:
            raise too_large(folder, device, wanted) from error
        except RuntimeError as error:  # torch's allocator says so in words
            if "alloc" in str(error):
                raise too_large(folder, device, wanted) from error
            raise ModelError(f"{folder}: can't be loaded ({error})") from error
        except (
            OSError,
            ValueError,
            TypeError,
            AttributeError,
            LookupError,
            ArithmeticError,
            SafetensorError,
            StrictDataclassError,
        ) as error:  # a configuration with other types or numbers than any model has
            raise ModelError(f"{folder}: can't be loaded ({error})") from error
    if output_bits not in (None, 16):
        raise ValueError("--output-bits: only the CPU kernels round the output matrix; they don't run this")
    kernels = "gptqmodel" if gptq and device.type == "cuda" else "torch"
    return Decoder(load(folder, device=device, dtype=dtype), kernels=kernels)
