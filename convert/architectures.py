"""One table per family: the source's tensor names -> CTranslate2's specification.

A weight of the specification is a `Weight`: recipes of rows, read when they are written. The reference are
CTranslate2's own loaders (ctranslate2.converters.transformers); it has none for StarCoder2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from ctranslate2.specs import attention_spec, common_spec, transformer_spec

from convert.families import FAMILIES, Family
from convert.sources import FloatArray, StoredType, TensorSource, missing
from rrtf_serve.models.errors import ModelError

_ACTIVATIONS = {
    "silu": common_spec.Activation.SWISH,
    "swish": common_spec.Activation.SWISH,
    "relu": common_spec.Activation.RELU,
    "gelu": common_spec.Activation.GELU,
    "gelu_new": common_spec.Activation.GELUTanh,
    "gelu_fast": common_spec.Activation.GELUTanh,
    "gelu_pytorch_tanh": common_spec.Activation.GELUTanh,
}
_LINEAR = attention_spec.RotaryScalingType.Linear
_BY_FREQUENCY = attention_spec.RotaryScalingType.Su
_LINEAR_ROLES = ("q", "k", "v", "qkv", "o", "gate", "up", "gate_up", "down", "output")
_TIE_SAMPLE = 1024  # rows compared to find out whether two stored copies are one matrix


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of one source tensor, in the source's order or in that of `order`; without a name, zeros."""

    name: str
    length: int
    order: npt.NDArray[np.intp] | None = None

    def read(self, source: TensorSource, start: int, stop: int) -> FloatArray:
        if not self.name:
            return np.zeros(stop - start, np.float32)
        if self.order is None:
            return source.rows(self.name, start, stop)
        wanted = self.order[start:stop]
        low, high = int(wanted.min()), int(wanted.max()) + 1
        return source.rows(self.name, low, high)[wanted - low]


@dataclass(frozen=True, eq=False)
class Weight:
    """A tensor of the target: parts stacked by rows. `shape` is (rows,) or (rows, columns)."""

    parts: tuple[Part, ...]
    shape: tuple[int, ...]
    stored_type: StoredType

    def blocks(self, block_rows: int) -> Iterator[tuple[Part, int, int]]:
        """(part, start, stop) of consecutive blocks of at most `block_rows` rows, in order."""
        for part in self.parts:
            for start in range(0, part.length, block_rows):
                yield part, start, min(start + block_rows, part.length)

    def only_tensor(self) -> str:
        """The source tensor that this is, whole and in order; empty when it is made of several."""
        return self.parts[0].name if len(self.parts) == 1 and self.parts[0].order is None else ""


@dataclass(frozen=True)
class Specification:
    """CTranslate2's specification with `Weight`s in place of arrays, ready for `writer.write_model`."""

    spec: Any  # transformer_spec.TransformerDecoderModelSpec; ctranslate2 has no type information
    vocabulary_size: int
    context_length: int  # tokens; the sliding window where that is less
    tied_output: str  # the stored tensor that serves as embedding and output matrix; empty: two matrices


def specify(source: TensorSource) -> Specification:
    """Lay the source's tensors out as CTranslate2 wants them; reads at most a sample of the output matrix.

    Raises ModelError naming what is missing, misshapen or not supported.
    """
    return _Layout(source, known_family(source)).specification()


