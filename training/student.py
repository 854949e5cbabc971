"""The model that is trained: loaded, and written as a folder that can be served."""

from __future__ import annotations

import json
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
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):  # what transformers calls it
            raise
        raise ModelError(
            f"{student.folder}: its weights are not of the shapes that its config.json names; fetch it again"
        ) from error
    missing = sorted(found["missing_keys"])
    if missing:  # transformers makes them up at random and only warns
        raise ModelError(f"{student.folder}: tensor {missing[0]} is missing; the folder is incomplete")
    return model if tuning == "full" else put_adapter(model, tuning, adapter)


def compile_layers(model: Any) -> None:
    """Each of the decoder's layers by itself: one is compiled, and serves for all of them.

    Rows are ever other lengths, so their dimensions are left open.
    """
    causal = model.get_base_model() if hasattr(model, "peft_config") else model
    kinds = set(causal._no_split_modules or ())
    layers = [module for module in causal.modules() if type(module).__name__ in kinds]
    if not layers:
        raise ModelError(f"{causal.config.model_type}: --compile doesn't know its layers; leave it out")
    for layer in layers:
        layer.compile(dynamic=True)


def merged_state(model: Any) -> dict[str, torch.Tensor]:
    """The weights of a LoRA model with its adapter added, by the names of the model beneath. The model itself
    stays as it is."""
    layers = {name: module for name, module in model.get_base_model().named_modules() if _is_adapted(module)}
    state: dict[str, torch.Tensor] = {}
    for name, value in model.get_base_model().state_dict().items():
        if ".lora_" in name:
            continue
        owner = name.partition(".base_layer.")[0]
        adapted = name.endswith(".base_layer.weight")
        grown = value.float() + layers[owner].get_delta_weight("default").float() if adapted else value
        state[name.replace(".base_layer.", ".")] = grown
    return state


def _is_adapted(module: torch.nn.Module) -> bool:
    return hasattr(module, "get_delta_weight") and hasattr(module, "base_layer")


def write_student(
    student: Student,
    model: Any,
    state: dict[str, torch.Tensor],
    folder: Path,
    *,
    made: dict[str, Any],
    merged: bool = False,
) -> None:
    """Write the trained model, complete or not at all, over what was there. `state`: its weights, by the
    model's own names. Of a PEFT model the adapter alone is written, or, `merged`, `state` as a whole model.
    `made`: for the card.
    """
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        if hasattr(model, "peft_config") and not merged:
            # Never the embeddings: PEFT would look on the network whether they were resized.
            model.save_pretrained(fresh, state_dict=state, save_embedding_layers=False)
            settings = fresh / "adapter_config.json"
            record = json.loads(settings.read_text("utf-8")) | {"base_model_name_or_path": student.spec}
            settings.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
            (fresh / "README.md").unlink(missing_ok=True)  # a template full of blanks
        else:
            causal = model.get_base_model() if merged else model
            # Tied matrices are one tensor, to be written once.
            tied = set(causal._tied_weights_keys or ()) if causal.config.tie_word_embeddings else set()
            whole = {
                name: value.to(torch.bfloat16) if value.is_floating_point() else value
                for name, value in state.items()
                if name not in tied
            }
            causal.config.dtype = torch.bfloat16
            causal.save_pretrained(fresh, state_dict=whole)
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
