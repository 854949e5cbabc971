"""Converting a checkpoint of StarCoder-15.5B's true shape within a bounded memory.

Run as: python -m benchmarks.large_conversion --folder DIR [--layers N] [--limit-gb 4]

Writes sharded fp16 safetensors with random weights (time and memory do not depend on the values) and a small
tokenizer, converts them to int8 in a child process whose address space is limited and whose resident memory
is watched, loads the result with CTranslate2 and decodes two tokens. The whole of 40 layers takes 31 GB for
the checkpoint, 15.6 GB for the result and 16 GB of memory for loading it; --layers makes a stand-in of less
depth. Everything written is removed at the end unless --keep.

Shape: https://huggingface.co/bigcode/starcoder, config.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmarks.machine import machine_record
from convert.architectures import Part, Weight
from convert.memory import available_memory
from convert.output import new_folder
from convert.safetensors_writer import shards, write_shards
from convert.sources import FloatArray, ModelConfig, StoredType
from rrtf_serve.models.disk import size_text
from rrtf_serve.models.errors import ModelError

_SAMPLE_SECONDS = 0.05
_SPREAD = np.float32(0.02)  # standard deviation of the weights, as the model's initializer_range says
_RANDOM_BLOCK = 1 << 20  # normal numbers drawn once; every tensor takes them from another place


@dataclass(frozen=True)
class Shape:
    """A GPTBigCode model with multi-query attention; the defaults are StarCoder's."""

    layers: int = 40
    hidden: int = 6144
    heads: int = 48
    ffn: int = 24576
    vocabulary: int = 49152
    positions: int = 8192

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Hugging Face's names and the tensors' shapes."""
        head = self.hidden // self.heads
        found: dict[str, tuple[int, ...]] = {
            "transformer.wte.weight": (self.vocabulary, self.hidden),
            "transformer.wpe.weight": (self.positions, self.hidden),
        }
        for index in range(self.layers):
            layer = f"transformer.h.{index}"
            for name, rows, columns in (
                ("attn.c_attn", self.hidden + 2 * head, self.hidden),
                ("attn.c_proj", self.hidden, self.hidden),
                ("mlp.c_fc", self.ffn, self.hidden),
                ("mlp.c_proj", self.hidden, self.ffn),
            ):
                found[f"{layer}.{name}.weight"] = (rows, columns)
                found[f"{layer}.{name}.bias"] = (rows,)
            for name in ("ln_1", "ln_2"):
                found |= {f"{layer}.{name}.{part}": (self.hidden,) for part in ("weight", "bias")}
        return found | {f"transformer.ln_f.{part}": (self.hidden,) for part in ("weight", "bias")}

    def parameters(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.tensors().values())


STARCODER = Shape()


class RandomSource:
    """A TensorSource of normal numbers; norms' weights are ones. Every tensor differs from every other."""

    path = Path("random weights")
    config: ModelConfig  # never asked for

    def __init__(self, shape: Shape) -> None:
        self.shapes = shape.tensors()
        self.names = list(self.shapes)
        self._numbers = _SPREAD * np.random.default_rng(0).standard_normal(_RANDOM_BLOCK, dtype=np.float32)
        self._starts = {name: 7919 * index for index, name in enumerate(self.names)}

    def shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def stored_type(self, name: str) -> StoredType:  # noqa: ARG002  # the same for all
        return "float16"

    def precision(self, name: str) -> float:  # noqa: ARG002
        return 16.0

    def rows(self, name: str, start: int, stop: int) -> FloatArray:
        shape = (stop - start, *self.shapes[name][1:])
        if ".ln_" in name and name.endswith(".weight"):
            return np.ones(shape, np.float32)
        width = int(np.prod(self.shapes[name][1:], dtype=np.int64))
        first = (self._starts[name] + start * width) % _RANDOM_BLOCK
        numbers: FloatArray = np.resize(np.roll(self._numbers, -first), shape)
        return numbers

    def close(self) -> None:
        """Nothing is held open."""