def known_family(source: TensorSource) -> Family:
    """The table of the source's family. Raises ModelError listing what is known."""
    config = source.config
    if config.architecture not in FAMILIES or config.naming not in FAMILIES[config.architecture].names:
        raise ModelError(
            f"{source.path}: architecture {config.architecture!r} can't be converted; "
            f"known: {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[config.architecture]


class _Layout:
    def __init__(self, source: TensorSource, family: Family) -> None:
        self.source, self.config, self.family = source, source.config, family
        self.names = family.names[source.config.naming]
        self.ignored = unused_biases(source)

    def specification(self) -> Specification:
        config, names = self.config, self.names
        if config.hidden % config.heads or config.heads % config.kv_heads:
            raise ModelError(
                f"{self.source.path}: {config.heads} heads, {config.kv_heads} key/value heads and width "
                f"{config.hidden} do not divide"
            )
        spec = self._empty_spec()
        decoder = spec.decoder
        decoder.scale_embeddings = False
        embedding, output = tied_matrix(self.source, names)
        vocabulary_size = self._rows(embedding)
        decoder.embeddings.weight = self._matrix(embedding, vocabulary_size, config.hidden)
        decoder.projection.weight = self._matrix(output, vocabulary_size, config.hidden)
        if self._has_bias("output", names["output"]):
            decoder.projection.bias = self._vector(f"{names['output']}.bias", vocabulary_size)
        self._norm(decoder.layer_norm, names["final_norm"])
        context_length = config.context_length
        if self.family.rotary:
            # Up to its length a window hides nothing, so without one the model is exactly itself until there.
            longest = config.rope_scaling.longest if config.rope_scaling else 0
            context_length = min(
                context_length, config.sliding_window or context_length, longest or context_length
            )
        else:
            positions = f"{names['positions']}.weight"
            context_length = min(context_length, self._rows(positions))
            decoder.position_encodings.encodings = self._matrix(
                positions, self._rows(positions), config.hidden
            )
        for index, layer in enumerate(decoder.layer):
            self._layer(layer, index)
        tied = embedding if embedding == output else ""
        return Specification(spec, vocabulary_size, context_length, tied)

    def _empty_spec(self) -> Any:
        config = self.config
        if config.activation not in _ACTIVATIONS:
            raise ModelError(
                f"{self.source.path}: activation {config.activation!r} can't be converted; "
                f"known: {', '.join(sorted(_ACTIVATIONS))}"
            )
        options: dict[str, Any] = {}
        if self.family.rotary:
            scaling = config.rope_scaling
            kind = (_BY_FREQUENCY if scaling.divisors else _LINEAR) if scaling else None
            options = {
                # 0 is all of a head; the number itself is what CTranslate2's converter writes for Qwen3.
                "rotary_dim": config.head_dim if self.family.head_norms else 0,
                "rotary_interleave": False,
                "rotary_base": config.rope_theta,
                "num_heads_kv": config.kv_heads if config.kv_heads != config.heads else None,
                "rotary_scaling_type": kind,
                "rotary_scaling_factor": scaling.factor if scaling else 1,
                "qk_norm": self.family.head_norms,
            }
            if self.family.head_dim_stated or config.head_dim * config.heads != config.hidden:
                options["head_dim"] = config.head_dim
        elif config.multi_query:
            options = {"multi_query_attention": True}
        return transformer_spec.TransformerDecoderModelSpec.from_config(
            config.layers,
            config.heads,
            pre_norm=True,
            activation=_ACTIVATIONS[config.activation],
            ffn_glu=self.family.gated,
            rms_norm=not self.family.norm_bias,
            **options,
        )

    def _layer(self, layer: Any, index: int) -> None:
        config = self.config
        name = {role: text.format(index) for role, text in self.names.items()}
        attention, ffn = layer.self_attention, layer.ffn
        self._norm(attention.layer_norm, name["attention_norm"])
        self._norm(ffn.layer_norm, name["ffn_norm"])
        q_rows, kv_rows = config.heads * config.head_dim, config.kv_heads * config.head_dim
        if self.family.head_norms:
            attention.q_norm.gamma = self._vector(f"{name['q_norm']}.weight", config.head_dim)
            attention.k_norm.gamma = self._vector(f"{name['k_norm']}.weight", config.head_dim)
        self._scale_rotary(attention)
        if "qkv" in name and f"{name['qkv']}.weight" in self.source.names:
            order = self._per_head_order() if config.naming == "hf" and not self.family.rotary else None
            self._linear(attention.linear[0], name, [("qkv", q_rows + 2 * kv_rows, order)], config.hidden)
        else:
            # Before their orders are made, which are as long as the configuration says.
            for role, rows in (("q", q_rows), ("k", kv_rows)):
                self._expect(f"{name[role]}.weight", (rows, config.hidden))
            parts = [
                ("q", q_rows, self._rotary_order(config.heads)),
                ("k", kv_rows, self._rotary_order(config.kv_heads)),
                ("v", kv_rows, None),
            ]
            self._linear(attention.linear[0], name, parts, config.hidden)
        self._linear(attention.linear[1], name, [("o", config.hidden, None)], q_rows)
        if "gate_up" in name:
            for part, target in enumerate((ffn.linear_0, ffn.linear_0_noact)):
                self._half(target, name["gate_up"], part)
        elif self.family.gated:
            self._linear(ffn.linear_0, name, [("gate", config.ffn, None)], config.hidden)
            self._linear(ffn.linear_0_noact, name, [("up", config.ffn, None)], config.hidden)
        else:
            self._linear(ffn.linear_0, name, [("up", config.ffn, None)], config.hidden)
        self._linear(ffn.linear_1, name, [("down", config.hidden, None)], config.ffn)

    def _scale_rotary(self, attention: Any) -> None:
        config, scaling = self.config, self.config.rope_scaling
        if scaling is None or not scaling.divisors:
            return
        if len(scaling.divisors) != config.head_dim // 2:
            raise ModelError(
                f"{self.source.path}: the rotary scaling has {len(scaling.divisors)} divisors, "
                f"a head {config.head_dim // 2} frequencies"
            )
        divisors = np.array(scaling.divisors, np.float32)
        # CTranslate2 takes the long table past original_max_position_embeddings, which stays unset.
        attention.rotary_scaling_long_factor = attention.rotary_scaling_short_factor = divisors
        if scaling.attention_scale != 1:
            attention.queries_scale = np.float32(scaling.attention_scale / math.sqrt(config.head_dim))

    def _half(self, target: Any, name: str, part: int) -> None:
        """The first or second half of the rows of a stored matrix, as the gate or the up projection."""
        ffn, columns = self.config.ffn, self.config.hidden
        self._expect(f"{name}.weight", (2 * ffn, columns))
        rows = np.arange(part * ffn, (part + 1) * ffn, dtype=np.intp)
        target.weight = self._weight((Part(f"{name}.weight", ffn, rows),), columns)

    def _rotary_order(self, heads: int) -> npt.NDArray[np.intp] | None:
        if self.config.naming != "gguf" or not self.family.interleaved_in_gguf:
            return None
        return rotary_order(heads, self.config.head_dim)

    def _per_head_order(self) -> npt.NDArray[np.intp] | None:
        """GPTBigCode without multi-query attention keeps q, k and v of one head together; split them."""
        if self.config.multi_query:
            return None
        rows = np.arange(3 * self.config.heads * self.config.head_dim, dtype=np.intp)
        return rows.reshape(self.config.heads, 3, -1).swapaxes(0, 1).reshape(-1)

    def _linear(
        self,
        target: Any,
        names: dict[str, str],
        parts: list[tuple[str, int, npt.NDArray[np.intp] | None]],
        columns: int,
    ) -> None:
        """`parts`: role, rows and their order; `names`: the layer's name of each role."""
        for role, rows, _ in parts:
            self._expect(f"{names[role]}.weight", (rows, columns))
        target.weight = self._weight(
            tuple(Part(f"{names[role]}.weight", rows, order) for role, rows, order in parts), columns
        )
        if not any(self._has_bias(role, names[role]) for role, _, _ in parts):
            return
        biases = []
        for role, rows, order in parts:
            present = self._has_bias(role, names[role])
            if present:
                self._expect(f"{names[role]}.bias", (rows,))
            biases.append(Part(f"{names[role]}.bias" if present else "", rows, order if present else None))
        target.bias = self._weight(tuple(biases), None)

    def _has_bias(self, role: str, name: str) -> bool:
        """Whether the model has this bias, be it missing or not."""
        if role in (self.config.biased or ()):
            return True
        return f"{name}.bias" in self.source.names and f"{name}.bias" not in self.ignored

    def _norm(self, target: Any, name: str) -> None:
        target.gamma = self._vector(f"{name}.weight", self.config.hidden)
        if self.family.norm_bias:
            target.beta = self._vector(f"{name}.bias", self.config.hidden)

    def _matrix(self, name: str, rows: int, columns: int) -> Weight:
        self._expect(name, (rows, columns))
        return self._weight((Part(name, rows),), columns)

    def _vector(self, name: str, length: int) -> Weight:
        self._expect(name, (length,))
        return self._weight((Part(name, length),), None)

    def _weight(self, parts: tuple[Part, ...], columns: int | None) -> Weight:
        rows = sum(part.length for part in parts)
        types = {self.source.stored_type(part.name) for part in parts if part.name}
        stored: StoredType = types.pop() if len(types) == 1 else "float32"
        return Weight(parts, (rows,) if columns is None else (rows, columns), stored)

    def _rows(self, name: str) -> int:
        shape = self.source.shape(name)
        if len(shape) != 2:
            raise ModelError(
                f"{self.source.path}: tensor {name} has the shape {shape}; it should be a matrix"
            )
        return shape[0]

    def _expect(self, name: str, shape: tuple[int, ...]) -> None:
        found = self.source.shape(name)
        if found != shape:
            raise ModelError(
                f"{self.source.path}: tensor {name} has the shape {found}, the configuration says {shape}"
            )


def rotary_order(heads: int, head_dim: int) -> npt.NDArray[np.intp]:
    """Row order that turns GGUF's interleaved rotary pairs into halves, as everybody else stores them.

    In a head, the file's row 2i + j is the original's row j * head_dim / 2 + i.
    """
    rows = np.arange(heads * head_dim, dtype=np.intp)
    return rows.reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


def tied_matrix(source: TensorSource, names: dict[str, str]) -> tuple[str, str]:
    """The tensors to use as embedding and output matrix: one name twice when the model ties them.

    The source's word counts where it gives one, unless it holds two matrices that differ: those are two, as
    transformers 5 has it. GGUF gives none: a model without an output matrix is tied, and one with two copies
    of the same matrix too (see `nearly_equal`); the more precise copy then serves as both. `names` is the
    family's table in the source's naming. Raises ModelError where an output matrix of its own is missing.
    """
    embedding, output = f"{names['embedding']}.weight", f"{names['output']}.weight"
    if output not in source.names:
        if source.config.tied is False:
            raise missing(source, output)
        return embedding, embedding
    if source.config.tied:
        return (embedding, output if _differ(source, embedding, output) else embedding)
    if source.config.tied is None and nearly_equal(source, embedding, output):
        better = max(embedding, output, key=source.precision)
        return better, better
    return embedding, output


def is_tied(source: TensorSource) -> bool:
    """Whether one matrix is both embedding and output (see `tied_matrix`)."""
    embedding, output = tied_matrix(source, known_family(source).names[source.config.naming])
    return embedding == output


def unused_biases(source: TensorSource) -> set[str]:
    """Tensors that the configuration says the model doesn't have; transformers ignores them as well."""
    config, names = source.config, known_family(source).names[source.config.naming]
    if config.biased is None:
        return set()
    roles = [role for role in _LINEAR_ROLES if role in names and role not in config.biased]
    every = {f"{names[role].format(layer)}.bias" for role in roles for layer in range(config.layers)}
    return every & set(source.names)


def _differ(source: TensorSource, first: str, second: str) -> bool:
    same_shape = source.shape(first) == source.shape(second)
    return not same_shape or relative_difference(source, first, second) > 0


def relative_difference(source: TensorSource, first: str, second: str) -> float:
    """Root mean square of the difference of two matrices over that of the second, on a sample of rows."""
    rows = source.shape(second)[0]
    difference = total = 0.0
    for row in np.unique(np.linspace(0, rows - 1, min(rows, _TIE_SAMPLE)).astype(int)):
        a, b = (source.rows(name, int(row), int(row) + 1).astype(np.float64) for name in (first, second))
        difference += float(np.square(a - b).sum())
        total += float(np.square(b).sum())
    return float(np.sqrt(difference / total)) if total else float(np.sqrt(difference))


def nearly_equal(source: TensorSource, first: str, second: str) -> bool:
    """Whether two stored matrices are the same one, quantised twice.

    Quantising to b bits in blocks leaves a relative error of about 1.3 * 2**-b. The copies may differ by the
    sum of both errors, with a factor of two to spare, and never by more than 0.5: two matrices that were
    trained apart differ by about 1.4.
    """
    if source.shape(first) != source.shape(second):
        return False
    error = sum(1.3 * 2.0 ** -min(source.precision(name), 23) for name in (first, second))
    return bool(relative_difference(source, first, second) <= min(2 * error, 0.5))
