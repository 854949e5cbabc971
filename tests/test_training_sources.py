"""Sources of answers: what is refused, and what a source asks for."""

import pytest

from training.sources import Source

TEACHER = {"name": "t", "role": "teacher"}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"name": "a/b"}, "source 'a/b': --name"),
        ({"role": "boss", "model": "m"}, "source t: --role boss"),
        ({"kind": "oracle"}, "source t: --kind oracle"),
        ({}, "source t: --model is missing"),
        ({"model": "m", "url": "http://h"}, "--url and --kind url go together"),
        ({"model": "m", "kind": "url"}, "--url and --kind url go together"),
        ({"kind": "reference", "model": "m"}, "a reference has neither"),
        ({"model": "m", "k": 0}, "source t: --k must be"),
        ({"model": "m", "temperatures": ()}, "--temperatures"),
        ({"model": "m", "temperatures": (0.5, 0.5)}, "--temperatures"),
        ({"model": "m", "temperatures": (-1.0,)}, "source t: --temperature must be"),
        ({"model": "m", "top_p": 2.0}, "source t: --top-p"),
        ({"model": "m", "engine": "vllm"}, "source t: --engine vllm"),
        ({"model": "m", "dtype": "float32"}, "--dtype float32: goes with --engine torch"),
        ({"model": "m", "format": "haiku"}, "source t: --format haiku"),
    ],
)
def test_what_is_refused_names_the_source_and_the_flag(keys: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Source(**{**TEACHER, **keys})  # type: ignore[arg-type]  # the point is that some are wrong


def test_a_file_for_each_temperature() -> None:
    source = Source("big", "teacher", model="m", temperatures=(0, 0.25, 1.0))
    assert [source.stem(each) for each in source.decodings()] == ["big-t0", "big-t0.25", "big-t1"]
    assert Source("experts", "teacher", kind="reference").decodings() == ()


def test_a_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source("far", "teacher", kind="url", url="http://h", api_key_env="TOY_KEY", batch=3)
    monkeypatch.delenv("TOY_KEY", raising=False)
    with pytest.raises(ValueError, match="source far: the environment variable TOY_KEY"):
        source.sampler_config()
    monkeypatch.setenv("TOY_KEY", "secret")
    config = source.sampler_config()
    assert (config.api_key, config.engine, config.url, config.batch) == ("secret", "http", "http://h", 3)
