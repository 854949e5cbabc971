"""What `rrtf-convert gptq` refuses before it quantises anything; needs no GPTQ library."""

from __future__ import annotations

import logging
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_gptq import write_packable
from tiny_models import write_hf, write_tokenizer

from convert import gptq_backends
from convert.cli import main
from convert.gptq import Options, quantise
from convert.gptq_process import Job, run
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.source import Kind, Source
from rrtf_serve.models.store import Store


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    folder = tmp_path_factory.mktemp("models")
    store = Store(folder / "home")
    for family in ("llama", "starcoder", "starcoder2"):
        write_packable(folder / family, family)
    write_hf(folder / "narrow", "qwen2")  # keys and values of 16 rows
    names = ("llama", "starcoder", "starcoder2", "narrow")
    return {name: store.fetch(str(folder / name), progress=False) for name in names}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"bits": 5}, "--bits 5: should be one of 8, 4, 3"),
        ({"group_size": 100}, "--group-size 100: should be one of -1, 16, 32"),
        (
            {"backend": "bitsandbytes"},
            "--backend bitsandbytes: should be one of gptqmodel, optimum, auto-gptq",
        ),
        ({"damp": 0.0}, "--damp 0.0: should lie between 0 and 1"),
        ({"samples": 0}, "--samples 0"),
        ({"seqlen": 0}, "--seqlen 0: should be at least 2"),
        ({"seed": -1}, "--seed -1: should be from 0 to 4,294,967,295"),
        ({"seed": 1 << 32}, "--seed 4294967296"),
    ],
)
def test_values_that_make_no_sense_name_the_flag(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Options(**options)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        (
            "llama",
            {"group_size": 128},
            r"--group-size 128: does not divide the 64 inputs .* take 16, 32, 64 or -1",
        ),
        ("llama", {"seqlen": 300}, "--seqlen 300: the model's context is 256 tokens long"),
        ("llama", {"calibration": "humaneval"}, "--calibration humaneval: is an evaluation suite"),
    ],
)
def test_flags_that_do_not_fit_the_model(
    sources: dict[str, Source], tmp_path: Path, name: str, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        quantise(sources[name], tmp_path / "out", Options(**({"group_size": 32} | options)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "backend", "reason"),
    [
        ("narrow", "gptqmodel", "has matrices of 16 rows or columns; the format packs both by 32"),
        ("starcoder", "optimum", "TorchAtenLinear.*; take --backend gptqmodel"),
        (
            "starcoder2",
            "optimum",
            "can't quantise starcoder2: it takes llama, qwen2; take --backend gptqmodel",
        ),
        ("starcoder2", "auto-gptq", "auto-gptq 0.7.1 is older than this architecture"),
    ],
)
def test_models_that_a_backend_does_not_take(
    sources: dict[str, Source], tmp_path: Path, name: str, backend: str, reason: str
) -> None:
    with pytest.raises(ModelError, match=reason):
        quantise(sources[name], tmp_path / "out", Options(backend=backend, group_size=32))
    assert list(tmp_path.iterdir()) == []


def test_auto_gptq_needs_its_environment_and_a_cuda_device(
    sources: dict[str, Source], tmp_path: Path
) -> None:
    options = Options(backend="auto-gptq", group_size=32)

    def refusal(python: Path) -> str:
        with pytest.raises(ModelError) as error:
            quantise(sources["llama"], tmp_path / "out", options, auto_gptq_python=python)
        return str(error.value)

    assert "no such interpreter" in refusal(tmp_path / "absent") and "make auto-gptq" in refusal(
        tmp_path / "x"
    )
    assert "has no working auto-gptq" in refusal(Path(sys.executable))
    stand_in = tmp_path / "python"
    stand_in.write_text("#!/bin/sh\necho False\n", "utf-8")
    stand_in.chmod(stand_in.stat().st_mode | stat.S_IXUSR)
    assert "quantises on a CUDA device only, and none is seen here" in refusal(stand_in)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("missing", r"model\.layers\.1\.mlp\.up_proj\.weight is missing"),
        ("not finite", r"model\.layers\.1\.mlp\.up_proj\.weight holds values that are not finite"),
        ("tokenizer", "the tokenizer has 130 tokens, the embedding 128 rows"),
    ],
)
def test_a_damaged_model_is_refused_before_a_library_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str, reason: str
) -> None:
    """They make up what is missing, and quantise what is no number."""
    import torch
    from safetensors.torch import load_file, save_file

    monkeypatch.setattr(gptq_backends.importlib.util, "find_spec", lambda name: name)  # as if it were there
    folder, name = write_packable(tmp_path / "model", "llama"), "model.layers.1.mlp.up_proj.weight"
    tensors = load_file(folder / "model.safetensors")
    if damage == "missing":
        del tensors[name]
    elif damage == "not finite":
        tensors[name][0, 0] = torch.nan
    else:
        write_tokenizer(folder, 130)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=reason):
        quantise(Source(folder, Kind.HF, "m"), tmp_path / "out", Options(group_size=32, samples=2, seqlen=32))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_missing_library_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gptq_backends.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ModelError,
        match=r"gptqmodel is not installed; `make gptq` adds it; .*pip install 'rrtf-serve\[gptq\]'",
    ):
        gptq_backends.BACKENDS["gptqmodel"].interpreter(None)


