"""transformers' own tokenizer of a GGUF file, built once for all tests: it takes seconds."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any


@functools.cache
def tokenizer_of_transformers(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's deprecations
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
