"""The conversion as a whole: what lies in the folder, and that it is there complete or not at all."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import ctranslate2
import numpy as np
import pytest
from tiny_models import END, TOKENS, VOCABULARY, tokens, write_gguf, write_hf, write_tokenizer

from convert.ct2 import convert, padded_vocabulary
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.folder import QUANTIZATIONS, Card, read_card
from rrtf_serve.models.source import Kind, Source
from rrtf_serve.models.tokens import Tokenizer

FILES = ["config.json", "model.bin", "rrtf.json", "tokenizer.json", "vocabulary.json"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = write_hf(tmp_path_factory.mktemp("hf") / "tiny-llama", "llama")
    return Source(folder, Kind.HF, "tiny-llama", digest="d1", licence="Apache-2.0", origin="local")


@pytest.fixture(scope="module")
def gguf_llama(llama: Source, tmp_path_factory: pytest.TempPathFactory) -> Source:
    return Source(write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", llama.path), Kind.GGUF, "tiny")


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def card_of(folder: Path) -> Card:
    card = read_card(folder)
    assert card is not None
    return card


def answer(folder: Path, text: str) -> list[int]:
    generator = ctranslate2.Generator(str(folder), compute_type="float32")
    prompt = json.loads((folder / "vocabulary.json").read_text("utf-8"))
    ids = Tokenizer.load(folder).encode(text, specials=False)
    (result,) = generator.generate_batch(
        [[prompt[i] for i in ids]],
        max_length=12,
        end_token=[END],
        include_prompt_in_result=False,
        beam_size=1,
    )
    return list(result.sequences_ids[0])


def test_a_hugging_face_folder_becomes_a_servable_one(llama: Source, tmp_path: Path) -> None:
    folder = convert(llama, tmp_path / "out", progress=False)
    assert folder == tmp_path / "out"
    assert listing(folder) == FILES
    assert listing(tmp_path) == ["out"]
    assert (folder / "tokenizer.json").read_bytes() == (llama.path / "tokenizer.json").read_bytes()
    vocabulary = json.loads((folder / "vocabulary.json").read_text("utf-8"))
    assert vocabulary == [*tokens(), *(f"<extra_id_{n}>" for n in range(VOCABULARY - TOKENS))]
    card = card_of(folder)
    assert card.tools.pop("ctranslate2") == ctranslate2.__version__
    assert card == Card(
        name="tiny-llama",
        architecture="llama",
        family="plain",
        context_length=256,
        quantization="int8",
        licence="Apache-2.0",
        source={"kind": "huggingface", "file": "tiny-llama", "sha256": "d1", "origin": "local"},
        tools=card.tools,
        size_bytes=sum((folder / name).stat().st_size for name in FILES if name != "rrtf.json"),
        bos_token="<s>",
        add_bos=False,
        end_tokens=["</s>"],
        chat_template="{{ messages[0].content }}",
    )
    assert answer(folder, "def f(x):")


def test_gguf_and_hugging_face_answer_alike(llama: Source, gguf_llama: Source, tmp_path: Path) -> None:
    answers = [
        answer(convert(source, tmp_path / source.name, quantization="float32", progress=False), "import os\n")
        for source in (llama, gguf_llama)
    ]
    assert answers[0] == answers[1] != []
    assert listing(tmp_path / "tiny") == FILES
    card = card_of(tmp_path / "tiny")
    assert (card.architecture, card.context_length, card.end_tokens) == ("llama", 256, ["</s>"])


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_every_quantisation_loads(gguf_llama: Source, quantization: str, tmp_path: Path) -> None:
    folder = convert(gguf_llama, tmp_path / "out", quantization=quantization, progress=False)
    assert card_of(folder).quantization == quantization
    assert answer(folder, "class A:")


def test_int8_runs_as_int8_float32_on_a_cpu(llama: Source, tmp_path: Path) -> None:
    folder = convert(llama, tmp_path / "out", progress=False)
    assert ctranslate2.Generator(str(folder), device="cpu").compute_type == "int8_float32"


def test_an_adapter_is_merged_on_the_way(llama: Source, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    random = np.random.default_rng(0)
    save_file(
        {
            f"{module}.lora_A.weight": random.standard_normal((2, 32), dtype=np.float32),
            f"{module}.lora_B.weight": random.standard_normal((32, 2), dtype=np.float32),
        },
        adapter / "adapter_model.safetensors",
    )
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 4, "r": 2}', "utf-8")
    source = Source(adapter, Kind.ADAPTER, "tuned", digest="d2", base=llama)
    plain = convert(llama, tmp_path / "plain", progress=False)
    merged = convert(source, tmp_path / "merged", progress=False)
    assert (merged / "model.bin").read_bytes() != (plain / "model.bin").read_bytes()
    assert answer(merged, "import os\n") != answer(plain, "import os\n")
    assert card_of(merged).source["base"]["sha256"] == "d1"
    with pytest.raises(ModelError, match="base model is not known"):
        convert(Source(adapter, Kind.ADAPTER, "tuned"), tmp_path / "none", progress=False)
    assert "none" not in listing(tmp_path)


def copy_of(source: Source, folder: Path) -> Source:
    shutil.copytree(source.path, folder)
    return Source(folder, Kind.HF, folder.name)


def test_end_tokens_and_templates_of_other_files(llama: Source, tmp_path: Path) -> None:
    source = copy_of(llama, tmp_path / "model")
    (source.path / "generation_config.json").write_text('{"eos_token_id": [1, 2, 500]}', "utf-8")
    (source.path / "chat_template.jinja").write_text("from the file", "utf-8")
    settings = json.loads((source.path / "tokenizer_config.json").read_text("utf-8"))
    settings["add_bos_token"] = True
    (source.path / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    card = card_of(convert(source, tmp_path / "out", progress=False))
    assert card.end_tokens == ["<s>", "</s>"]
    assert card.chat_template == "from the file"
    assert card.add_bos
    (source.path / "chat_template.jinja").unlink()
    settings["chat_template"] = [
        {"name": "tool_use", "template": "tools"},
        {"name": "default", "template": "the default"},
    ]
    (source.path / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    card = card_of(convert(source, tmp_path / "out", progress=False, force=True))
    assert card.chat_template == "the default"


@pytest.mark.parametrize("damage", [None, "", "{}", "[1", '{"model": {"type": "BPE", "vocab": 3}}'])
def test_an_absent_or_damaged_tokenizer_is_named(llama: Source, tmp_path: Path, damage: str | None) -> None:
    source = copy_of(llama, tmp_path / "model")
    file = source.path / "tokenizer.json"
    file.unlink()
    if damage is not None:
        file.write_text(damage, "utf-8")
    with pytest.raises(ModelError, match=r"tokenizer\.json: (missing|not a readable tokenizer)"):
        convert(source, tmp_path / "out", progress=False)
    assert listing(tmp_path) == ["model"]


def test_a_vocabulary_larger_than_the_embedding_is_refused(llama: Source, tmp_path: Path) -> None:
    source = copy_of(llama, tmp_path / "model")
    write_tokenizer(source.path, VOCABULARY + 1)
    with pytest.raises(ModelError, match="129 tokens, the embedding 128 rows"):
        convert(source, tmp_path / "out", progress=False)
    assert listing(tmp_path) == ["model"]


def test_vocabulary_strings_are_distinct_and_as_many_as_rows() -> None:
    path = Path("model")
    assert padded_vocabulary(["a", "", "<extra_id_0>"], 5, path) == [
        "a", "<extra_id_1>", "<extra_id_0>", "<extra_id_2>", "<extra_id_3>",
    ]  # fmt: skip
    with pytest.raises(ModelError, match="same name"):
        padded_vocabulary(["a", "a"], 2, path)


def test_an_existing_folder_is_left_alone_without_force(llama: Source, tmp_path: Path) -> None:
    convert(llama, tmp_path / "out", progress=False)
    before = (tmp_path / "out" / "model.bin").stat()
    with pytest.raises(ModelError, match="exists already; add --force"):
        convert(llama, tmp_path / "out", quantization="float32", progress=False)
    assert (tmp_path / "out" / "model.bin").stat() == before
    convert(llama, tmp_path / "out", quantization="float32", progress=False, force=True)
    assert card_of(tmp_path / "out").quantization == "float32"
    assert listing(tmp_path) == ["out"]


def test_force_replaces_model_folders_only(llama: Source, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work", "utf-8")
    (tmp_path / "file").write_text("a file", "utf-8")
    (tmp_path / "link").symlink_to(home)
    for name, message in (
        ("home", "holds no converted model"),
        ("file", "not a folder"),
        ("link", "not a folder"),
    ):
        with pytest.raises(ModelError, match=message):
            convert(llama, tmp_path / name, progress=False, force=True)
    assert (home / "thesis.tex").read_text("utf-8") == "years of work"
    assert listing(tmp_path) == ["file", "home", "link"]
    with pytest.raises(ModelError, match="lies in or around the source"):
        convert(llama, llama.path, progress=False, force=True)
    with pytest.raises(ModelError, match="lies in or around the source"):
        convert(llama, llama.path.parent, progress=False, force=True)
    assert (llama.path / "config.json").is_file()


def test_too_little_disk_is_said_before_anything_is_written(
    llama: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=50_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ModelError, match=r"0\.05 GB free, the converted model needs 0\.08 GB"):
        convert(llama, tmp_path / "out", progress=False)
    assert listing(tmp_path) == []


def test_damage_found_half_way_leaves_nothing(llama: Source, tmp_path: Path) -> None:
    source = copy_of(llama, tmp_path / "model")
    file = source.path / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-4:] = b"\xff\xff\xff\x7f"  # NaN in the last tensor
    file.write_bytes(data)
    with pytest.raises(ModelError, match="not finite"):
        convert(source, tmp_path / "out", progress=False)
    assert listing(tmp_path) == ["model"]


_SLOWED = """
import sys, time
from pathlib import Path
from convert import ct2, writer
from rrtf_serve.models.source import Kind, Source
encode = writer._to_int8
def slow(block):
    print("writing", flush=True)
    time.sleep(30)
    return encode(block)
