"""SHA-256 of model files, each computed once: a marker remembers the file's size and time of last change."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from pathlib import Path

from rrtf_serve.models.download import file_sha256

BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # the hub's own digests: Git's SHA-1 of small files, SHA-256

logger = logging.getLogger(__name__)


class Verified:
    """Markers of files whose SHA-256 is known, in a folder of small JSON files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def sha256(self, path: Path) -> str:
        """Lower-case hexadecimal SHA-256 of `path`, read from its marker where the file is as it was."""
        state = _state(path)
        try:
            record = json.loads(self._marker(path).read_text("utf-8"))
            if [record["size"], record["mtime_ns"]] == state:
                return str(record["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # no marker, or one cut short: hash the file
        return self.remember(path, file_sha256(path))

    def remember(self, path: Path, sha256: str) -> str:
        """Note that `path`, as it is now, has this digest; returns the digest."""
        size, mtime_ns = _state(path)
        marker = self._marker(path)
        fresh = marker.with_name(f"{marker.name}.{os.getpid()}")
        record = {"path": str(path), "size": size, "mtime_ns": mtime_ns, "sha256": sha256}
        try:
            marker.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_text(json.dumps(record), "utf-8")
            fresh.replace(marker)
        except OSError as error:
            # A store that can't be written to, as in a read-only image, costs time and nothing else.
            logger.info("%s will be hashed again next time (%s)", path, error)
        return sha256

    def _marker(self, path: Path) -> Path:
        name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
        return self.folder / f"{name}.json"


def folder_digest(folder: Path, verified: Verified) -> str:
    """SHA-256 over the sorted lines `<name> <digest>` of a folder's weights, configurations and tokenizer.

    The card (rrtf.json) is left out: a model that has been measured is still the same model.
    Files of the Hugging Face cache are links to blobs named by their digest, which is taken as it stands.
    """
    lines = []
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".safetensors", ".json", ".jinja", ".txt") or not path.is_file():
            continue
        if path.name == "rrtf.json":
            continue
        blob = path.resolve().name
        known = path.is_symlink() and BLOB.fullmatch(blob)
        lines.append(f"{path.name} {blob if known else verified.sha256(path)}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _state(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