def test_the_command_exits_with_2_on_a_flag_and_1_on_a_model(
    sources: dict[str, Source],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RRTF_HOME", str(tmp_path / "home"))
    llama, starcoder = (str(sources[name].path) for name in ("llama", "starcoder"))
    assert main(["gptq", llama, "-o", str(tmp_path / "a"), "--bits", "7"]) == 2
    assert "rrtf-convert gptq: --bits 7" in capsys.readouterr().err
    command = ["gptq", starcoder, "-o", str(tmp_path / "b"), "--backend", "optimum", "--group-size", "32"]
    assert main(command) == 1
    said = capsys.readouterr()
    start, *failure = said.err.splitlines()
    assert said.out == "" and failure[-1].startswith("rrtf-convert: ")
    assert start.startswith(f"rrtf-convert: quantising {starcoder} to 4 bits (groups of 32) with optimum; ")
    assert "calibration: code, 128 windows" in start
    assert main([*command, "--quiet"]) == 1
    assert "quantising" not in capsys.readouterr().err


_STAND_IN = """\
#!{python}
import os, sys
events = ['{{"layer": 0, "layers": 2}}', '{{"layer": 0, "layers": 2}}', '{{"layer": 1, "layers": 2}}']
events.append('{{"done": {{"tools": {{}}, "device": "cpu", "seconds": 1.0, "peak_rss_bytes": 1}}}}')
os.write(int(sys.argv[-1]), "\\n".join(events).encode())
"""


@pytest.mark.parametrize(("progress", "lines"), [(True, ["layer 1 of 2", "layer 2 of 2"]), (False, [])])
def test_without_a_terminal_each_finished_layer_is_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, progress: bool, lines: list[str]
) -> None:
    python = tmp_path / "python"
    python.write_text(_STAND_IN.format(python=sys.executable), "utf-8")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    job = Job("stand-in", "", "", "", "", "", 4, 32, True, 0.05, 0, "cpu")
    with caplog.at_level(logging.INFO, "convert"):
        assert run(job, python, tmp_path, progress=progress).device == "cpu"
    assert [record.getMessage() for record in caplog.records] == lines


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["gptq", "--help"])
    assert exit_.value.code == 0
    said = capsys.readouterr().out
    assert "rrtf-convert gptq qwen2.5-coder-0.5b-instruct -o qwen-gptq4" in said
    assert "rrtf-convert gptq smollm2-135m-instruct -o smol-gptq4 --group-size 64" in said