writer._to_int8 = slow
ct2.convert(Source(Path(sys.argv[1]), Kind.HF, "m"), Path(sys.argv[2]), progress=False)
"""


def slowed_conversion(source: Source, destination: Path) -> subprocess.Popen[str]:
    """A conversion in a process of its own that has begun to write model.bin and will take long."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SLOWED, str(source.path), str(destination)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def test_a_killed_conversion_leaves_only_what_the_next_run_removes(llama: Source, tmp_path: Path) -> None:
    with slowed_conversion(llama, tmp_path / "out") as process:
        process.send_signal(signal.SIGKILL)
    assert listing(tmp_path) == [".out.incomplete"]
    convert(llama, tmp_path / "out", progress=False)
    assert listing(tmp_path) == ["out"]
    assert listing(tmp_path / "out") == FILES


def test_two_processes_cannot_write_one_folder(llama: Source, tmp_path: Path) -> None:
    with slowed_conversion(llama, tmp_path / "out") as process:
        before = listing(tmp_path / ".out.incomplete")
        with pytest.raises(ModelError, match="another process is writing this folder"):
            convert(llama, tmp_path / "out", progress=False)
        assert listing(tmp_path / ".out.incomplete") == before
        process.kill()


def test_a_folder_that_cannot_be_written_is_named(llama: Source, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", "utf-8")
    with pytest.raises(ModelError, match=r"file/out: can't be written"):
        convert(llama, tmp_path / "file" / "out", progress=False)


def test_other_kinds_are_refused(llama: Source, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="a ctranslate2 model can't be converted"):
        convert(Source(llama.path, Kind.CT2, "m"), tmp_path / "out", progress=False)


def test_a_template_that_is_not_utf8_is_named(llama: Source, tmp_path: Path) -> None:
    folder = shutil.copytree(llama.path, tmp_path / "model")
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe{{")
    with pytest.raises(ModelError, match=r"model/chat_template\.jinja: not readable as UTF-8"):
        convert(Source(folder, Kind.HF, "m"), tmp_path / "out", progress=False)
    assert listing(tmp_path) == ["model"]


def test_an_unknown_quantisation_leaves_nothing(llama: Source, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="int4"):
        convert(llama, tmp_path / "out", quantization="int4", progress=False)
    assert listing(tmp_path) == []


_MEASURED = """
import re, sys, time
sys.modules["torch"] = sys.modules["transformers"] = None  # importing either raises ImportError
from pathlib import Path
from convert.ct2 import convert
from rrtf_serve.models.source import Kind, Source
started = time.monotonic()
convert(Source(Path(sys.argv[1]), Kind(sys.argv[3]), "m"), Path(sys.argv[2]), progress=False)
seconds = time.monotonic() - started
# Not getrusage: a child's ru_maxrss begins at what its parent held when it forked.
peak = re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())
print(seconds, int(peak[1]) / 1024)
"""


def measured_conversion(source: Source, destination: Path) -> tuple[float, float]:
    """Seconds and peak MB of a conversion in a process where torch and transformers can't be imported."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, str(source.path), str(destination), source.kind],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    seconds, megabytes = map(float, done.stdout.split())
    return seconds, megabytes


def test_neither_torch_nor_transformers_is_needed(llama: Source, gguf_llama: Source, tmp_path: Path) -> None:
    for source in (llama, gguf_llama):
        measured_conversion(source, tmp_path / source.name)
        assert listing(tmp_path / source.name) == FILES


def test_smollm2_keeps_its_memory_small_and_its_wits(smollm2_source: Source, tmp_path: Path) -> None:
    seconds, megabytes = measured_conversion(smollm2_source, tmp_path / "out")
    assert seconds < 60
    assert megabytes < 250
    folder = tmp_path / "out"
    assert 134e6 < (folder / "model.bin").stat().st_size < 137e6
    card = card_of(folder)
    assert (card.architecture, card.family, card.context_length) == ("llama", "smollm2", 8192)
    assert card.tied_output == "token_embd.weight"
    tokenizer = Tokenizer.load(folder)
    generator = ctranslate2.Generator(str(folder))
    prompt = tokenizer.encode("The capital of France is", specials=False)
    names = json.loads((folder / "vocabulary.json").read_text("utf-8"))
    (result,) = generator.generate_batch(
        [[names[i] for i in prompt]], max_length=4, include_prompt_in_result=False, beam_size=1
    )
    assert "Paris" in tokenizer.decode(result.sequences_ids[0])
