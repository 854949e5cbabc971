"""Sources: blocks of rows equal whole tensors, and damaged, hostile or unsupported files are named."""

from __future__ import annotations

import json
import struct
import warnings
from contextlib import closing
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

from convert.adapter_source import AdapterSource
from convert.gguf_source import GgufSource
from convert.safetensors_source import SafetensorsFile, SafetensorsSource, read_config
from convert.sources import TensorSource
from rrtf_serve.models.errors import ModelError


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
    ],
)
def test_gguf_fields_that_cannot_be_converted_are_named(
    llama: Path, tmp_path: Path, key: str, value: object, message: str
) -> None:
    from dataclasses import replace

    from convert.gguf_metadata import read_metadata

    metadata = read_metadata(write_gguf(tmp_path / "model.gguf", llama))
    with pytest.raises(ModelError, match=message):
        GgufSource(metadata.path, replace(metadata, fields=metadata.fields | {key: value}))


def tensors_of(source: TensorSource) -> dict[str, np.ndarray[Any, Any]]:
    return {name: source.rows(name, 0, source.shape(name)[0]) for name in source.names}


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
        ({"model_type": "gemma"}, "'gemma'.*known: gpt_bigcode, llama, qwen2, starcoder2"),
        ({"hidden_size": "32"}, "hidden_size is '32'"),
        ({"num_hidden_layers": None}, "num_hidden_layers is None"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised already.*awq"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "rotary scaling 'llama3'"),
        ({"rope_parameters": []}, "rope_parameters is"),
    ],
)
def test_a_configuration_that_cannot_be_converted_is_named(
    llama: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    record = json.loads((llama / "config.json").read_text("utf-8")) | changes
    (tmp_path / "config.json").write_text(json.dumps(record), "utf-8")
    with pytest.raises(ModelError, match=message):
        read_config(tmp_path)


def test_configurations_of_older_transformers_are_read(llama: Path, tmp_path: Path) -> None:
    record = json.loads((llama / "config.json").read_text("utf-8"))
    del record["rope_parameters"]
    record |= {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    (tmp_path / "config.json").write_text(json.dumps(record), "utf-8")
    config = read_config(tmp_path)
    assert config.rope_theta == 5e5
    assert config.rope_scaling is not None and config.rope_scaling.factor == 2.0


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_fact_equals_the_one_transformers_reads(name: str, tmp_path: Path) -> None:
    import transformers

    folder = write_hf(tmp_path / name, name)
    ours, theirs = read_config(folder), transformers.AutoConfig.from_pretrained(folder)
    assert ours.layers == theirs.num_hidden_layers
    assert (ours.heads, ours.hidden) == (theirs.num_attention_heads, theirs.hidden_size)
    assert ours.context_length == theirs.max_position_embeddings
    assert ours.tied == theirs.tie_word_embeddings


LORA_TARGETS = ["q_proj", "v_proj", "down_proj"]


def write_adapter(base: Path, folder: Path, targets: list[str], **options: Any) -> dict[str, Any]:
    """A PEFT adapter with random A and B, and what PEFT itself merges it to, by tensor name."""
    import peft

    with warnings.catch_warnings():  # PEFT's own: deprecated calls, advice about tied layers
        warnings.simplefilter("ignore")
        return _write_adapter(base, folder, peft.LoraConfig(target_modules=targets, **options))


def _write_adapter(base: Path, folder: Path, config: Any) -> dict[str, Any]:
    import peft
    import torch
    import transformers

    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = peft.get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter) * 0.1
    adapted.save_pretrained(folder)
    merged = adapted.merge_and_unload()
    return {name: tensor.numpy().copy() for name, tensor in merged.state_dict().items()}


@pytest.mark.parametrize(
    "options",
    [
        {"r": 4, "lora_alpha": 12},
        {"r": 4, "lora_alpha": 12, "use_rslora": True},
        {"r": 4, "lora_alpha": 12, "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 7}},
        {"r": 2, "lora_alpha": 3, "alpha_pattern": {"layers.0.self_attn.q_proj": 9}},
        {"r": 2, "lora_alpha": 3, "alpha_pattern": {"^model.layers.1.mlp.down_proj": 9}},
    ],
    ids=["plain", "rslora", "patterns", "module", "anchored"],
)
def test_a_merged_adapter_equals_pefts_own_merge(
    llama: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    merged = write_adapter(llama, tmp_path, LORA_TARGETS, **options)
    with closing(AdapterSource(tmp_path, SafetensorsSource(llama))) as source:
        found = tensors_of(source)
        assert set(found) <= set(merged)
        for name, values in found.items():
            np.testing.assert_allclose(values, merged[name], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(source.rows(name, 3, 5), merged[name][3:5], rtol=1e-5, atol=1e-6)
        changed = {name for name in found if source.stored_type(name) == "float32" and "proj" in name}
        with closing(SafetensorsSource(llama)) as base:
            name = "model.layers.1.mlp.down_proj.weight"
            assert name in changed
            assert np.abs(base.rows(name, 0, 8) - found[name][:8]).max() > 1e-3


def test_an_adapter_for_transposed_weights(tmp_path: Path, llama: Path) -> None:
    """fan_in_fan_out: the base keeps (in, out), so the change is added transposed."""
    from safetensors.numpy import load_file, save_file

    write_adapter(llama, tmp_path, ["down_proj"], r=2)
    file, name = tmp_path / "adapter_model.safetensors", "model.layers.0.mlp.down_proj.weight"
    tensors = load_file(file)
    a, b = (
        next(value for key, value in tensors.items() if f"layers.0.mlp.down_proj.lora_{side}" in key)
        for side in "AB"
    )
    # The tiny model keeps (32, 64); read as transposed weights those are 64 outputs of 32 inputs.
    swapped = {
        key: (np.ascontiguousarray(b.T) if "lora_A" in key else np.ascontiguousarray(a.T))
        for key in tensors
        if "layers.0." in key
    }
    save_file(swapped, file)
    config = json.loads((tmp_path / "adapter_config.json").read_text("utf-8")) | {"fan_in_fan_out": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    with closing(AdapterSource(tmp_path, SafetensorsSource(llama))) as source:
        change = source.rows(name, 4, 9) - source.base.rows(name, 4, 9)
    np.testing.assert_allclose(change, (8 / 2 * (b @ a))[4:9], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"use_dora": True}, "use_dora can't be merged"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save can't be merged"),
        ({"bias": "all", "lora_bias": True}, "lora_bias, bias can't be merged"),
        ({"alpha_pattern": {".*proj": 4}}, r"alpha_pattern '\.\*proj' is a pattern"),
    ],
)
def test_adapters_that_cannot_be_merged_are_refused_by_name(
    llama: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_adapter(llama, tmp_path, ["q_proj"], r=2)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")
    with closing(SafetensorsSource(llama)) as base, pytest.raises(ModelError, match=message):
        AdapterSource(tmp_path, base)


def test_an_adapter_of_another_base_is_refused(llama: Path, tmp_path: Path) -> None:
    write_adapter(llama, tmp_path, ["q_proj"], r=2)
    other = write_hf(tmp_path / "other", "llama-wide-heads")
    with (
        closing(SafetensorsSource(other)) as base,
        pytest.raises(ModelError, match="adapter of another base"),
    ):
        AdapterSource(tmp_path, base)
    starcoder = write_hf(tmp_path / "starcoder", "starcoder")
    with closing(SafetensorsSource(starcoder)) as base, pytest.raises(ModelError, match="does not have"):
        AdapterSource(tmp_path, base)


def test_an_adapter_on_a_tied_output_matrix_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tied = write_hf(tmp_path / "tied", "qwen2")
    write_adapter(tied, tmp_path / "adapter", ["lm_head"], r=2)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({key: value for key, value in load_file(file).items() if "lora_" in key}, file)
    with closing(SafetensorsSource(tied)) as base, pytest.raises(ModelError, match="ties to the embedding"):
        AdapterSource(tmp_path / "adapter", base)
