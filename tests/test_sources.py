"""Sources: blocks of rows equal whole tensors, and damaged, hostile or unsupported files are named."""

from __future__ import annotations

import json
import struct
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import CONFIGS, write_gguf, write_hf

from convert.gguf_metadata import read_metadata
from convert.gguf_source import GgufSource
from convert.hf_config import read_config
from convert.safetensors_source import SafetensorsFile, SafetensorsSource
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.records import Record


def readable(kind: Type) -> bool:
    try:
        gguf.quants.dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


READABLE = [kind for kind in Type if readable(kind)]
UNREADABLE = [kind for kind in Type if not readable(kind)]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf(tmp_path_factory.mktemp("hf") / "llama", "llama")


def gguf_with(tmp_path: Path, raw: np.ndarray[Any, Any], kind: Type, dimensions: int = 2) -> Path:
    """A GGUF file of architecture llama that also holds the tensor "extra" of the given bytes."""
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_tensor("extra", raw if dimensions == 2 else raw.reshape(-1), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", READABLE, ids=lambda kind: kind.name)
def test_gguf_blocks_of_rows_equal_the_whole_tensor(kind: Type, tmp_path: Path) -> None:
    rows, blocks = 37, 3
    raw = np.random.default_rng(0).integers(0, 256, (rows, blocks * GGML_QUANT_SIZES[kind][1]), np.uint8)
    if kind in (Type.F32, Type.F16):
        raw = (
            np.random.default_rng(0).random((rows, 96)).astype(np.float32 if kind is Type.F32 else np.float16)
        )
    with closing(GgufSource(gguf_with(tmp_path, raw, kind))) as source, np.errstate(all="ignore"):
        shape = source.shape("extra")
        whole = gguf.quants.dequantize(raw, kind)
        assert shape == whole.shape
        for start, stop in ((0, rows), (0, 1), (5, 6), (3, 30), (36, 37)):
            np.testing.assert_array_equal(source.rows("extra", start, stop), whole[start:stop])


def test_a_gguf_vector_of_any_type_is_read_in_parts(tmp_path: Path) -> None:
    values = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 64)
    for kind in (Type.F32, Type.F16, Type.Q8_0):
        raw = gguf.quants.quantize(values, kind)
        with closing(GgufSource(gguf_with(tmp_path, raw, kind, dimensions=1))) as source:
            assert source.shape("extra") == (64,)
            expected = gguf.quants.dequantize(raw, kind).reshape(-1)
            np.testing.assert_array_equal(source.rows("extra", 5, 41), expected[5:41])


@pytest.mark.parametrize("kind", UNREADABLE, ids=lambda kind: kind.name)
def test_a_gguf_type_that_cannot_be_read_is_named(kind: Type, tmp_path: Path) -> None:
    raw = np.zeros((4, 2 * GGML_QUANT_SIZES[kind][1]), np.uint8)
    path = gguf_with(tmp_path, raw, kind)
    with pytest.raises(ModelError, match=rf"tensor extra has the type {kind.name}, which can't"):
        GgufSource(path)


