"""What CTranslate2's own files tell of a model, read without loading it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import BinaryIO

from rrtf_serve.models.errors import ModelError

# The layout that every converter since CTranslate2 2.0 writes: ctranslate2.specs.model_spec, _serialize.
_BINARY_VERSION = 6
_POSITIONS = "decoder/position_encodings/encodings"


def read_vocabulary(folder: Path) -> list[str]:
    """The token strings by id. Raises ModelError, also where two ids share a string: prompts go to
    CTranslate2 as strings, so it could not tell them apart."""
    path = folder / "vocabulary.json"
    try:
        tokens = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: can't be read ({error.strerror}); is it a CTranslate2 folder?") from error
    except ValueError as error:
        raise ModelError(f"{path}: not valid JSON ({error}); convert the model again") from error
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens) or not tokens:
        raise ModelError(f"{path}: not a list of tokens; convert the model again")
    if len(set(tokens)) != len(tokens):
        raise ModelError(f"{path}: a token occurs twice; convert the model again")
    return tokens


def learned_positions(folder: Path) -> int | None:
    """How many positions the model has learned; None where positions are computed and set no such limit.

    Beyond them CTranslate2 fails in mid-answer, and its config.json does not say how many there are. Raises
    ModelError on a model.bin that is cut short or in another layout.
    """
    path = folder / "model.bin"
    try:
        with path.open("rb") as file:
            (version,) = _unpack(file, "<I")
            if version != _BINARY_VERSION:
                raise ModelError(f"{path}: binary version {version}, not {_BINARY_VERSION}; convert it again")
            _string(file)
            _, variables = _unpack(file, "<II")
            for _ in range(variables):
                name = _string(file)
                (rank,) = _unpack(file, "<B")
                shape = _unpack(file, f"<{rank}I")
                _, size = _unpack(file, "<BI")
                if name == _POSITIONS and shape:
                    return int(shape[0])
                file.seek(size, 1)
    except OSError as error:
        raise ModelError(f"{path}: can't be read ({error.strerror}); is it a CTranslate2 folder?") from error
    except (struct.error, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: cut short or damaged; convert the model again") from error
    return None


def _unpack(file: BinaryIO, layout: str) -> tuple[int, ...]:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


def _string(file: BinaryIO) -> str:
    (length,) = _unpack(file, "<H")
    return file.read(length)[:-1].decode("utf-8")
