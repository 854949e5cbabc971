"""What the CPU kernels cost in quality: their own arithmetic, and the output matrix rounded at load.

    python -m benchmarks.output_bits ./qwen-gptq4 --output-bits 16 8 4

The reference is the folder's exact weights in float32, run by CTranslate2, as in `rrtf-convert verify`. Of
each number of bits: top-1 agreement, mean KL and perplexity ratio on held-out code. At 16 bits what is left
is the rounding of activations to bfloat16.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.machine import machine_record
from convert.held_out import held_out_windows
from convert.parity import Tally, summarise, tally
from convert.runnable import loaded, plan_run
from rrtf_serve.engine.cores import available_cores
from rrtf_serve.engine.torch import OUTPUT_BITS
from rrtf_serve.engine.torch.native.decoder import NativeDecoder
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.store import Store

_KV = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def measure(
    folder: Path, *, bits: Sequence[int], kv: Sequence[str], tokens: int, length: int, seed: int
) -> dict[str, Any]:
    """Parity of every pair of `bits` and `kv`, with intervals from a bootstrap over documents."""
    source = Store().fetch(str(folder), progress=False)
    ways = [(count, kind) for count in bits for kind in kv]
    tallies: dict[tuple[int, str], dict[str, Tally]] = {way: {} for way in ways}
    torch.set_num_threads(available_cores())
    decoders = {
        count: NativeDecoder(source.path, context_length=length, output_bits=count) for count in set(bits)
    }
    with (
        tempfile.TemporaryDirectory(prefix="rrtf-output-bits-") as scratch,
        loaded(plan_run(source, "float32", "cpu"), Path(scratch) / "exact", device="cpu") as reference,
    ):
        data = held_out_windows(reference.tokenizer, tokens=tokens, length=length, seed=seed)
        for window in tqdm(data.windows, desc="comparing"):
            ids, following = list(window.ids[:-1]), window.ids[1:]
            expected = reference.log_probabilities(ids)
            for count, kind in ways:
                decoder = decoders[count]
                logits = torch.cat(list(decoder.logits_of(ids, decoder.new_slots(_KV[kind]), 0)))
                found = logits.log_softmax(-1).numpy()
                of_way = tallies[count, kind]
                of_way[window.document] = of_way.get(window.document, Tally()) + tally(
                    expected, found, following
                )
    rows = []
    for (count, kind), of_way in tallies.items():
        # Greedy answers are not compared here: one difference is given so that the rest can be summed up.
        record = summarise(of_way.values(), [0], 1, seed).record()
        del record["greedy_divergence"]
        size = decoders[count].weights_bytes
        rows.append({"output_bits": count, "kv_dtype": kind, "weights_bytes": size, **record})
    return {
        "folder": folder.name,
        "kernels": decoders[bits[0]].kernels,
        "data": {"source": data.source, "sha256": data.digest},
        "rows": rows,
        "machine": machine_record(),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.output_bits",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="a GPTQ or Hugging Face folder")
    parser.add_argument("--output-bits", type=int, nargs="+", choices=OUTPUT_BITS, default=list(OUTPUT_BITS))
    parser.add_argument("--kv-dtype", nargs="+", choices=sorted(_KV), default=["bfloat16"])
    parser.add_argument("--tokens", type=int, default=4096, help="positions compared")
    parser.add_argument("--length", type=int, default=128, help="tokens per window")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    try:
        report = measure(
            given.folder,
            bits=given.output_bits,
            kv=given.kv_dtype,
            tokens=given.tokens,
            length=given.length,
            seed=given.seed,
        )
    except (ModelError, ValueError) as error:
        print(f"output_bits: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