def test_a_gguf_file_cut_short_is_refused(llama: Path, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", llama)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 4096])
    with pytest.raises(ModelError, match=r"model\.gguf: .*(cut short|not inside)"):
        GgufSource(path)


def test_a_file_that_shrinks_while_it_is_read_is_an_error_not_a_crash(llama: Path, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", llama)
    with closing(GgufSource(path)) as source:
        last = max(source.metadata.tensors, key=lambda tensor: tensor.offset)
        with path.open("rb+") as file:
            file.truncate(source.metadata.data_offset + last.offset + 4)
        with pytest.raises(ModelError, match=f"ends before tensor {last.name}"):
            source.rows(last.name, 0, last.shape[0])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("general.architecture", "gemma", "architecture 'gemma'.*known: llama"),
        ("llama.attention.head_count", 0, "head_count is 0"),
        ("llama.rope.scaling.type", "yarn", "rotary scaling 'yarn'"),
        ("llama.rope.dimension_count", 4, "rotary positions on 4 of 8"),
        ("llama.block_count", "two", "block_count should be an integer"),
        ("llama.block_count", 1 << 20, r"llama\.block_count is 1048576; it should be from 1 to 21"),
        ("llama.block_count", (1 << 32) - 1, r"llama\.block_count is 4294967295"),
        ("llama.attention.head_count", 1 << 16, r"head_count is 65536; it should be from 1 to 32,767"),
        ("llama.embedding_length", 1 << 40, r"llama\.embedding_length is 1099511627776"),
        ("llama.context_length", (1 << 64) - 1, r"llama\.context_length is 18446744073709551615"),
        ("llama.rope.freq_base", float("inf"), r"llama\.rope\.freq_base is inf"),
        ("llama.attention.layer_norm_rms_epsilon", float("nan"), "layer_norm_rms_epsilon is nan"),
    ],
)
def test_gguf_fields_that_cannot_be_converted_are_named(
    llama: Path, tmp_path: Path, key: str, value: object, message: str
) -> None:
    metadata = read_metadata(write_gguf(tmp_path / "model.gguf", llama))
    with pytest.raises(ModelError, match=message):
        GgufSource(metadata.path, replace(metadata, fields=metadata.fields | {key: value}))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_safetensors_equal_what_the_safetensors_library_reads(dtype: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = write_hf(tmp_path / "model", "llama", dtype=dtype, shard="20KB")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 2
    expected = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    with closing(SafetensorsSource(folder)) as source:
        assert set(source.names) == set(expected)
        for name, tensor in expected.items():
            values = tensor.float().numpy()
            assert source.stored_type(name) == dtype
            np.testing.assert_array_equal(source.rows(name, 0, len(values)), values)
            np.testing.assert_array_equal(source.rows(name, 1, 3), values[1:3])


def test_float64_is_read_as_float32(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    values = np.random.default_rng(0).standard_normal((3, 4))
    save_file({"w": values}, tmp_path / "model.safetensors")
    file = SafetensorsFile(tmp_path / "model.safetensors")
    with closing(file.file):
        np.testing.assert_array_equal(file.rows("w", 0, 3), values.astype(np.float32))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_hf(tmp_path / "model", "llama", shard="20KB")


def test_a_truncated_shard_is_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ModelError, match=f"{shard.name}.*cut short"):
        SafetensorsSource(sharded)


def test_a_missing_shard_is_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelError, match=shard.name):
        SafetensorsSource(sharded)


def test_a_shard_without_a_tensor_of_the_index_is_named(sharded: Path) -> None:
    first, second = sorted(sharded.glob("*.safetensors"))[:2]
    second.write_bytes(first.read_bytes())
    with pytest.raises(ModelError, match=f"{second.name}: tensor .* is missing"):
        SafetensorsSource(sharded)


