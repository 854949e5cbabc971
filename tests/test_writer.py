"""model.bin: byte for byte what CTranslate2's own converter writes, from blocks of rows."""

from __future__ import annotations

import struct
from collections.abc import Collection
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from ctranslate2.converters import TransformersConverter
from tiny_models import write_hf

from convert import blocks
from convert.architectures import Part, Specification, Weight, specify
from convert.safetensors_source import SafetensorsSource
from convert.sources import FloatArray, ModelConfig, StoredType
from convert.writer import plan, planned_size, write_model
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.folder import QUANTIZATIONS

# The families that CTranslate2 has a converter for, and every type that weights are stored in.
STORED = (
    ("llama", "float32"), ("llama-biased", "float16"), ("qwen2", "float32"), ("qwen2", "bfloat16"),
    ("starcoder", "float32"), ("starcoder", "float16"), ("mistral", "float32"), ("qwen3", "bfloat16"),
)  # fmt: skip


@pytest.fixture(scope="module", params=STORED, ids="-".join)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, dtype = request.param
    return write_hf(tmp_path_factory.mktemp("hf") / family, family, dtype=dtype)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_bytes_equal_those_of_ctranslate2s_own_converter(
    folder: Path, quantization: str, tmp_path: Path
) -> None:
    TransformersConverter(str(folder)).convert(str(tmp_path / "theirs"), quantization=quantization)
    with closing(SafetensorsSource(folder)) as source:
        written = write_model(tmp_path / "ours.bin", specify(source), source, quantization)
    ours = (tmp_path / "ours.bin").read_bytes()
    assert written == len(ours)
    assert ours == (tmp_path / "theirs" / "model.bin").read_bytes()


