"""Large files of the hub, brought into huggingface_hub's cache and resumed where an earlier process stopped.

huggingface_hub 2.4 starts a killed run's file again. So large files, which the hub names by their SHA-256,
come by this project's own download over plain HTTP. Each attempt asks the hub itself, since the signed
addresses that it redirects to expire; the token stays with the hub.

    <folder>/<sha256>.partial                  what has arrived so far
    <folder>/<sha256>                          whole and verified, about to move
    <cache>/models--<owner>--<name>/blobs/<sha256>   where huggingface_hub finds it and links it

The cache's layout: https://huggingface.co/docs/huggingface_hub/guides/manage-cache. Should it change,
huggingface_hub downloads the file once more itself, and nothing breaks.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import huggingface_hub
import requests
from huggingface_hub import constants
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, not in __all__
from requests.auth import AuthBase
from tqdm import tqdm

from rrtf_serve.models.disk import require_room, size_text
from rrtf_serve.models.download import download

SHA256 = re.compile(r"[0-9a-f]{64}")
PROBE_SECONDS = 5.0  # the hub's first answer; a network that drops packets must not hold up the next origin

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Large:
    """One large file: where it comes from, and what it must be."""

    name: str
    url: str
    etag: str  # the hub's SHA-256 of it; names the blob, so it must never be anything else
    size: int
    sha256: str  # that must come out

    def partial_size(self, folder: Path) -> int:
        whole, partial = folder / self.etag, folder / f"{self.etag}.partial"
        return next((path.stat().st_size for path in (whole, partial) if path.exists()), 0)


def ask(repo: str, commit: str, name: str, size: int, sha256: str) -> Large | None:
    """What the hub says of a large file; None where it has no SHA-256, or the cache has the blob.

    `size` and `sha256` are those that the caller knows. Raises what huggingface_hub raises, as for terms that
    are not accepted.
    """
    url = huggingface_hub.hf_hub_url(repo, name, revision=commit)
    facts = huggingface_hub.get_hf_file_metadata(url, timeout=PROBE_SECONDS, retry_on_errors=True)
    etag = facts.etag or ""
    if not SHA256.fullmatch(etag) or _blob(repo, etag).exists():
        return None
    return Large(name, url, etag, facts.size or size, sha256 or etag)


def bring(repo: str, files: list[Large], folder: Path, *, progress: bool) -> None:
    """Download `files` into the cache's blobs, going on where an earlier call stopped.

    Unfinished files lie in `folder`. Raises ModelError; what has arrived is kept, except after a wrong
    digest. The caller holds the lock of `folder`.
    """
    if not files:
        return
    rests = [file.size - file.partial_size(folder) for file in files]
    _require_room(sum(rests), max(rests), folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _session() as session:
        for file in files:
            whole = folder / file.etag
            if not whole.exists():
                logger.info("%s: %s from the hub", file.name, size_text(file.size))
                with _bar(file, progress) as bar:
                    download(session, file.url, whole, file.sha256, bar.update, who="the hub")
            _move(whole, _blob(repo, file.etag))
    with suppress(OSError):  # not empty: another file of this model is unfinished, or came from wheels
        folder.rmdir()


class _Bearer(AuthBase):
    """The hub's token, which requests drops on a redirect to another host.

    As `auth` rather than a header, or a ~/.netrc entry would replace it.
    """

    def __init__(self, authorization: str) -> None:
        self.authorization = authorization

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.authorization:
            request.headers["Authorization"] = self.authorization
        return request


def _session() -> requests.Session:
    session = requests.Session()
    headers = build_hf_headers()
    session.auth = _Bearer(headers.pop("authorization", ""))
    session.headers.update(headers)
    if bundle := os.environ.get("SSL_CERT_FILE"):  # what huggingface_hub's own client reads
        session.verify = bundle
    return session


def _blob(repo: str, etag: str) -> Path:
    return Path(constants.HF_HUB_CACHE, f"models--{repo.replace('/', '--')}", "blobs", etag)


def _move(whole: Path, blob: Path) -> None:
    """Into the cache, by way of a copy where that is another disk; the blob appears whole or not at all."""
    blob.parent.mkdir(parents=True, exist_ok=True)
    try:
        whole.replace(blob)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        near = blob.with_name(f"{blob.name}.incomplete")
        shutil.copyfile(whole, near)
        near.replace(blob)
        whole.unlink()


def _require_room(needed: int, largest: int, folder: Path) -> None:
    require_room(Path(constants.HF_HUB_CACHE), needed, "set HF_HOME to a folder on another disk")
    require_room(folder, largest, "set RRTF_HOME to a folder on another disk")


def _bar(file: Large, progress: bool) -> tqdm[NoReturn]:
    """A bar over the bytes; off where stderr is no terminal."""
    return tqdm(
        total=file.size or None,
        unit="B",
        unit_scale=True,
        desc=Path(file.name).name,
        file=sys.stderr,
        disable=None if progress else True,
    )
