"""Workers of `rrtf-bench table`: what they answer, how they wait, how they fail and how they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_models import write_hf

from benchmarks.table_children import Child, ChildFailedError
from convert.ct2 import convert
from rrtf_serve.config import ServeConfig
from rrtf_serve.models.source import Kind, Source
from rrtf_serve.models.tokens import Tokenizer
from rrtf_serve.preparation import prepare

PROMPTS = [[5, 9, 40, 17, 60], [33, 8], [71, 22, 90]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf(tmp_path_factory.mktemp("hf") / "tiny", "llama")


@pytest.fixture(scope="module")
def converted(model: Path) -> Path:
    source = Source(model, Kind.HF, "tiny")
    return convert(source, model.parent / "ct2", quantization="float32", progress=False)


def settings(engine: str, path: Path, kind: str = "") -> dict[str, Any]:
    return {
        "engine": engine, "type": kind, "path": str(path), "device": "cpu", "threads": 1, "rows": 4,
        "context": 256,
    }  # fmt: skip


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def settled(pid: int) -> str:
    """The state of a process that was just sent a signal."""
    for _ in range(100):
        if state(pid) == "T":
            break
        time.sleep(0.01)
    return state(pid)


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").is_dir() and state(pid) != "Z"


def tokens(engine: str, path: Path, kind: str = "") -> list[list[int]]:
    child = Child(settings(engine, path, kind))
    try:
        return [row["tokens"] for row in child.generate(PROMPTS, 12)]
    finally:
        child.close()


def expected(model: Path) -> list[list[int]]:
    """transformers' own `generate`, one row at a time."""
    import torch
    import transformers

    causal: Any = transformers.AutoModelForCausalLM
    reference = causal.from_pretrained(model, dtype=torch.float32)
    found = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        made = reference.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=12, max_new_tokens=12,
            pad_token_id=0, eos_token_id=None,
        )  # fmt: skip
        found.append(made[0, len(prompt) :].tolist())
    return found


def test_every_way_decodes_what_generate_does(model: Path, converted: Path) -> None:
    wanted = expected(model)
    assert len({tuple(row) for row in wanted}) == 3
    assert tokens("transformers", model, "float32") == wanted
    assert tokens("torch", model, "float32") == wanted
    assert tokens("ct2", converted) == wanted


def test_an_end_token_ends_its_row_alone(model: Path, converted: Path) -> None:
    for engine, path, kind in (("transformers", model, "float32"), ("ct2", converted, "")):
        child = Child(settings(engine, path, kind))
        free = [row["tokens"] for row in child.generate(PROMPTS, 12)]
        end = next(token for token in free[0] if token not in free[1])
        ended = child.generate(PROMPTS, 12, [[end], [], []])
        child.close()
        assert ended[0]["tokens"] == free[0][: free[0].index(end)]
        assert ended[1]["tokens"] == free[1]
        assert all(len(row["tokens"]) == len(row["at"]) for row in ended)


def test_a_worker_waits_stopped_and_counts_its_own_memory(converted: Path) -> None:
    child = Child(settings("ct2", converted))
    try:
        assert settled(child.pid) == "T"
        child.generate(PROMPTS, 4)
        assert settled(child.pid) == "T"
        load = child.load
        # A process without torch, whose peak is its own and not this one's.
        assert 20 < load.base_mb < load.loaded_mb <= load.load_peak_mb <= load.peak_mb < 200
        assert load.used_mb <= load.peak_mb and load.load_s > 0
        assert load.device_mb is None
        assert child.described["compute_type"] == "float32"
    finally:
        child.close()
    assert not alive(child.pid)


def test_arrivals_rise_within_a_row(converted: Path) -> None:
    child = Child(settings("ct2", converted))
    rows = child.generate(PROMPTS, 20)
    child.close()
    for row in rows:
        assert row["at"] == sorted(row["at"]) and row["at"][0] > 0 and len(row["at"]) == 20


def test_a_model_that_cannot_be_loaded_says_why(tmp_path: Path, model: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in model.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(ChildFailedError, match=r"(?s)broken.*missing|can't be loaded"):
        Child(settings("torch", broken, "float32"))


def test_a_killed_worker_is_told_apart(converted: Path) -> None:
    child = Child(settings("ct2", converted))
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(ChildFailedError, match="killed, most likely for want of memory"):
        child.generate(PROMPTS, 4)
    child.close()


def test_a_worker_that_crashes_names_the_signal(converted: Path) -> None:
    child = Child(settings("ct2", converted))
    os.kill(child.pid, signal.SIGABRT)
    with pytest.raises(ChildFailedError, match="SIGABRT"):
        child.generate(PROMPTS, 4)
    child.close()


def test_no_such_python() -> None:
    with pytest.raises(ChildFailedError, match="/nowhere/python: No such file"):
        Child(settings("llama", Path("a.gguf")), "/nowhere/python")


def test_a_python_without_the_library_says_so() -> None:
    with pytest.raises(ChildFailedError, match="llama_cpp"):
        Child(settings("llama", Path("a.gguf")), sys.executable)


def test_a_stopped_worker_does_not_outlive_its_parent(converted: Path) -> None:
    programme = (
        "import json, os, signal, sys\n"
        "from benchmarks.table_children import Child\n"
        "child = Child(json.loads(sys.argv[1]))\n"
        "print(child.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", programme, json.dumps(settings("ct2", converted))]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    pid = int(done.stdout)
    for _ in range(200):
        if not alive(pid):
            break
        time.sleep(0.02)
    assert done.returncode == -signal.SIGKILL and not alive(pid)


@pytest.mark.skipif(
    not os.environ.get("RRTF_LLAMA_PYTHON"), reason="RRTF_LLAMA_PYTHON names no Python with llama-cpp-python"
)
def test_llama_cpp_decodes_as_ctranslate2_does(smollm2_source: Source) -> None:
    """Opt-in: `RRTF_LLAMA_PYTHON=.../bin/python`."""
    tokenizer = Tokenizer.load(prepare(ServeConfig(model=smollm2_source.name)))
    texts = (
        "def fibonacci(n):\n    if n <",
        "import numpy as np\nimport matplotlib.pyplot as",
        "for i in range(10):\n    print(",
    )
    prompts = [tokenizer.encode(text, specials=False) for text in texts]
    ct2 = Child(settings("ct2", prepare(ServeConfig(model=smollm2_source.name))))
    wanted = [row["tokens"] for row in ct2.generate(prompts, 3)]
    ct2.close()
    child = Child(settings("llama", smollm2_source.path, "plain"), os.environ["RRTF_LLAMA_PYTHON"])
    free = child.generate(prompts, 12)
    ended = child.generate(prompts[:1], 12, [[free[0]["tokens"][2]]])
    child.close()
    assert len({len(prompt) for prompt in prompts}) > 1
    # 4 bits here, 8 there: the first tokens of sure answers agree.
    assert [row["tokens"][:3] for row in free] == wanted
    assert all(len(row["at"]) == 12 and row["at"] == sorted(row["at"]) for row in free)
    assert ended[0]["tokens"] == free[0]["tokens"][: free[0]["tokens"].index(free[0]["tokens"][2])]