def write_checkpoint(shape: Shape, folder: Path) -> int:
    """Write the checkpoint into `folder` and return the bytes of its weights."""
    source = RandomSource(shape)
    weights = {name: Weight((Part(name, rows[0]),), rows, "float16") for name, rows in source.shapes.items()}
    parts = shards(weights, "float16")
    needed = sum(part.data_bytes for part in parts)
    with new_folder(folder, needed_bytes=needed, force=False) as fresh:
        write_shards(fresh, parts, source, "float16")
        config = {
            "architectures": ["GPTBigCodeForCausalLM"], "model_type": "gpt_bigcode", "torch_dtype": "float16",
            "n_layer": shape.layers, "n_head": shape.heads, "n_embd": shape.hidden, "n_inner": shape.ffn,
            "n_positions": shape.positions, "vocab_size": shape.vocabulary, "multi_query": True,
            "activation_function": "gelu_pytorch_tanh", "layer_norm_epsilon": 1e-5, "eos_token_id": 0,
        }  # fmt: skip
        (fresh / "config.json").write_text(json.dumps(config), "utf-8")
        tokens = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
        tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens(tokens[:1])
        tokenizer.save(str(fresh / "tokenizer.json"))
    return needed


def require_disk(shape: Shape, folder: Path) -> None:
    """Raise ModelError, saying what depth would fit, where the disk is short of checkpoint and result."""
    needed, free = _disk_bytes(shape), shutil.disk_usage(folder).free
    if free >= needed:
        return
    fits = [n for n in range(1, shape.layers) if _disk_bytes(replace(shape, layers=n)) <= free]
    advice = f"--layers {fits[-1]} fits" if fits else "not even one layer fits"
    raise ModelError(
        f"{folder}: {size_text(free)} free, {shape.layers} layers need {size_text(needed)}; {advice}"
    )


def _disk_bytes(shape: Shape) -> int:
    return int(shape.parameters() * (2 + 1.02)) + (200 << 20)


# Limited in a fresh interpreter: a limit set between fork and exec would hold for this process' threads too.
# The limit comes after the imports: under a small one OpenBLAS never ends loading.
_CONVERT = """
import json, resource, sys, time
sys.modules["torch"] = sys.modules["transformers"] = None
from pathlib import Path
from convert.ct2 import convert
from rrtf_serve.models.source import Kind, Source
limit = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
started = time.monotonic()
convert(Source(Path(sys.argv[1]), Kind.HF, "starcoder-shape"), Path(sys.argv[2]), progress=False)
print(json.dumps({"seconds": time.monotonic() - started}))
"""

_DECODE = """
import json, sys, time
import ctranslate2
started = time.monotonic()
generator = ctranslate2.Generator(sys.argv[1], compute_type="int8", intra_threads=int(sys.argv[2]))
loaded = time.monotonic() - started
tokens = json.loads(open(sys.argv[1] + "/vocabulary.json", encoding="utf-8").read())
started = time.monotonic()
(result,) = generator.generate_batch([tokens[65:73]], max_length=2, min_length=2, beam_size=1,
                                     include_prompt_in_result=False)
assert len(result.sequences_ids[0]) == 2
print(json.dumps({"load_seconds": loaded, "two_tokens_seconds": time.monotonic() - started}))
"""