def test_an_index_cannot_reach_outside_its_folder(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    record = json.loads(index.read_text("utf-8"))
    record["weight_map"]["lm_head.weight"] = "../elsewhere.safetensors"
    index.write_text(json.dumps(record), "utf-8")
    with pytest.raises(ModelError, match="not a plain file name"):
        SafetensorsSource(sharded)


def test_pickled_weights_are_not_read(sharded: Path) -> None:
    for path in sharded.glob("model*safetensors*"):
        path.unlink()
    (sharded / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin can run code.*save the model as safetensors"):
        SafetensorsSource(sharded)


def safetensors_bytes(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01",
        struct.pack("<Q", 1 << 63),
        struct.pack("<Q", 500) + b"{}",
        safetensors_bytes(b"[" * 50_000),
        safetensors_bytes(b"\xff\xfe"),
        safetensors_bytes([]),
        safetensors_bytes({"w": None}),
        safetensors_bytes({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"\0" * 8),
        safetensors_bytes({"w": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, b"\0" * 8),
        safetensors_bytes({"w": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}, b"\0" * 8),
        safetensors_bytes({"w": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, b"\0" * 8),
        safetensors_bytes({"w": {"dtype": "F32", "shape": [1 << 62, 4], "data_offsets": [0, 0]}}),
        safetensors_bytes({"w": {"dtype": "NEW", "shape": [1 << 40, 4], "data_offsets": [0, 8]}}, b"\0" * 8),
        safetensors_bytes({"w": {"dtype": "F32", "shape": ["2"], "data_offsets": [0, 8]}}, b"\0" * 8),
        safetensors_bytes({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 7),
    ],
)
def test_a_lying_header_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors: .*(damaged|cut short)"):
        SafetensorsFile(path)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=4)), max_size=4))
def test_a_damaged_header_never_fails_in_another_way(llama: Path, tmp_path: Path, changes: Any) -> None:
    data = bytearray((llama / "model.safetensors").read_bytes())
    for position, patch in changes:
        data[position : position + len(patch)] = patch
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    try:
        file = SafetensorsFile(path)
    except ModelError:
        return
    with closing(file.file):
        for name, entry in file.entries.items():
            try:
                rows = entry.shape[0] if entry.shape else 1
                assert file.rows(name, 0, rows).size == int(np.prod(entry.shape))
            except ModelError as error:
                assert name in str(error)


def test_a_type_that_is_not_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header = {"w": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}
    path.write_bytes(safetensors_bytes(header, b"\0\0"))
    file = SafetensorsFile(path)
    with closing(file.file), pytest.raises(ModelError, match="tensor w has the type F8_E4M3"):
        file.rows("w", 0, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma"}, "a gemma model can only be converted whole"),
        (
            {"model_type": "rwkv"},
            "'rwkv'.*known: gpt_bigcode, llama, mistral, phi3, qwen2, qwen3, starcoder2;",
        ),
        ({"hidden_size": "32"}, "hidden_size is '32'"),
        ({"num_hidden_layers": None}, "num_hidden_layers is None"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised already.*awq"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 8.0}}, "rotary scaling 'dynamic'.*known"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 0}}, "factor of the rotary scaling is 0"),
        (
            {"rope_parameters": {"rope_type": "llama3", "low_freq_factor": 4}},
            "low_freq_factor is 4.0, not below",
        ),
        ({"rope_parameters": {"rope_type": "longrope", "short_factor": [1, 2]}}, "short_factor.*4 positive"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "50% of each head"),
        ({"rope_parameters": []}, "rope_parameters is"),
        ({"rope_parameters": {"rope_theta": 10**400}}, r"config\.json: rope_theta is 1000"),
        ({"rope_parameters": None, "rope_theta": 10**400}, r"config\.json: rope_theta is 1000"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 10**400}}, r"config\.json: factor is 1000"),
        ({"rope_parameters": {"rope_type": "linear", "factor": float("inf")}}, "factor is inf"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"num_attention_heads": 1 << 16, "hidden_size": 1 << 16}, "num_attention_heads is 65536"),
        ({"hidden_size": 10**400}, "hidden_size is 1000"),
        ({"num_hidden_layers": 10**10}, "num_hidden_layers is 10000000000"),
    ],
)
def test_a_configuration_that_cannot_be_converted_is_named(
    llama: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    record = json.loads((llama / "config.json").read_text("utf-8")) | changes
    (tmp_path / "config.json").write_text(json.dumps(record), "utf-8")
    with pytest.raises(ModelError, match=message):
        read_config(Record.read(tmp_path / "config.json"))


@pytest.mark.parametrize(("name", "key"), [("llama", "num_hidden_layers"), ("starcoder", "n_layer")])
def test_more_layers_than_tensors_are_refused(name: str, key: str, tmp_path: Path) -> None:
    folder = write_hf(tmp_path / name, name)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {key: 10**9}), "utf-8")
    with pytest.raises(
        ModelError, match=rf"config\.json: {key} is 1,000,000,000, but there are only \d\d tens"
    ):
        SafetensorsSource(folder)


def test_configurations_of_older_transformers_are_read(llama: Path, tmp_path: Path) -> None:
    record = json.loads((llama / "config.json").read_text("utf-8"))
    del record["rope_parameters"]
    record |= {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    (tmp_path / "config.json").write_text(json.dumps(record), "utf-8")
    config = read_config(Record.read(tmp_path / "config.json"))
    assert config.rope_theta == 5e5
    assert config.rope_scaling is not None and config.rope_scaling.factor == 2.0


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_fact_equals_the_one_transformers_reads(name: str, tmp_path: Path) -> None:
    import transformers

    folder = write_hf(tmp_path / name, name)
    ours = read_config(Record.read(folder / "config.json"))
    theirs = transformers.AutoConfig.from_pretrained(folder)
    assert ours.layers == theirs.num_hidden_layers
    assert (ours.heads, ours.hidden) == (theirs.num_attention_heads, theirs.hidden_size)
    assert ours.context_length == theirs.max_position_embeddings
    assert ours.tied == theirs.tie_word_embeddings
