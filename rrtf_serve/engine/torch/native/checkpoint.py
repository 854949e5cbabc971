"""A Hugging Face or GPTQ folder read into packed matrices, one tensor at a time.

safetensors maps its files: what is read is in memory only until it is packed. The embedding is never copied;
its rows are read where they lie.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from rrtf_serve.engine.torch.native import layout
from rrtf_serve.engine.torch.native.packing import Matrix, pack_gptq, pack_plain, pack_rounded
from rrtf_serve.engine.torch.tensors import Tensors, let_go
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.gptq import GptqSettings, read_settings

_OUTPUT_GROUP = 32  # inputs per scale of an output matrix that is rounded here
_TABLES = {
    torch.float32: layout.FLOAT32,
    torch.bfloat16: layout.BFLOAT16,
    torch.float16: layout.FLOAT16,
}
_ROTARY = {"default", "linear", "llama3", "yarn"}  # others depend on the length of the text


class NotNativeError(Exception):
    """The kernels don't run this model; the message says what of it."""


@dataclass(frozen=True)
class Names:
    """What a family calls its tensors; `{}` is the number of the layer. mlp: gate and up, or one matrix."""

    table: str
    last_norm: str
    before_attention: str
    before_mlp: str
    attention_in: tuple[str, ...]
    attention_out: str
    mlp_in: tuple[str, ...]
    mlp_out: str
    learned: str | None = None


_LLAMA = Names(
    table="model.embed_tokens.weight",
    last_norm="model.norm",
    before_attention="model.layers.{}.input_layernorm",
    before_mlp="model.layers.{}.post_attention_layernorm",
    attention_in=tuple(f"model.layers.{{}}.self_attn.{part}_proj" for part in "qkv"),
    attention_out="model.layers.{}.self_attn.o_proj",
    mlp_in=("model.layers.{}.mlp.gate_proj", "model.layers.{}.mlp.up_proj"),
    mlp_out="model.layers.{}.mlp.down_proj",
)
_STARCODER2 = Names(
    **{
        **vars(_LLAMA),
        "mlp_in": ("model.layers.{}.mlp.c_fc",),
        "mlp_out": "model.layers.{}.mlp.c_proj",
    }
)
_STARCODER = Names(
    table="transformer.wte.weight",
    last_norm="transformer.ln_f",
    before_attention="transformer.h.{}.ln_1",
    before_mlp="transformer.h.{}.ln_2",
    attention_in=("transformer.h.{}.attn.c_attn",),
    attention_out="transformer.h.{}.attn.c_proj",
    mlp_in=("transformer.h.{}.mlp.c_fc",),
    mlp_out="transformer.h.{}.mlp.c_proj",
    learned="transformer.wpe.weight",
)
FAMILIES = {"llama": _LLAMA, "qwen2": _LLAMA, "starcoder2": _STARCODER2, "gpt_bigcode": _STARCODER}


@dataclass(frozen=True)
class Biases:
    """Which parts have one: what the family and the configuration say, whatever else a file holds."""

    norm: bool
    attention_in: bool
    attention_out: bool
    mlp: bool


def _biases_of(config: Any) -> Biases:
    match config.model_type:
        case "gpt_bigcode":
            return Biases(norm=True, attention_in=True, attention_out=True, mlp=True)
        case "starcoder2":
            return Biases(True, config.use_bias, config.use_bias, config.use_bias)
        case "qwen2":
            return Biases(norm=False, attention_in=True, attention_out=False, mlp=False)
        case _:
            return Biases(False, config.attention_bias, config.attention_bias, config.mlp_bias)


@dataclass(eq=False)
class Weights:
    """A model for the kernels, and the tensors that it points to."""

    model: layout.Model
    vocabulary: int
    output_bits: int
    kept: list[object] = field(repr=False)
    nbytes: int = 0  # of packed matrices, norms and tables, without the embedding, which stays in its file


def load(folder: Path, *, context_length: int, output_bits: int | None = None) -> Weights:
    """Read a folder of one of FAMILIES.

    context_length: tokens for which rotary positions are made. output_bits: of the output matrix; None: 16
    where the model is plain, 8 where it is quantised. Raises ModelError on a damaged or incomplete folder,
    NotNativeError and PackingError on a model that is whole but can't be run here.
    """
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    quantised = (
        getattr(config, "quantization_config", None) is not None
        or (folder / "quantize_config.json").is_file()
    )
    settings = read_settings(folder) if quantised else None
    tensors = Tensors(folder)
    try:
        return _Reader(config, tensors, settings).read(context_length, output_bits)
    finally:
        tensors.close()


