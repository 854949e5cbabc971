"""Loaders for CTranslate2's own converter, through its public `register_loader`: what it lacks or gets wrong.

    register()
    ctranslate2.converters.TransformersConverter("starcoder2-folder").convert("out")

StarCoder2, Phi-3 and GPTBigCode without multi-query attention are laid out by the same tables that the
streaming conversion uses. GPT-NeoX, MPT and Phi are CTranslate2's with what transformers 5 renamed. Importing
this needs torch and transformers.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ctranslate2.converters import transformers as theirs
from ctranslate2.converters import utils
from ctranslate2.specs import common_spec, model_spec, transformer_spec

from convert.architectures import Weight, specify
from convert.hf_config import read_config
from convert.sources import FloatArray, StoredType, missing
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.records import Record

_STORED: dict[torch.dtype, StoredType] = {torch.float16: "float16", torch.bfloat16: "bfloat16"}


class LoadedSource:
    """The tensors of a model that transformers has loaded, as a TensorSource."""

    def __init__(self, model: Any) -> None:
        self.path = Path(model.config.name_or_path)
        self.config = read_config(Record(self.path / "config.json", model.config.to_dict()))
        self.tensors: dict[str, torch.Tensor] = dict(model.state_dict())

    @property
    def names(self) -> Collection[str]:
        return self.tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensor(name).shape)

    def stored_type(self, name: str) -> StoredType:
        return _STORED.get(self._tensor(name).dtype, "float32")

    def precision(self, name: str) -> float:
        return 8.0 * self._tensor(name).element_size()

    def rows(self, name: str, start: int, stop: int) -> FloatArray:
        rows: FloatArray = self._tensor(name)[start:stop].float().numpy()
        return rows

    def close(self) -> None:
        self.tensors.clear()

    def _tensor(self, name: str) -> torch.Tensor:
        if name not in self.tensors:
            raise missing(self, name)
        return self.tensors[name]


class _TableLoader(theirs.ModelLoader):  # type: ignore[misc]  # ctranslate2 has no type information
    """Lays a model out by our tables; its subclasses name the class that transformers loads."""

    def get_model_spec(self, model: Any) -> Any:
        source = LoadedSource(model)
        specification = specify(source)

        def fill(spec: Any, name: str, value: Any) -> None:
            if isinstance(value, Weight):
                setattr(spec, name.rsplit("/", 1)[-1], _values(source, value))

        model_spec.visit_spec(specification.spec, fill)
        specification.spec.config.layer_norm_epsilon = source.config.norm_epsilon
        return specification.spec

    def get_vocabulary(self, model: Any, tokenizer: Any) -> list[str]:
        tokens: list[str] = super().get_vocabulary(model, tokenizer)
        return tokens + [f"<extra_id_{index}>" for index in range(model.config.vocab_size - len(tokens))]

    def set_vocabulary(self, spec: Any, tokens: list[str]) -> None:
        spec.register_vocabulary(tokens)

    def set_config(self, config: Any, model: Any, tokenizer: Any) -> None:  # noqa: ARG002  # its caller's
        config.bos_token = tokenizer.bos_token or tokenizer.eos_token
        config.eos_token = tokenizer.eos_token
        config.unk_token = tokenizer.unk_token or ""


def _values(source: LoadedSource, weight: Weight) -> Any:
    rows = np.concatenate([part.read(source, 0, part.length) for part in weight.parts])
    return torch.from_numpy(rows).to(getattr(torch, weight.stored_type))


class _Starcoder2Loader(_TableLoader):
    architecture_name = "Starcoder2ForCausalLM"


class _Phi3Loader(_TableLoader):
    architecture_name = "Phi3ForCausalLM"


class _BigCodeLoader(_TableLoader):
    architecture_name = "GPTBigCodeForCausalLM"


class _NeoXLoader(theirs.GPTNeoXLoader):  # type: ignore[misc]
    def get_model_spec(self, model: Any) -> Any:
        rope = model.config.rope_parameters
        if rope.get("rope_theta", 10_000) != 10_000 or rope.get("rope_type", "default") != "default":
            raise ModelError(
                f"{model.config.name_or_path}: GPT-NeoX with other rotary positions than its own"
            )
        model.config.rotary_pct = rope.get("partial_rotary_factor", 0.25)
        model.embed_out = model.get_output_embeddings()
        return super().get_model_spec(model)


class _PhiLoader(_TableLoader):
    """Phi-1, 1.5 and 2: attention and feed-forward side by side behind one norm."""

    architecture_name = "PhiForCausalLM"

    def get_model_spec(self, model: Any) -> Any:
        config = model.config
        heads, rope = config.num_attention_heads, config.rope_parameters
        spec = transformer_spec.TransformerDecoderModelSpec.from_config(
            config.num_hidden_layers,
            heads,
            pre_norm=True,
            activation=theirs._SUPPORTED_ACTIVATIONS[config.hidden_act],
            rotary_dim=int(rope.get("partial_rotary_factor", 0.5) * (config.hidden_size // heads)),
            rotary_interleave=False,
            rotary_base=rope.get("rope_theta", 10_000),
            parallel_residual=True,
            shared_layer_norm=True,
            num_heads_kv=config.num_key_value_heads if config.num_key_value_heads != heads else None,
        )
        decoder, body = spec.decoder, model.model
        decoder.scale_embeddings = False
        self.set_embeddings(decoder.embeddings, body.embed_tokens)
        self.set_layer_norm(decoder.layer_norm, body.final_layernorm)
        self.set_linear(decoder.projection, model.lm_head)
        for target, layer in zip(decoder.layer, body.layers, strict=True):
            self.set_layer_norm(target.shared_layer_norm, layer.input_layernorm)
            parts = [common_spec.LinearSpec() for _ in range(3)]
            attention = layer.self_attn
            for part, module in zip(
                parts, (attention.q_proj, attention.k_proj, attention.v_proj), strict=True
            ):
                self.set_linear(part, module)
            utils.fuse_linear(target.self_attention.linear[0], parts)
            self.set_linear(target.self_attention.linear[1], attention.dense)
            self.set_linear(target.ffn.linear_0, layer.mlp.fc1)
            self.set_linear(target.ffn.linear_1, layer.mlp.fc2)
        return spec


def register() -> None:
    """Make CTranslate2's converter know these, for this process."""
    for name, loader in {
        "Starcoder2Config": _Starcoder2Loader,
        "GPTBigCodeConfig": _BigCodeLoader,
        "Phi3Config": _Phi3Loader,
        "GPTNeoXConfig": _NeoXLoader,
        "MptConfig": theirs.MPTLoader,
        "PhiConfig": _PhiLoader,
    }.items():
        theirs.register_loader(name)(loader)