def run_measured(command: list[str], environment: dict[str, str] | None = None) -> tuple[dict[str, Any], int]:
    """The JSON that a child prints, and its peak resident bytes. Raises ModelError where it fails."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    peak = 0
    done = threading.Event()

    def sample() -> None:
        nonlocal peak
        # VmHWM is the kernel's own high-water mark: it misses nothing between two samples.
        while not done.wait(_SAMPLE_SECONDS):
            peak = max(peak, _high_water(process.pid))

    watcher = threading.Thread(target=sample)
    watcher.start()
    try:
        out, err = process.communicate()
    except BaseException:
        process.kill()
        raise
    finally:
        done.set()
        watcher.join()
    if process.returncode != 0:
        last = err.strip().splitlines()[-1:] or [f"exit status {process.returncode}"]
        raise ModelError(f"{command[0]}: {last[0]}")
    return json.loads(out), peak


def _high_water(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    except (OSError, ValueError):
        return 0
    found = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), "0")
    return 1024 * int(found)


def measure(shape: Shape, folder: Path, *, limit_bytes: int, decode: bool = True) -> dict[str, Any]:
    """Make the checkpoint, convert it and decode with the result, all inside `folder`.

    `limit_bytes` bounds the converter's whole address space, which its resident memory can't exceed. Raises
    ModelError where the disk is short or a step fails.
    """
    require_disk(shape, folder)
    started = time.monotonic()
    stored = write_checkpoint(shape, folder / "checkpoint")
    made = time.monotonic() - started
    _drop_cache(folder / "checkpoint")
    command = [
        sys.executable, "-c", _CONVERT, str(folder / "checkpoint"), str(folder / "int8"), str(limit_bytes),
    ]  # fmt: skip
    converted, peak = run_measured(command)
    written = (folder / "int8" / "model.bin").stat().st_size
    report: dict[str, Any] = {
        "shape": asdict(shape),
        "parameters": shape.parameters(),
        "checkpoint_bytes": stored,
        "checkpoint_shards": len(list((folder / "checkpoint").glob("*.safetensors"))),
        "checkpoint_seconds": made,
        "convert_seconds": converted["seconds"],
        "convert_peak_rss_bytes": peak,
        "convert_address_limit_bytes": limit_bytes,
        "read_bytes_per_second": stored / converted["seconds"],
        "model_bytes": written,
    }
    if decode:
        shutil.rmtree(folder / "checkpoint")  # what it held in the page cache is wanted for the model
        try:
            report |= decode_with(folder / "int8")
        except ModelError as error:  # the conversion's figures stand
            report["decode_failed"] = str(error)
    return report | {"machine": machine_record()}


def decode_with(model: Path) -> dict[str, Any]:
    """Load a converted model and decode two tokens. Raises ModelError where it doesn't fit into memory."""
    needed = int(1.05 * (model / "model.bin").stat().st_size) + (512 << 20)
    available = available_memory()
    if available is not None and available < needed:
        raise ModelError(
            f"{model}: loading takes {needed / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are available"
        )
    threads = str(len(os.sched_getaffinity(0)))
    # MKL's kernels want the weights in a layout of their own, and CTranslate2 keeps both until all are done:
    # twice the model. oneDNN takes them as they are.
    environment = os.environ | {"CT2_USE_MKL": "0"}
    answer, peak = run_measured([sys.executable, "-c", _DECODE, str(model), threads], environment)
    return answer | {"load_peak_rss_bytes": peak}


def _drop_cache(folder: Path) -> None:
    """Let the kernel forget the files' pages, so that the conversion reads from the disk."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main(argv: list[str] | None = None, shape: Shape = STARCODER) -> int:
    """Run the measurement and print its report as JSON; 0: done, 1: failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large_conversion", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--folder", type=Path, required=True, help="where there is room for 47 GB")
    parser.add_argument("--layers", type=int, default=shape.layers, help="default: 40, the true depth")
    parser.add_argument("--limit-gb", type=float, default=4.0, help="address space of the converter")
    parser.add_argument("--no-decode", action="store_true", help="don't load the result (16 GB of memory)")
    parser.add_argument("--keep", action="store_true", help="leave checkpoint and result in the folder")
    arguments = parser.parse_args(argv)
    if arguments.layers < 1 or arguments.limit_gb <= 0:
        parser.error("--layers and --limit-gb must be above 0")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="large-", dir=arguments.folder))
    try:
        report = measure(
            replace(shape, layers=arguments.layers),
            folder,
            limit_bytes=int(arguments.limit_gb * 1e9),
            decode=not arguments.no_decode,
        )
    except ModelError as error:
        print(f"large_conversion: {error}", file=sys.stderr)
        return 1
    finally:
        if not arguments.keep:
            shutil.rmtree(folder)
    print(json.dumps(report, indent=2))
    return 1 if "decode_failed" in report else 0


if __name__ == "__main__":
    sys.exit(main())