class _Reader:
    def __init__(self, config: Any, tensors: Tensors, settings: GptqSettings | None) -> None:
        if config.model_type not in FAMILIES:
            raise NotNativeError(f"model_type {config.model_type}")
        self._config, self._tensors, self._settings = config, tensors, settings
        self._names = FAMILIES[config.model_type]
        self._kept: list[object] = []
        self._bytes = 0
        self._hidden = int(config.hidden_size)
        self._heads = int(config.num_attention_heads)
        self._head_dim = int(getattr(config, "head_dim", None) or self._hidden // self._heads)
        if config.model_type == "gpt_bigcode":
            self._kv_heads = 1 if config.multi_query else self._heads
            self._width = int(config.n_inner or 4 * self._hidden)
            self._epsilon, activation = config.layer_norm_epsilon, config.activation_function
        else:
            self._kv_heads = int(config.num_key_value_heads)
            self._width = int(config.intermediate_size)
            starcoder2 = config.model_type == "starcoder2"
            self._epsilon = config.norm_epsilon if starcoder2 else config.rms_norm_eps
            activation = config.hidden_act
        self._biases = _biases_of(config)
        if activation not in layout.ACTIVATIONS:
            raise NotNativeError(f"activation {activation}")
        self._activation = layout.ACTIVATIONS[activation]
        if self._kv_heads < 1 or self._heads % self._kv_heads:
            raise ModelError(
                f"{tensors.folder / 'config.json'}: {self._heads} attention heads can't share "
                f"{self._kv_heads} heads of keys and values"
            )
        if config.model_type == "gpt_bigcode" and not config.scale_attn_weights:
            raise NotNativeError("attention that is not scaled")
        for what, size in (("head size", self._head_dim), ("width of the feed-forward part", self._width)):
            if size % 16:
                raise NotNativeError(f"{what} {size}, which is no multiple of 16")

    def read(self, context_length: int, output_bits: int | None) -> Weights:
        config, names = self._config, self._names
        layers = (layout.Layer * config.num_hidden_layers)()
        for index in range(config.num_hidden_layers):
            layers[index] = self._layer(index)
        table = self._tensors.get(names.table)
        let_go(table)  # it was read to be checked
        vocabulary = len(table)
        if table.shape != (vocabulary, self._hidden):
            raise ModelError(
                f"{self._tensors.folder}: tensor {names.table} has the shape {tuple(table.shape)}"
            )
        if table.dtype not in _TABLES or not table.is_contiguous():
            raise NotNativeError(f"an embedding of type {table.dtype}")
        bits = output_bits or (8 if self._settings else 16)
        head = self._output(table, bits)
        rotary = (None, None) if names.learned else self._rotary(context_length)
        learned = self._learned(names.learned, context_length) if names.learned else None
        self._kept += [layers, table]
        model = layout.Model(
            hidden=self._hidden,
            heads=self._heads,
            kv_heads=self._kv_heads,
            head_dim=self._head_dim,
            layers=len(layers),
            positions=len(learned) if learned is not None else context_length,
            activation=self._activation,
            table_type=_TABLES[table.dtype],
            table=table.data_ptr(),
            learned=self._keep(learned),
            cosines=self._keep(rotary[0]),
            sines=self._keep(rotary[1]),
            layer=ctypes.cast(layers, ctypes.POINTER(layout.Layer)),
            last=self._norm(names.last_norm),
            head=head,
            scale=self._head_dim**-0.5,
        )
        return Weights(model, vocabulary, bits, self._kept, self._bytes)

    def _output(self, table: Tensor, bits: int) -> layout.Linear:
        """The output matrix: its own, quantised or not, or the embedding where the two are tied."""
        tensors, shape = self._tensors, (len(table), self._hidden)
        if "lm_head.qweight" in tensors:
            return self._matrix("lm_head", *shape, biased=False)
        alone = "lm_head.weight" in tensors or not self._config.tie_word_embeddings
        output = tensors.get("lm_head.weight", shape) if alone else table
        if bits == 16:
            head = pack_plain(output)
            let_go(output)
        else:
            head = pack_rounded(output, bits, _group_of(self._hidden), release=let_go)
        return self._structure(head)

    def _learned(self, name: str, context_length: int) -> Tensor:
        found = self._tensors.get(name)
        if found.dim() != 2 or found.shape[1] != self._hidden or len(found) < context_length:
            raise ModelError(
                f"{self._tensors.folder}: tensor {name} has the shape {tuple(found.shape)}; "
                f"{context_length} positions of {self._hidden} numbers are needed"
            )
        return self._floats(found)

    def _layer(self, index: int) -> layout.Layer:
        names, biases = self._names, self._biases
        query, shared = self._heads * self._head_dim, self._kv_heads * self._head_dim
        if len(names.attention_in) == 1:
            outputs: tuple[int, ...] = (query + 2 * shared,)
        else:
            outputs = (query, shared, shared)
        rows = None
        if len(outputs) == 1 and self._kv_heads == self._heads:
            # Query, key and value of each head lie together; the kernels want all queries first.
            rows = torch.arange(3 * query).reshape(self._heads, 3, self._head_dim).transpose(0, 1).reshape(-1)
        layer = layout.Layer(
            before_attention=self._norm(names.before_attention.format(index)),
            before_mlp=self._norm(names.before_mlp.format(index)),
            attention_out=self._matrix(
                names.attention_out.format(index), self._hidden, query, biased=biases.attention_out
            ),
            mlp_out=self._matrix(names.mlp_out.format(index), self._hidden, self._width, biased=biases.mlp),
            attention_ins=len(outputs),
            mlp_ins=len(names.mlp_in),
            window=self._window(index),
        )
        for place, (name, size) in enumerate(zip(names.attention_in, outputs, strict=True)):
            layer.attention_in[place] = self._matrix(
                name.format(index), size, self._hidden, biased=biases.attention_in, rows=rows
            )
        for place, name in enumerate(names.mlp_in):
            layer.mlp_in[place] = self._matrix(
                name.format(index), self._width, self._hidden, biased=biases.mlp
            )
        return layer

    def _window(self, index: int) -> int:
        kinds = getattr(self._config, "layer_types", None)
        if self._config.model_type not in ("qwen2", "starcoder2"):
            return 0  # others may carry the setting, but have no window
        if self._config.model_type == "qwen2" and (not kinds or kinds[index] != "sliding_attention"):
            return 0
        return int(getattr(self._config, "sliding_window", None) or 0)

    def _matrix(
        self, name: str, outputs: int, inputs: int, *, biased: bool, rows: Tensor | None = None
    ) -> layout.Linear:
        tensors = self._tensors
        bias = tensors.get(f"{name}.bias", (outputs,)) if biased else None
        if self._settings is None or f"{name}.weight" in tensors:
            weight = tensors.get(f"{name}.weight", (outputs, inputs))
            some, its_bias = weight, bias
            if rows is not None:
                some, its_bias = weight[rows], None if bias is None else bias[rows]
            packed = pack_plain(some, its_bias)
            let_go(weight)
            return self._structure(packed)
        parts = tensors.quantised(name, outputs, inputs, self._settings)
        packed = pack_gptq(parts, self._settings, bias=bias, rows=rows)
        let_go(parts["qweight"])
        return self._structure(packed)

    def _structure(self, matrix: Matrix) -> layout.Linear:
        self._kept.append(matrix)
        self._bytes += matrix.nbytes
        return matrix.structure()

    def _norm(self, name: str) -> layout.Norm:
        weight = self._floats(self._tensors.get(f"{name}.weight", (self._hidden,)))
        bias = self._tensors.get(f"{name}.bias", (self._hidden,)) if self._biases.norm else None
        return layout.Norm(
            weight=self._keep(weight),
            bias=self._keep(None if bias is None else self._floats(bias)),
            epsilon=self._epsilon,
        )

    def _floats(self, tensor: Tensor) -> Tensor:
        # A copy in any case: the file is closed when all is read.
        return tensor.to(torch.float32, copy=True).contiguous()

    def _keep(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        self._kept.append(tensor)
        self._bytes += tensor.nbytes
        return tensor.data_ptr()

    def _rotary(self, positions: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines as transformers makes them, [positions, head_dim / 2] each."""
        kind = (getattr(self._config, "rope_parameters", None) or {}).get("rope_type", "default")
        if kind not in _ROTARY:
            raise NotNativeError(f"rotary positions of type {kind}")
        for module in _modules(self._config.model_type):
            embedding = module(config=self._config)
            cosines, sines = embedding(torch.empty(0), torch.arange(positions).unsqueeze(0))
            half = cosines.shape[-1] // 2
            if 2 * half != self._head_dim:
                raise NotNativeError("rotary positions on a part of each head")
            return cosines[0, :, :half].float().contiguous(), sines[0, :, :half].float().contiguous()
        raise NotNativeError("rotary positions")


def _modules(model_type: str) -> Iterator[Any]:
    """The class of transformers that makes the rotary positions of this family."""
    models: Any = transformers.models
    modeling = getattr(getattr(models, model_type), f"modeling_{model_type}")
    for name in dir(modeling):
        if name.endswith("RotaryEmbedding"):
            yield getattr(modeling, name)


def _group_of(inputs: int) -> int:
    if inputs % _OUTPUT_GROUP:
        raise NotNativeError(f"an output matrix of {inputs} inputs, which is no multiple of {_OUTPUT_GROUP}")
    return _OUTPUT_GROUP
