"""`rrtf-convert gptq` on tiny models: the folder, its card, and what three loaders and we make of it."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_gptq import FAMILIES, GROUP_SIZE, write_packable
from tiny_models import weights

from convert.gptq import Options, quantise
from convert.gptq_process import Job, run
from convert.gptq_source import GptqSource
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.folder import read_card
from rrtf_serve.models.source import Kind, Source, detect_kind
from rrtf_serve.models.store import Store

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gptqmodel") is None,
    reason="gptqmodel is not installed (pip install 'rrtf-serve[gptq]')",
)
_AUTO_GPTQ = Path(os.environ.get("RRTF_AUTO_GPTQ_PYTHON", ".venv-auto-gptq/bin/python")).absolute()
_SCRIPT = Path(__file__).with_name("gptq_logits.py")

# Each family in 8 and in 4 bits, with and without an order of columns; the other half and 3 bits are slow.
QUICK = [
    ("llama", 4, True), ("llama", 8, False), ("qwen2", 8, True), ("qwen2", 4, False),
    ("starcoder", 4, True), ("starcoder", 8, False), ("starcoder2", 8, True), ("starcoder2", 4, False),
]  # fmt: skip
REST = [
    *((family, bits, not desc_act) for family, bits, desc_act in QUICK),
    *((family, 3, desc_act) for family, desc_act in zip(FAMILIES, (True, False) * 2, strict=True)),
]
# Root mean square of the error over that of the weights, for random weights in groups of 32.
WEIGHT_ERROR = {8: 0.01, 4: 0.16, 3: 0.35}


class Quantised:
    """Tiny models, quantised when they are first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(folder / "home")
        self._made: dict[tuple[str, int, bool], Path] = {}

    def plain(self, family: str) -> Path:
        path = self.folder / family
        return path if path.exists() else write_packable(path, family)

    def source(self, family: str) -> Source:
        return self.store.fetch(str(self.plain(family)), progress=False)

    def get(self, family: str, bits: int, desc_act: bool) -> Path:
        key = family, bits, desc_act
        if key not in self._made:
            options = Options(
                bits=bits, desc_act=desc_act, group_size=GROUP_SIZE, samples=8, seqlen=64, device="cpu"
            )
            destination = self.folder / f"{family}-{bits}-{'act' if desc_act else 'plain'}"
            self._made[key] = quantise(self.source(family), destination, options, progress=False)
        return self._made[key]


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Quantised:
    return Quantised(tmp_path_factory.mktemp("gptq"))


