"""Quantises one model with one back-end, in a process of its own: `python gptq_worker.py JOB EVENTS`.

It runs by its path under any Python that has the back-end, the environment of auto-gptq among them, so it
imports nothing of this project. JOB is a JSON file with the fields of `gptq_process.Job`. EVENTS is an open
file descriptor that takes one JSON object per line:

    {"layer": 3, "layers": 24}          layer 3 is done
    {"done": {...}}                      the folder is written; versions, seconds, peak memory
    {"failed": "..."}                    why it could not be done

Standard input is held open by the process that started this one; when it closes, that process is gone and
this one ends.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import logging
import os
import random
import re
import resource
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

Job = dict[str, Any]
_PROGRESS = re.compile(r"quantizing (?:layer|block [\w.]+) (\d+)/(\d+)")
_BATCH = 4  # windows that run through a layer together


class Reporter(logging.Handler):
    """Writes events; as a log handler it takes progress from what a library logs at a layer's start."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(logging.INFO)
        self._descriptor = descriptor

    def say(self, **event: object) -> None:
        os.write(self._descriptor, json.dumps(event).encode("utf-8") + b"\n")

    def emit(self, record: logging.LogRecord) -> None:
        found = _PROGRESS.search(record.getMessage())
        if found:
            self.say(layer=int(found[1]) - 1, layers=int(found[2]))


def main(job_path: str, descriptor: str) -> int:
    reporter = Reporter(int(descriptor))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    job: Job = json.loads(Path(job_path).read_text("utf-8"))
    started = time.monotonic()
    try:
        # Where the libraries have one worker thread per two cores they refuse to load a model.
        os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, (os.cpu_count() or 2) // 2)))
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        _seed(job["seed"])
        if job["device"] == "auto":
            job["device"] = "cuda" if importlib.import_module("torch").cuda.is_available() else "cpu"
        tools = _BACKENDS[job["backend"]](job, reporter)
    except Exception as error:  # whatever it is, the parent must hear of it; the traceback is in the log
        traceback.print_exc()
        reporter.say(failed=f"{type(error).__name__}: {error}"[:2000])
        return 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    reporter.say(
        done={
            "tools": tools,
            "device": job["device"],
            "seconds": round(time.monotonic() - started, 1),
            "peak_rss_bytes": peak,
        }
    )
    return 0


def _end_with_parent() -> None:
    # Not sys.stdin: its lock, held by this thread, would abort the interpreter when it ends.
    while os.read(0, 1):
        pass
    os._exit(1)


def _seed(seed: int) -> None:
    random.seed(seed)
    importlib.import_module("numpy").random.seed(seed)
    importlib.import_module("torch").manual_seed(seed)


def _examples(job: Job) -> list[dict[str, list[int]]]:
    rows: list[list[int]] = json.loads(Path(job["windows"]).read_text("utf-8"))
    return [{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows]


def _versions(*names: str) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in names}


def _gptqmodel(job: Job, reporter: Reporter) -> dict[str, str]:
    library: Any = importlib.import_module("gptqmodel")
    config = library.QuantizeConfig(
        bits=job["bits"],
        group_size=job["group_size"],
        desc_act=job["desc_act"],
        # Groups ordered by activation, where columns are not: better, and the same format.
        act_group_aware=not job["desc_act"],
        sym=True,
        damp_percent=job["damp"],
        device=job["device"],
        offload_to_disk=True,
        offload_to_disk_path=job["scratch"],
    )
    model = library.GPTQModel.load(job["model"], config)
    layers: int = model.model.config.get_text_config().num_hidden_layers

    def finished(layer_idx: int, submodule_finalized: bool) -> None:
        if submodule_finalized:
            reporter.say(layer=layer_idx, layers=layers)

    model.layer_callback = finished
    options: dict[str, Any] = {}
    if job["checkpoint"]:
        store: Any = importlib.import_module("gptqmodel.looper.checkpoint_store")
        options["checkpoint"] = store.CheckpointConfig(path=job["checkpoint"])
    model.quantize(_examples(job), batch_size=_BATCH, calibration_data_min_length=1, **options)
    model.save(job["output"])
    return _versions("gptqmodel", "transformers", "torch")


def _optimum(job: Job, reporter: Reporter) -> dict[str, str]:
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    quantizer_module: Any = importlib.import_module("optimum.gptq")
    _listen("optimum.gptq.quantizer", reporter)
    model = transformers.AutoModelForCausalLM.from_pretrained(job["model"], dtype="auto").to(job["device"])
    quantizer = quantizer_module.GPTQQuantizer(
        bits=job["bits"],
        group_size=job["group_size"],
        desc_act=job["desc_act"],
        act_group_aware=not job["desc_act"],
        sym=True,
        damp_percent=job["damp"],
        dataset=[{key: torch.tensor([row]) for key, row in each.items()} for each in _examples(job)],
    )
    quantizer.quantize_model(model)
    # It would write every calibration token into the folder's configuration.
    quantizer.dataset = None
    model.config.quantization_config = quantizer.to_dict()
    quantizer.save(model, job["output"])
    return _versions("optimum", "gptqmodel", "transformers", "torch")


def _auto_gptq(job: Job, reporter: Reporter) -> dict[str, str]:
    torch: Any = importlib.import_module("torch")
    library: Any = importlib.import_module("auto_gptq")
    _listen("auto_gptq.modeling._base", reporter)
    config = library.BaseQuantizeConfig(
        bits=job["bits"],
        group_size=job["group_size"],
        desc_act=job["desc_act"],
        sym=True,
        damp_percent=job["damp"],
    )
    model = library.AutoGPTQForCausalLM.from_pretrained(job["model"], config, torch_dtype=torch.float16)
    model.quantize(_examples(job), batch_size=_BATCH)
    model.save_quantized(job["output"], use_safetensors=True)
    return _versions("auto-gptq", "transformers", "torch")


def _listen(name: str, reporter: Reporter) -> None:
    logger = logging.getLogger(name)
    logger.addHandler(reporter)
    logger.setLevel(logging.INFO)


_BACKENDS: dict[str, Callable[[Job, Reporter], dict[str, str]]] = {
    "gptqmodel": _gptqmodel,
    "optimum": _optimum,
    "auto-gptq": _auto_gptq,
}

if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
