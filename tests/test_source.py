import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.source import Kind, detect_kind, name_of, safe_name


def folder(path: Path, **files: object) -> Path:
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (path / name.replace("__", ".")).write_text(text)
    return path


def test_gguf_is_known_by_its_first_bytes_not_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "weights.dat"
    path.write_bytes(b"GGUF\x03\x00\x00\x00")
    assert detect_kind(path) is Kind.GGUF
    fake = tmp_path / "fake.gguf"
    fake.write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelError, match="not a GGUF file"):
        detect_kind(fake)


def test_folders_are_told_apart(tmp_path: Path) -> None:
    assert detect_kind(folder(tmp_path / "a", model__bin="", config__json={})) is Kind.CT2
    assert detect_kind(folder(tmp_path / "b", config__json={}, model__safetensors="")) is Kind.HF
    adapter = folder(tmp_path / "c", adapter_config__json={}, adapter_model__safetensors="")
    assert detect_kind(adapter) is Kind.ADAPTER


@pytest.mark.parametrize(
    "files",
    [
        {"config__json": {"quantization_config": {"quant_method": "gptq", "bits": 4}}},
        {"config__json": {}, "quantize_config__json": {"bits": 4}},
    ],
)
def test_gptq_is_known_in_both_spellings(tmp_path: Path, files: dict[str, object]) -> None:
    assert detect_kind(folder(tmp_path / "m", **files, model__safetensors="")) is Kind.GPTQ


def test_every_writer_s_gptq_folder_is_known(tmp_path: Path) -> None:
    """The files that each leaves, by its own names: AutoGPTQ 0.7, gptqmodel, optimum, TheBloke's uploads."""
    in_config = {"model_type": "qwen2", "quantization_config": {"quant_method": "gptq", "bits": 4}}
    old = {"bits": 4, "group_size": 128, "desc_act": False, "model_name_or_path": "m"}
    new = old | {"quant_method": "gptq", "checkpoint_format": "gptq", "meta": {"quantizer": ["gptqmodel:5"]}}
    folders = {
        "auto-gptq": {"quantize_config__json": old, "gptq_model-4bit-128g__safetensors": ""},
        "gptqmodel": {"config__json": in_config, "quantize_config__json": new, "model__safetensors": ""},
        "gptq-v2": {
            "config__json": {"quantization_config": {"quant_method": "GPTQ", "format": "gptq_v2"}},
            "model__safetensors": "",
        },
        "optimum": {
            "config__json": in_config,
            "model__safetensors__index__json": {},
            "model-00001-of-00002__safetensors": "",
        },
    }
    for name, files in folders.items():
        assert detect_kind(folder(tmp_path / name, **({"config__json": {}} | files))) is Kind.GPTQ, name


def test_folders_of_this_project_are_told_apart_by_more_than_their_card(tmp_path: Path) -> None:
    card = {"rrtf__json": {"name": "m"}}
    assert detect_kind(folder(tmp_path / "a", **card, model__bin="", config__json={})) is Kind.CT2
    assert detect_kind(folder(tmp_path / "b", **card, config__json={}, model__safetensors="")) is Kind.HF
    both = folder(tmp_path / "c", adapter_config__json={}, config__json={}, adapter_model__safetensors="")
    assert detect_kind(both) is Kind.ADAPTER


def test_other_quantisations_are_not_gptq(tmp_path: Path) -> None:
    config = {"quantization_config": {"quant_method": "awq"}}
    assert detect_kind(folder(tmp_path / "m", config__json=config, model__safetensors="")) is Kind.HF


@pytest.mark.parametrize("marker", ["config__json", "adapter_config__json"])
def test_pickled_weights_are_refused_with_the_reason(tmp_path: Path, marker: str) -> None:
    path = folder(tmp_path / "m", **{marker: {}, "pytorch_model__bin": ""})
    with pytest.raises(ModelError, match=r"pickles \(pytorch_model.bin\).*run code.*safetensors"):
        detect_kind(path)


def test_a_folder_without_weights_asks_whether_the_copy_is_complete(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is the copy complete"):
        detect_kind(folder(tmp_path / "m", config__json={}))


def test_a_folder_of_ggufs_names_one(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"name one of them, for example .*a\.gguf"):
        detect_kind(folder(tmp_path / "m", a__gguf="GGUF"))


def test_a_lone_shard_points_at_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "model-00001-of-00002.safetensors"
    path.write_bytes(b"\x00" * 16)
    with pytest.raises(ModelError, match="name its folder"):
        detect_kind(path)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_broken_configurations_are_named(tmp_path: Path, text: str) -> None:
    path = folder(tmp_path / "m", config__json=text, model__safetensors="")
    with pytest.raises(ModelError, match=r"config\.json: "):
        detect_kind(path)


def test_an_absent_or_empty_path_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file or folder"):
        detect_kind(tmp_path / "absent")
    with pytest.raises(ModelError, match="Looked for"):
        detect_kind(folder(tmp_path / "m", readme__md=""))


def test_names_come_from_places(tmp_path: Path) -> None:
    assert name_of(tmp_path / "My Model.Q4_K_M.gguf") == "My-Model.Q4_K_M"
    assert name_of(tmp_path / "checkpoint-500") == "checkpoint-500"


@given(st.text())
def test_a_safe_name_is_one_visible_file_name(text: str) -> None:
    name = safe_name(text)
    assert Path(name).name == name
    assert not name.startswith(".")
    assert name.isascii()
    assert name.isprintable()