def loaded_by(
    loader: str, folders: list[Path], scratch: Path, python: Path = Path(sys.executable)
) -> list[Any]:
    """What `loader` makes of each folder, see gptq_logits.py."""
    ids = [list(range(3, 67)), list(range(40, 104))]
    items = [
        {"folder": str(folder), "ids": ids, "out": str(scratch / f"{folder.name}.{loader}.npz")}
        for folder in folders
    ]
    spec = scratch / f"{loader}.json"
    spec.write_text(json.dumps(items), "utf-8")
    # -P: the tests' own modules must not come before the loader's.
    done = subprocess.run(
        [str(python), "-P", str(_SCRIPT), loader, str(spec)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [np.load(item["out"]) for item in items]


def dequantised(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor as our own reader gives it."""
    source = GptqSource(folder)
    try:
        return {name: source.rows(name, 0, source.shape(name)[0]).copy() for name in source.names}
    finally:
        source.close()


def matrices(folder: Path) -> set[str]:
    """Names of the quantised tensors."""
    source = GptqSource(folder)
    source.close()
    return source.quantised


def reference_logits(folder: Path, tensors: dict[str, np.ndarray]) -> np.ndarray:
    """transformers' plain float32 model with `tensors` as its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    state = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    ids = torch.tensor([list(range(3, 67)), list(range(40, 104))])
    with torch.no_grad():
        logits: np.ndarray = model(ids, use_cache=False).logits.numpy()
    return logits


def check_equal(folder: Path, found: Any, *, weight: float, logit: float) -> None:
    """`found` (of `loaded_by`) against our own reader: tolerances relative to the largest value."""
    tensors = dequantised(folder)
    names = [name for name in found if name != "logits"]
    assert {f"{name}.weight" for name in names} == matrices(folder)
    for name in names:
        ours = tensors[f"{name}.weight"]
        assert np.abs(found[name] - ours).max() <= weight * np.abs(ours).max(), name
    reference = reference_logits(folder, tensors)
    assert np.abs(found["logits"] - reference).max() <= logit * np.abs(reference).max()


def check_folder(quantised: Quantised, family: str, bits: int, desc_act: bool) -> None:
    folder = quantised.get(family, bits, desc_act)
    assert detect_kind(folder) is Kind.GPTQ
    config = json.loads((folder / "config.json").read_text("utf-8"))
    settings = json.loads((folder / "quantize_config.json").read_text("utf-8"))
    assert config["quantization_config"] == settings
    assert (settings["bits"], settings["group_size"], settings["desc_act"]) == (bits, GROUP_SIZE, desc_act)
    assert settings["meta"]["calibration"]["corpus"] == "code"
    plain = quantised.plain(family)
    assert (folder / "tokenizer.json").read_bytes() == (plain / "tokenizer.json").read_bytes()
    card = read_card(folder)
    assert card is not None and card.recipe is not None
    assert (card.architecture, card.quantization) == (family, f"gptq-{bits}bit-g{GROUP_SIZE}")
    assert card.source == {"kind": "huggingface", "file": family, "origin": "local"} | {
        "sha256": quantised.source(family).digest
    }
    assert {"gptqmodel", "torch"} <= set(card.tools)
    assert card.recipe["calibration"] == settings["meta"]["calibration"]
    assert card.recipe["calibration"]["samples"] == 8 and card.recipe["device"] == "cpu"
    original, ours = weights(plain), dequantised(folder)
    for name in matrices(folder):
        error = np.sqrt(np.mean((ours[name] - original[name]) ** 2) / np.mean(original[name] ** 2))
        assert 0 < error < WEIGHT_ERROR[bits], name
    assert config["torch_dtype"] == "bfloat16"
    # Everything else is as it was; a tied output matrix is there once more.
    for name in set(original) - matrices(folder):
        tolerance = 1e-3 if name.endswith(".bias") else 0  # biases of quantised layers become float16
        assert np.abs(ours[name] - original[name]).max() <= tolerance, name
    assert np.array_equal(ours["lm_head.weight"], ours[_embedding(family)]) == config["tie_word_embeddings"]


def _embedding(family: str) -> str:
    return "transformer.wte.weight" if family == "starcoder" else "model.embed_tokens.weight"


@pytest.mark.parametrize(("family", "bits", "desc_act"), QUICK)
def test_a_folder_is_whole(quantised: Quantised, family: str, bits: int, desc_act: bool) -> None:
    check_folder(quantised, family, bits, desc_act)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "bits", "desc_act"), REST)
def test_the_other_folders_are_whole(quantised: Quantised, family: str, bits: int, desc_act: bool) -> None:
    check_folder(quantised, family, bits, desc_act)


def _folders(quantised: Quantised, cases: list[tuple[str, int, bool]], without: str = "") -> list[Path]:
    return [quantised.get(*case) for case in cases if case[0] != without]


def check_transformers(quantised: Quantised, cases: list[tuple[str, int, bool]], scratch: Path) -> None:
    # transformers 5.23 can't load GPTQ models of GPTBigCode: its initialisation trips over the layers.
    folders = _folders(quantised, cases, without="starcoder")
    for folder, found in zip(folders, loaded_by("transformers", folders, scratch), strict=True):
        check_equal(folder, found, weight=1e-3, logit=0.01)  # dequantised in float16


def check_gptqmodel(quantised: Quantised, cases: list[tuple[str, int, bool]], scratch: Path) -> None:
    folders = _folders(quantised, cases)
    for folder, found in zip(folders, loaded_by("gptqmodel", folders, scratch), strict=True):
        check_equal(folder, found, weight=2e-3, logit=0.03)  # all of it in float16


def test_transformers_gives_our_logits(quantised: Quantised, tmp_path: Path) -> None:
    check_transformers(quantised, QUICK, tmp_path)


def test_gptqmodel_gives_our_logits(quantised: Quantised, tmp_path: Path) -> None:
    check_gptqmodel(quantised, QUICK, tmp_path)


@pytest.mark.slow
def test_both_do_for_the_other_folders(quantised: Quantised, tmp_path: Path) -> None:
    check_transformers(quantised, REST, tmp_path)
    check_gptqmodel(quantised, REST, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not _AUTO_GPTQ.is_file(), reason=f"{_AUTO_GPTQ} is absent (`make auto-gptq` makes it)")
def test_auto_gptq_gives_our_logits_exactly(quantised: Quantised, tmp_path: Path) -> None:
    folders = _folders(quantised, QUICK + REST, without="starcoder2")  # it does not know that one
    for folder, found in zip(folders, loaded_by("auto-gptq", folders, tmp_path, _AUTO_GPTQ), strict=True):
        check_equal(folder, found, weight=0, logit=1e-5)


def test_a_zero_off_by_one_would_be_seen(quantised: Quantised, tmp_path: Path) -> None:
    """The two formats differ in nothing else, and a reader that takes one for the other gives nonsense."""
    folder = quantised.get("llama", 4, True)
    right = reference_logits(folder, dequantised(folder))
    source = GptqSource(folder)
    source.settings = type(source.settings)(bits=4, group_size=GROUP_SIZE, offset=0)
    wrong = {name: source.rows(name, 0, source.shape(name)[0]).copy() for name in source.names}
    source.close()
    assert np.abs(reference_logits(folder, wrong) - right).max() > 0.1 * np.abs(right).max()


def test_optimum_writes_the_same_layout(quantised: Quantised, tmp_path: Path) -> None:
    options = Options(backend="optimum", group_size=GROUP_SIZE, samples=8, seqlen=64, device="cpu")
    folder = quantise(quantised.source("qwen2"), tmp_path / "out", options, progress=False)
    other = quantised.get("qwen2", 4, False)
    mine = {path.name for path in folder.iterdir()} | {"quant_log.csv"}
    assert mine == {path.name for path in other.iterdir()}
    text = (folder / "config.json").read_text("utf-8")
    assert len(text) < 4000 and "input_ids" not in text
    original, ours = weights(quantised.plain("qwen2")), dequantised(folder)
    for name in matrices(folder):
        error = np.sqrt(np.mean((ours[name] - original[name]) ** 2) / np.mean(original[name] ** 2))
        assert 0 < error < WEIGHT_ERROR[4], name
    card = read_card(folder)
    assert card is not None and "optimum" in card.tools


def test_a_failed_worker_says_why(tmp_path: Path) -> None:
    job = Job(
        backend="gptqmodel", model=str(tmp_path / "absent"), output=str(tmp_path),
        windows=str(tmp_path / "none"), scratch=str(tmp_path), checkpoint="", bits=4, group_size=32,
        desc_act=True, damp=0.05, seed=0, device="cpu",
    )  # fmt: skip
    with pytest.raises(ModelError, match=r"gptqmodel failed: \w+"):
        run(job, Path(sys.executable), tmp_path, progress=False)
    with pytest.raises(ModelError, match="can't be started"):
        run(job, tmp_path / "no-python", tmp_path, progress=False)


def _start(model: Path, out: Path) -> subprocess.Popen[str]:
    command = [
        sys.executable, "-m", "convert.cli", "gptq", str(model), "-o", str(out), "--group-size", "32",
        "--samples", "8", "--seqlen", "64", "--device", "cpu", "--home", str(out.parent / "home"),
    ]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _wait_for(pattern: str, folder: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_ctrl_c_leaves_nothing(quantised: Quantised, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with _start(quantised.plain("llama"), out) as process:
        _wait_for(".out.gptq/worker.log", tmp_path, process)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert said.endswith("rrtf-convert: stopped; nothing was left behind\n")
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == []


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    model = write_packable(tmp_path / "model", "llama", layers=6)
    whole, out = tmp_path / "whole", tmp_path / "out"
    with _start(model, whole) as process:
        assert process.wait() == 0
    with _start(model, out) as process:
        _wait_for(".out.gptq/checkpoint-*/CURRENT", tmp_path, process)
        process.kill()
    assert not out.exists()
    log = tmp_path / ".out.gptq" / "worker.log"
    deadline = time.monotonic() + 60
    while _alive(log):  # the worker ends by itself
        assert time.monotonic() < deadline
        time.sleep(0.1)
    manifest = next((tmp_path / ".out.gptq").glob("checkpoint-*/CURRENT"))
    assert manifest.is_file()
    started = time.monotonic()
    with _start(model, out) as process:
        assert process.wait() == 0, process.communicate()
    assert time.monotonic() - started < 300
    assert stored(out) == stored(whole)  # though in another order
    assert not (tmp_path / ".out.gptq").exists()


def stored(folder: Path) -> dict[str, bytes]:
    """Every tensor of the folder, as it is stored."""
    import torch
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    return {name: tensor.flatten().view(torch.uint8).numpy().tobytes() for name, tensor in tensors.items()}


def _alive(log: Path) -> bool:
    """Whether any process still has the worker's log open."""
    for link in Path("/proc").glob("[0-9]*/fd/[12]"):
        try:
            if link.readlink() == log:
                return True
        except OSError:  # the process ended while it was looked at, or belongs to someone else
            continue
    return False
