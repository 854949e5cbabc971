"""Folders that the torch engine loads or refuses, and the way from `--engine torch` to answers."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from engine_rows import GREEDY, answers
from live import rrtf_serve
from safetensors.torch import load_file, save_file
from test_main import ask
from tiny_gptq import write_packable
from tiny_models import VOCABULARY, write_gguf, write_hf

from benchmarks.cli import main as bench
from rrtf_serve.config import ServeConfig
from rrtf_serve.engine.protocol import Request
from rrtf_serve.engine.torch import checkpoint
from rrtf_serve.engine.torch.decoder import Decoder
from rrtf_serve.engine.torch.engine import TorchEngine
from rrtf_serve.loading import describe_source, load_engine
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.source import Kind, Source
from rrtf_serve.preparation import prepare_source

CPU = torch.device("cpu")
DTYPES = ("auto", "float32")  # the compiled kernels, and transformers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_hf(tmp_path / "tiny-qwen", "qwen2", dtype="bfloat16")


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")


def refused(folder: Path, **options: str) -> str:
    with pytest.raises(ModelError) as caught:
        checkpoint.load(folder, device=CPU, dtype=options.get("dtype", "auto"))
    return str(caught.value)


def test_the_type_is_the_stored_one_unless_another_is_asked_for(folder: Path) -> None:
    for asked, given in (("auto", torch.bfloat16), ("float32", torch.float32), ("float16", torch.float16)):
        model = checkpoint.load(folder, device=CPU, dtype=asked)
        assert {parameter.dtype for parameter in model.parameters()} == {given}
    stored = (folder / "model.safetensors").stat().st_size
    assert Decoder(checkpoint.load(folder, device=CPU, dtype="auto")).weights_bytes < stored
    assert checkpoint.pick_dtype("auto", "float16", CPU) is torch.bfloat16
    assert checkpoint.pick_dtype("auto", "float16", torch.device("cuda")) is torch.float16
    assert checkpoint.pick_dtype("auto", "", CPU) is torch.float32
    with pytest.raises(ValueError, match="--dtype int8: choose auto"):
        checkpoint.pick_dtype("int8", "", CPU)


def test_a_device_that_is_not_there_names_the_flag(folder: Path) -> None:
    with pytest.raises(ValueError, match="--device tpu: choose cpu, cuda or auto"):
        TorchEngine(folder, context_length=64, device="tpu")
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ValueError, match="--device cuda: torch finds no CUDA device"):
        TorchEngine(folder, context_length=64, device="cuda")


def test_an_unknown_architecture_is_named(folder: Path) -> None:
    change(folder, model_type="gpt_neox")
    assert "model_type 'gpt_neox' can't be run by the torch engine; known: gpt_bigcode, llama" in refused(
        folder
    )


def test_missing_and_misshapen_tensors_are_named(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    kept = weights.pop(name)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert f"tensor {name} is missing; the folder is incomplete" in refused(folder)
    save_file(weights | {name: kept[:-1]}, folder / "model.safetensors", {"format": "pt"})
    assert f"tensor {name} is of another shape" in refused(folder)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["qwen2", "starcoder"])
def test_a_folder_saved_from_the_body_alone_answers_as_the_whole(
    family: str, dtype: str, tmp_path: Path
) -> None:
    whole = write_packable(tmp_path / "whole", family)
    body = write_packable(tmp_path / "body", family)
    beginning = "transformer." if family == "starcoder" else "model."
    weights = load_file(whole / "model.safetensors")
    cut = {key.removeprefix(beginning): tensor for key, tensor in weights.items()}
    assert not cut.keys() & weights.keys()
    save_file(cut, body / "model.safetensors", {"format": "pt"})
    made = []
    for each in (whole, body):
        engine = TorchEngine(each, context_length=64, device="cpu", threads=1, dtype=dtype)
        assert (engine.describe()["kernels"] == "torch") == (dtype == "float32")
        made.append(answers(engine, [Request((5, 6, 7), 20, frozenset(), GREEDY)]))
        engine.close()
    assert made[0] == made[1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_body_without_its_output_matrix_is_told_apart(dtype: str, tmp_path: Path) -> None:
    folder = write_packable(tmp_path / "untied", "llama")
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    cut = {key.removeprefix("model."): tensor for key, tensor in weights.items()}
    save_file(cut, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lm_head\.weight, the output matrix, is missing.*body alone"):
        TorchEngine(folder, context_length=64, device="cpu", threads=1, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "value"), [("model.embed_tokens.weight", "inf"), ("model.layers.1.mlp.up_proj.weight", "nan")]
)
def test_weights_that_are_no_numbers_are_named(dtype: str, name: str, value: str, tmp_path: Path) -> None:
    folder = write_packable(tmp_path / "spoilt", "qwen2")
    weights = load_file(folder / "model.safetensors")
    weights[name][3, 5] = float(value)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=f"tensor {name} holds numbers that are NaN or infinite"):
        TorchEngine(folder, context_length=64, device="cpu", threads=1, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wrong", [{"rms_norm_eps": "x"}, {"hidden_act": 3}, {"num_hidden_layers": "2"}])
def test_a_configuration_of_wrong_types_is_named(wrong: dict[str, Any], dtype: str, tmp_path: Path) -> None:
    folder = write_packable(tmp_path / "odd", "qwen2")
    change(folder, **wrong)
    with pytest.raises(ModelError, match=next(iter(wrong))):
        TorchEngine(folder, context_length=64, device="cpu", threads=1, dtype=dtype)


def test_what_libraries_say_while_a_model_is_opened_stays_with_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = transformers.utils.logging.get_logger("transformers.tests").warning
    with checkpoint.quiet():
        warnings.warn_explicit("no driver", UserWarning, "x.py", 1, module="torch.cuda")
        report("tensors were made up")
        with pytest.raises(UserWarning, match="ours"):
            warnings.warn("ours", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == ""
    with pytest.raises(UserWarning, match="no driver"):
        warnings.warn_explicit("no driver", UserWarning, "x.py", 1, module="torch.cuda")


def test_half_a_shard_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert str(folder) in refused(folder)
    path.write_bytes(b"")
    assert str(folder) in refused(folder)


def test_too_little_memory_says_what_would_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(checkpoint, "_load_plain", full)
    said = refused(folder)
    assert "does not fit into the memory of this machine's cpu" in said
    assert "loaded as bfloat16" in said


def test_a_gptq_folder_is_for_the_torch_engine(folder: Path) -> None:
    change(folder, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128})
    config = ServeConfig(model=str(folder))
    source = prepare_source(config)
    assert (source.kind, describe_source(config, source).quantization) == (Kind.GPTQ, "gptq-4bit")
    with pytest.raises(ModelError, match="CTranslate2 can't run GPTQ checkpoints; take --engine torch"):
        prepare_source(ServeConfig(model=str(folder), engine="ct2"))


def test_a_folder_is_described_by_its_own_files(folder: Path) -> None:
    config = ServeConfig(model=str(folder), engine="torch")
    source = prepare_source(config)
    assert source.path == folder
    card = describe_source(config, source)
    assert (card.name, card.architecture, card.quantization) == ("tiny-qwen", "qwen2", "bfloat16")
    assert (card.context_length, card.end_tokens, card.bos_token) == (256, ["</s>"], "<s>")
    assert card.chat_template == "{{ messages[0].content }}"
    assert card.source["sha256"] == source.digest
    assert card.size_bytes == (folder / "model.safetensors").stat().st_size
    shorter = describe_source(ServeConfig(context_length=99, family="plain"), source)
    assert (shorter.context_length, shorter.family) == (99, "plain")
    with pytest.raises(ModelError, match="--context-length 999: the model takes at most 256"):
        describe_source(ServeConfig(context_length=999), source)


def test_flags_of_the_other_engine_are_refused(folder: Path) -> None:
    torch_config = ServeConfig(model=str(folder), engine="torch", compute_type="int8")
    source = prepare_source(torch_config)
    card = describe_source(torch_config, source)
    with pytest.raises(ValueError, match="--compute-type goes with --engine ct2"):
        load_engine(torch_config, source, card)
    converted = Source(folder, Kind.CT2, "m")
    with pytest.raises(ValueError, match="--dtype goes with --engine torch"):
        load_engine(ServeConfig(dtype="float32"), converted, card)
    with pytest.raises(ValueError, match="--kv-dtype goes with --engine torch"):
        load_engine(ServeConfig(kv_dtype="float32"), converted, card)
    with pytest.raises(ValueError, match="--kv-cache-tokens goes with --engine torch"):
        load_engine(ServeConfig(kv_cache_tokens=9), converted, card)
    with pytest.raises(ValueError, match="--engine vllm: must be one of auto, ct2, torch"):
        ServeConfig(engine="vllm")
    with pytest.raises(ValueError, match="--dtype int4: must be one of auto, float32"):
        ServeConfig(dtype="int4")


def test_what_is_kept_of_keys_and_values_can_be_chosen(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "rrtf_serve")
    config = ServeConfig(
        model=str(folder), engine="torch", device="cpu", threads=1, kv_dtype="float32", kv_cache_tokens=5000
    )
    source = prepare_source(config)
    engine = load_engine(config, source, describe_source(config, source))
    described = engine.describe()
    engine.close()
    # Two layers with keys and values of 2 heads, 8 numbers each.
    assert described["kv_bytes_per_token"] == 2 * 2 * 2 * 8 * 4
    assert (described["dtype"], described["kv_dtype"]) == ("bfloat16", "float32")
    assert described["kv_cache_tokens"] == 5000
    assert "0.3 kB a token (float32); 5000 tokens (1 MB) are kept for reuse" in caplog.text
    default = TorchEngine(folder, context_length=64, device="cpu", threads=1)
    assert (default.describe()["kv_dtype"], default.describe()["kv_cache_tokens"]) == ("bfloat16", 16_384)
    default.close()
    for options, message in (({"kv_dtype": "int8"}, "--kv-dtype int8"), ({"kv_cache_tokens": -1}, "is -1")):
        with pytest.raises(ValueError, match=message):
            TorchEngine(folder, context_length=64, **options)


def test_a_gguf_file_is_made_a_hugging_face_folder_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RRTF_HOME", str(tmp_path / "home"))
    original = write_hf(tmp_path / "original", "qwen2")
    file = write_gguf(tmp_path / "m.gguf", original)
    config = ServeConfig(model=str(file), engine="torch", dtype="float32", threads=1)
    source = prepare_source(config)
    assert source.kind is Kind.HF
    made = source.path.stat().st_mtime_ns
    assert prepare_source(config).path.stat().st_mtime_ns == made
    wanted = TorchEngine(original, context_length=64, device="cpu", dtype="float32", threads=1)
    engine = load_engine(config, source, describe_source(config, source))
    request = Request((5, 6, 7), 20, frozenset(), GREEDY)
    assert answers(engine, [request]) == answers(wanted, [request])
    engine.close()
    wanted.close()


def test_a_folder_that_only_the_other_engine_runs_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "ct2"
    folder.mkdir()
    (folder / "model.bin").write_bytes(b"")
    (folder / "config.json").write_text("{}", "utf-8")
    with pytest.raises(ModelError, match="is a ctranslate2 folder, which the torch engine can't run"):
        prepare_source(ServeConfig(model=str(folder), engine="torch"))


def test_without_torch_the_error_says_what_to_install(folder: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from rrtf_serve.main import main\n"
        "sys.exit(main(['--engine', 'torch', '--model', sys.argv[1], '--port', '0']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 1
    assert "pip install 'rrtf-serve[torch]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_rrtf_serve_answers_with_seeds_biases_and_logprobs(folder: Path) -> None:
    flags = ("--engine", "torch", "--dtype", "float32", "--threads", "1", "--no-ui")
    with rrtf_serve(str(folder), *flags) as live:

        def answer(**body: Any) -> list[dict[str, Any]]:
            choices = ask(live.address, {"prompt": [5, 6, 7], "max_tokens": 12, **body})["choices"]
            assert isinstance(choices, list)
            return choices

        drawn = [choice["text"] for choice in answer(n=3, seed=5)]
        assert len(set(drawn)) == 3
        assert drawn == [choice["text"] for choice in answer(n=3, seed=5)]
        assert answer(seed=6)[0]["text"] == drawn[1]
        assert answer(seed=7)[0]["text"] == drawn[2]
        [biased] = answer(temperature=0, logit_bias={"70": 100}, max_tokens=3, logprobs=2)
        assert len(set(biased["logprobs"]["tokens"])) == 1
        assert len(biased["logprobs"]["top_logprobs"][0]) == 3  # the two best and the chosen one
        penalised = answer(temperature=0, frequency_penalty=2, presence_penalty=2)[0]["text"]
        assert penalised != answer(temperature=0)[0]["text"]


def test_passk_samples_with_torch(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RRTF_HOME", str(tmp_path / "home"))
    problem = {
        "task_id": "t/0",
        "prompt": "def f():\n",
        "entry_point": "f",
        "test": "def check(candidate):\n    assert candidate() == 1\n",
        "canonical_solution": "    return 1\n",
    }
    (tmp_path / "toy.jsonl").write_text(json.dumps(problem) + "\n", "utf-8")
    arguments = ["passk", "--suite", tmp_path / "toy.jsonl", "--engine", "torch", "--model", folder]
    arguments += ["--n", 4, "--temperature", 0.9, "--seed", 3, "--max-tokens", 8, "--threads", 1, "--json"]
    texts = []
    for batch in (4, 3):
        out = tmp_path / f"out{batch}"
        assert (
            bench([str(each) for each in (*arguments, "--dtype", "float32", "--batch", batch, "-o", out)])
            == 0
        )
        report = json.loads(capsys.readouterr().out)
        assert (report["engine"], report["dtype"], report["seeds_honoured"]) == ("torch", "float32", True)
        assert report["vocabulary"] == VOCABULARY
        samples = [json.loads(line) for line in (out / "samples.jsonl").read_text("utf-8").splitlines()]
        texts.append({sample["index"]: sample["response"] for sample in samples})
    assert texts[0] == texts[1]
    assert len(set(texts[0].values())) == 4
