"""One file over HTTP into one file on disk, resumed where an earlier attempt stopped.

Bytes go to `<target>.partial`; a dropped connection, a killed process or a full disk leaves it there, and
the next attempt asks for the rest with a Range header (RFC 9110, section 14). The target appears complete or
not at all.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import requests

from rrtf_serve.models.disk import write_failure
from rrtf_serve.models.errors import ModelError

CHUNK = 256 * 1024  # what a killed process loses at most
TIMEOUT = (5.0, 30.0)  # seconds to connect, and between two chunks
ATTEMPTS = 5  # in a row that bring no new byte
LONGEST_PAUSE = 8.0  # seconds
BUSY = {408, 429, 500, 502, 503, 504}  # worth another attempt

logger = logging.getLogger(__name__)


class InterruptedDownloadError(Exception):
    """This attempt failed in a way that another may not."""


def shown(url: str) -> str:
    """`url` without user name and password, fit for a message."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def connection_failure(error: requests.RequestException, url: str) -> ModelError:
    """The ModelError that tells a network that is not there from one that is not trusted."""
    where = shown(url)
    if isinstance(error, requests.exceptions.SSLError):
        return ModelError(
            f"{where}: its TLS certificate is not trusted here. Where a proxy re-signs traffic, name its CA "
            "bundle in REQUESTS_CA_BUNDLE (or PIP_CERT)."
        )
    if isinstance(error, requests.exceptions.ProxyError):
        return ModelError(f"{where}: the proxy refused; check HTTPS_PROXY and NO_PROXY.")
    if isinstance(error, requests.Timeout):
        return ModelError(f"{where}: no answer in time; check the network and proxy settings.")
    if isinstance(error, requests.ConnectionError | requests.exceptions.ChunkedEncodingError):
        return ModelError(f"{where}: no connection; check the network and proxy settings.")
    return ModelError(f"{where}: the request failed ({type(error).__name__}).")


def download(
    session: requests.Session, url: str, target: Path, sha256: str, on_bytes: Callable[[int], object]
) -> None:
    """Bring `url` to `target`, resuming and retrying; `sha256` is checked where it is not empty.

    `on_bytes` hears each change of the number of bytes had, first those of an earlier attempt; a restart is a
    negative number. Raises ModelError; what arrived stays in `<target>.partial`, except after a wrong digest.
    """
    partial = target.with_name(target.name + ".partial")
    on_bytes(_size(partial))
    fruitless = 0
    while True:
        before = _size(partial)
        try:
            _attempt(session, url, partial, on_bytes)
            break
        except (InterruptedDownloadError, requests.ConnectionError, requests.Timeout) as error:
            _give_up_on(error, url, fruitless := 0 if _size(partial) > before else fruitless + 1)
        except requests.exceptions.ChunkedEncodingError as error:
            _give_up_on(error, url, fruitless := 0 if _size(partial) > before else fruitless + 1)
        except requests.RequestException as error:
            raise connection_failure(error, url) from error
        except OSError as error:
            raise write_failure(
                error, partial, "What has arrived is kept; the next start goes on there."
            ) from error
        pause = min(0.5 * 2**fruitless, LONGEST_PAUSE)
        logger.info("%s: interrupted at %d bytes, going on in %.1f s", shown(url), _size(partial), pause)
        time.sleep(pause)
    if sha256 and (found := file_sha256(partial)) != sha256:
        partial.unlink()
        raise ModelError(
            f"{shown(url)}: SHA-256 is {found}, the index says {sha256}. The file was removed; try again."
        )
    partial.replace(target)


def _give_up_on(error: Exception, url: str, fruitless: int) -> None:
    lasting = isinstance(error, requests.exceptions.SSLError | requests.exceptions.ProxyError)
    if not lasting and fruitless < ATTEMPTS:
        return
    if isinstance(error, requests.RequestException):
        raise connection_failure(error, url) from error
    raise ModelError(
        f"{shown(url)}: {error}, {ATTEMPTS} times in a row. What has arrived is kept; try again later."
    )


def _attempt(session: requests.Session, url: str, partial: Path, on_bytes: Callable[[int], object]) -> None:
    have = _size(partial)
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as reply:
        if reply.status_code == 416:  # nothing left to send, or another file than before
            if reply.headers.get("Content-Range", "").endswith(f"/{have}"):
                return
            partial.unlink()
            on_bytes(-have)
            raise InterruptedDownloadError("the file changed on the server")
        if reply.status_code in BUSY:
            raise InterruptedDownloadError(f"the server answers {reply.status_code} {reply.reason}")
        if reply.status_code not in (200, 206):
            raise ModelError(f"{shown(url)}: the server answers {reply.status_code} {reply.reason}.")
        continues = reply.status_code == 206 and reply.headers.get("Content-Range", "").startswith(
            f"bytes {have}-"
        )
        if have and not continues:
            on_bytes(-have)
        with partial.open("ab" if continues else "wb") as file:
            for chunk in reply.iter_content(CHUNK):
                file.write(chunk)
                on_bytes(len(chunk))


def file_sha256(path: Path) -> str:
    """Lower-case hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