@pytest.mark.parametrize("quantization", ["int8", "int16", "bfloat16"])
def test_bytes_do_not_depend_on_the_blocks(
    folder: Path, quantization: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(SafetensorsSource(folder)) as source:
        write_model(tmp_path / "whole.bin", specify(source), source, quantization)
        monkeypatch.setattr(blocks, "_BLOCK_BYTES", 7 * 4 * 32)  # seven rows: divides no tensor evenly
        write_model(tmp_path / "blocks.bin", specify(source), source, quantization)
    assert (tmp_path / "blocks.bin").read_bytes() == (tmp_path / "whole.bin").read_bytes()


class Arrays:
    """A source of given arrays that keeps the size of the largest block it was asked for."""

    path = Path("arrays")
    config: ModelConfig  # never asked for: these tests make their own specification

    def __init__(self, **arrays: FloatArray) -> None:
        self.arrays, self.largest = arrays, 0

    @property
    def names(self) -> Collection[str]:
        return self.arrays.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.arrays[name].shape

    def stored_type(self, name: str) -> StoredType:
        return "float32"

    def precision(self, name: str) -> float:
        return 32.0

    def rows(self, name: str, start: int, stop: int) -> FloatArray:
        block = self.arrays[name][start:stop].copy()
        self.largest = max(self.largest, block.nbytes)
        return block

    def close(self) -> None:
        self.arrays.clear()


def linear_layers(source: Arrays) -> Specification:
    """A specification of one quantisable weight per array."""
    from ctranslate2.specs import common_spec, model_spec

    class Layers(model_spec.ModelSpec):  # type: ignore[misc]  # ctranslate2 has no type information
        name = "Layers"
        revision = 1

        def __init__(self) -> None:
            super().__init__()
            self.layer = [common_spec.LinearSpec() for _ in source.arrays]

    spec = Layers()
    for layer, (name, array) in zip(spec.layer, source.arrays.items(), strict=True):
        layer.weight = Weight((Part(name, len(array)),), array.shape, "float32")
    return Specification(spec, 0, 0, "")


def written(source: Arrays, tmp_path: Path, quantization: str) -> Model:
    path = tmp_path / "model.bin"
    write_model(path, linear_layers(source), source, quantization)
    return Model(path.read_bytes())


class Model:
    """model.bin read back: `variables` maps names to (shape, type id, bytes), `aliases` names to names."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0
        self.version = self._take("I")
        self.name, self.revision = self._string(), self._take("I")
        self.variables = {}
        for _ in range(self._take("I")):
            name = self._string()
            shape = tuple(self._take("I") for _ in range(self._take("B")))
            kind, size = self._take("B"), self._take("I")
            self.variables[name] = (shape, kind, data[self.position : self.position + size])
            self.position += size
        self.aliases = {self._string(): self._string() for _ in range(self._take("I"))}
        assert self.position == len(data)

    def _take(self, code: str) -> int:
        (value,) = struct.unpack_from(f"<{code}", self.data, self.position)
        self.position += struct.calcsize(code)
        return int(value)

    def _string(self) -> str:
        text = self.data[self.position + 2 : self.position + 2 + self._take("H")]
        self.position += len(text)
        return text.decode().removesuffix("\0")


def test_memory_is_bounded_by_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_BLOCK_BYTES", 64 * 1024)
    source = Arrays(big=np.random.default_rng(0).standard_normal((3000, 64), dtype=np.float32))
    for quantization in QUANTIZATIONS:
        written(source, tmp_path, quantization)
    assert 0 < source.largest <= 64 * 1024


def test_equal_tensors_are_written_once(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((40, 16), dtype=np.float32)
    last_differs = values.copy()
    last_differs[-1, -1] += 1
    source = Arrays(a=values, b=last_differs, c=values.copy(), d=last_differs.copy())
    model = written(source, tmp_path, "int8")
    assert model.aliases == {"layer_2/weight": "layer_0/weight", "layer_3/weight": "layer_1/weight"}
    assert sorted(model.variables) == [
        "layer_0/weight", "layer_0/weight_scale", "layer_1/weight", "layer_1/weight_scale",
    ]  # fmt: skip


def test_negative_zero_equals_zero(tmp_path: Path) -> None:
    zeros = np.zeros((2, 4), np.float32)
    model = written(Arrays(a=zeros, b=-zeros), tmp_path, "float32")
    assert model.aliases == {"layer_1/weight": "layer_0/weight"}


def test_planned_size_is_never_less_than_the_file(folder: Path, tmp_path: Path) -> None:
    with closing(SafetensorsSource(folder)) as source:
        for quantization in QUANTIZATIONS:
            specification = specify(source)
            size = write_model(tmp_path / "model.bin", specification, source, quantization)
            planned = planned_size(plan(specification, quantization))
            assert size <= planned <= size + 256 * 200


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, quantization: str, bad: float) -> None:
    values = np.ones((4, 4), np.float32)
    values[2, 3] = bad
    with pytest.raises(ModelError, match=r"tensor w holds values that are not finite.*layer_0/weight"):
        written(Arrays(w=values), tmp_path, quantization)


def test_values_beyond_float16_are_refused(tmp_path: Path) -> None:
    source = Arrays(w=np.full((1, 2), 65520, np.float32))
    with pytest.raises(ModelError, match="float16's 65504"):
        written(source, tmp_path, "float16")
    written(source, tmp_path, "bfloat16")
    written(Arrays(w=np.full((1, 2), 65519, np.float32)), tmp_path, "float16")


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_zeros_stay_zeros(tmp_path: Path, quantization: str) -> None:
    model = written(Arrays(w=np.zeros((3, 5), np.float32)), tmp_path, quantization)
    shape, _, values = model.variables["layer_0/weight"]
    assert shape == (3, 5)
    assert values and not any(values)


def test_a_tensor_above_four_gigabytes_is_refused() -> None:
    source = Arrays(w=np.zeros((1, 1), np.float32))
    specification = linear_layers(source)
    specification.spec.layer[0].weight = Weight((Part("w", 1 << 20),), (1 << 20, 1 << 10), "float32")
    with pytest.raises(ModelError, match="4 GiB per tensor"):
        plan(specification, "float32")
    plan(specification, "int8")


def test_an_unknown_quantisation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"int4.*known: int8"):
        plan(linear_layers(Arrays()), "int4")
