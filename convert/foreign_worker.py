"""The child process of convert/whole_model: CTranslate2's own converter on one Hugging Face folder.

Run as: python -m convert.foreign_worker MODEL FOLDER QUANTIZATION
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

from ctranslate2.converters import TransformersConverter

from convert import loaders
from convert.checkpoint import hf_facts
from convert.ct2 import padded_vocabulary
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.records import Record


class Converter(TransformersConverter):  # type: ignore[misc]  # ctranslate2 has no type information
    """With our vocabulary, which has one string per row, and the norms' epsilon for every family."""

    def __init__(self, model: Path) -> None:
        super().__init__(str(model))
        self.model = model

    def load_model(self, model_class: Any, model_name_or_path: str, **options: Any) -> Any:
        """Transformers' model. What it lacks would be random, what is no number would be written as it is."""
        model, found = model_class.from_pretrained(model_name_or_path, output_loading_info=True, **options)
        if found["missing_keys"]:
            raise ModelError(f"tensor {min(found['missing_keys'])} is missing; the folder is incomplete")
        for name, tensor in model.state_dict().items():
            if not tensor.isfinite().all():
                raise ModelError(
                    f"tensor {name} holds values that are not finite numbers; the file is damaged"
                )
        return model

    def _load(self) -> Any:  # what `convert` calls, and what every converter of CTranslate2 overrides
        spec = super()._load()
        facts = hf_facts(self.model)
        rows = spec.decoder.embeddings.weight.shape[0]
        spec.register_vocabulary(padded_vocabulary(facts.tokens, rows, self.model))
        config = spec.config
        config.bos_token = facts.bos_token or facts.pad_token or facts.unk_token or facts.eos_token
        config.eos_token, config.unk_token = facts.eos_token, facts.unk_token
        record = Record.read(self.model / "config.json")
        for key in ("layer_norm_eps", "layer_norm_epsilon", "rms_norm_eps"):
            if key in record.values:
                config.layer_norm_epsilon = record.number(key, 1e-5)
        return spec


def main(model: str, folder: str, quantization: str) -> None:
    """Write model.bin, config.json and vocabulary.json into `folder`, which exists."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    loaders.register()
    spec = Converter(Path(model))._load()
    spec.validate()
    spec.optimize(quantization=quantization)
    spec.save(folder)


def _end_with_parent() -> None:
    while os.read(0, 1):  # not sys.stdin: a thread in it aborts the interpreter's own end
        pass
    os._exit(1)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except ModelError as error:  # its text is for the user; of other errors the last line of the traceback is
        sys.exit(str(error))
