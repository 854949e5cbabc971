"""Settings of rrtf-serve: file under flags, and errors that name what is wrong."""

from pathlib import Path

import pytest

from rrtf_serve.config import DEFAULT_MODEL, ServeConfig, read_config


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "serve.toml"
    path.write_text(text, "utf-8")
    return path


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    path = written(
        tmp_path, 'model = "a"\nport = 9000\ndrain_seconds = 5\napi_key_file = "keys.txt"\nui = false\n'
    )
    config = read_config(path, {"port": 9100, "model": None})
    assert (config.model, config.port, config.drain_seconds, config.ui) == ("a", 9100, 5.0, False)
    assert config.api_key_file == Path("keys.txt")
    assert config.host == ServeConfig().host


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("prot = 1", "'prot'"),
        ('port = "8000"', "port"),
        ("port = true", "port"),
        ("port = 70000", "--port"),
        ("ui = 1", "ui"),
        ("model = ", "TOML"),
        ("max_queue = 0", "--max-queue"),
    ],
)
def test_a_bad_file_names_itself_and_the_key(tmp_path: Path, text: str, named: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ValueError, match=r"serve\.toml") as error:
        read_config(path, {})
    assert named in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--config .*absent\.toml"):
        read_config(tmp_path / "absent.toml", {})


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"quantization": "int3"}, "--quantization int3"),
        ({"device": "tpu"}, "--device tpu"),
        ({"context_length": 1}, "--context-length"),
        ({"threads": -1}, "--threads"),
        ({"max_batch": 0}, "--max-batch"),
        ({"drain_seconds": -1.0}, "--drain-seconds"),
        ({"kv_dtype": "int8"}, "--kv-dtype int8"),
        ({"kv_cache_tokens": -1}, "--kv-cache-tokens"),
    ],
)
def test_a_bad_flag_is_named(values: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        read_config(None, values)


def test_several_models_keep_their_order() -> None:
    config = read_config(None, {"model": ["a", "b", "c"], "port": None})
    assert (config.model, config.more_models) == ("a", ("b", "c"))
    assert [each.model for each in config.each_model()] == ["a", "b", "c"]
    assert config.each_model()[0].more_models == ()
    assert read_config(None, {"model": None}).model == DEFAULT_MODEL


@pytest.mark.parametrize("name", ["served_name", "family", "revision"])
def test_what_belongs_to_one_model_is_refused_with_several(name: str) -> None:
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} goes with one model"):
        read_config(None, {"model": ["a", "b"], name: "x"})
