"""The package index as a place to read from: which index, and where it keeps a project's wheel.

The index is the one that pip would use: PIP_INDEX_URL, else pip's configuration, else https://pypi.org/simple.
Simple repository API: PEP 691 (JSON) where the index speaks it, PEP 503 (HTML) where it doesn't.
"""

from __future__ import annotations

import ast
import logging
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from urllib.parse import urldefrag, urljoin

import requests

from rrtf_serve import __version__
from rrtf_serve.models.catalog import Part
from rrtf_serve.models.download import BUSY, TIMEOUT, connection_failure, shown
from rrtf_serve.models.errors import ModelError

PUBLIC_INDEX = "https://pypi.org/simple"
JSON = "application/vnd.pypi.simple.v1+json"
VARIABLES = {"index-url": "PIP_INDEX_URL", "cert": "PIP_CERT"}
ACCEPT = f"{JSON}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WheelFile:
    """One wheel on an index; `sha256` is empty and `size` 0 where the index doesn't say."""

    filename: str
    url: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Index:
    """An index's base URL and the session that reaches it."""

    url: str
    session: requests.Session

    def wheel(self, part: Part) -> WheelFile:
        """The part's wheel. Raises ModelError when the index can't be reached or lacks it."""
        page = f"{self.url}/{canonical(part.project)}/"
        files = self._files(page)
        wheels = [file for file in files if _is_wheel_of(file.filename, part)]
        if not wheels:
            raise ModelError(
                f"{shown(page)}: no wheel of version {part.version} ({len(files)} files listed)."
            )
        return next((wheel for wheel in wheels if wheel.filename.endswith("-any.whl")), wheels[0])

    def _files(self, page: str) -> list[WheelFile]:
        for last in (False, True):
            try:
                reply = self.session.get(page, headers={"Accept": ACCEPT}, timeout=TIMEOUT)
            except requests.RequestException as error:
                raise connection_failure(error, page) from error
            if reply.status_code not in BUSY or last:
                break
        if reply.status_code in (401, 403):
            raise ModelError(
                f"{shown(page)}: the index refuses access ({reply.status_code}); check its credentials."
            )
        if reply.status_code == 404:
            raise ModelError(f"{shown(page)}: the index has no such project.")
        if reply.status_code != 200:
            raise ModelError(f"{shown(page)}: the index answers {reply.status_code} {reply.reason}.")
        kind = reply.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        return _from_json(reply, page) if kind.endswith("json") else _from_html(reply)


def open_index() -> Index:
    """The index pip would use, with pip's certificate bundle where REQUESTS_CA_BUNDLE names none."""
    settings = _pip_settings()
    session = requests.Session()
    session.headers["User-Agent"] = f"rrtf-serve/{__version__}"
    if "cert" in settings and not (os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")):
        session.verify = settings["cert"]
    return Index(settings.get("index-url", PUBLIC_INDEX).rstrip("/"), session)


def canonical(project: str) -> str:
    """A project's name as indexes spell it in URLs (PEP 503, "Normalized Names")."""
    return re.sub(r"[-_.]+", "-", project).lower()


def _pip_settings() -> dict[str, str]:
    """pip's `index-url` and `cert`, environment first. A Python without pip has no configuration to ask."""
    found = {key: value for key, variable in VARIABLES.items() if (value := os.environ.get(variable))}
    if len(found) == len(VARIABLES):
        return found
    command = [sys.executable, "-m", "pip", "config", "list"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.info("pip's configuration can't be read (%s); the public index is used", error)
        return found
    if done.returncode != 0:
        return found
    lines = re.findall(r"^(global|install)\.(index-url|cert)=(.+)$", done.stdout, re.MULTILINE)
    # pip prints its files in rising precedence, values as literals; a command's section beats `global`.
    for _, key, value in sorted(lines, key=lambda line: line[0] == "install"):
        if not os.environ.get(VARIABLES[key]):
            found[key] = str(ast.literal_eval(value))
    return found


def _is_wheel_of(filename: str, part: Part) -> bool:
    fields = filename.removesuffix(".whl").split("-")
    return (
        filename.endswith(".whl")
        and len(fields) in (5, 6)  # name-version(-build)-python-abi-platform
        and canonical(fields[0]) == canonical(part.project)
        and fields[1] == part.version
    )


def _from_json(reply: requests.Response, page: str) -> list[WheelFile]:
    try:
        return [
            WheelFile(
                filename=str(entry["filename"]),
                url=urljoin(reply.url, entry["url"]),
                sha256=str(entry.get("hashes", {}).get("sha256", "")).lower(),
                size=int(entry.get("size") or 0),
            )
            for entry in reply.json()["files"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{shown(page)}: not a simple index in JSON (PEP 691): {error!r}.") from error


class _Anchors(HTMLParser):
    """Collects (href, text) of a page's links, and its base URL."""

    def __init__(self) -> None:
        super().__init__()
        self.base = ""
        self.links: list[tuple[str, str]] = []
        self._open = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(attrs).get("href") or ""
        if tag == "base":
            self.base = href
        elif tag == "a" and href:
            self.links.append((href, ""))
            self._open = True

    def handle_endtag(self, tag: str) -> None:
        if tag == "a":
            self._open = False

    def handle_data(self, data: str) -> None:
        if self._open:
            href, text = self.links[-1]
            self.links[-1] = (href, text + data)


def _from_html(reply: requests.Response) -> list[WheelFile]:
    anchors = _Anchors()
    anchors.feed(reply.text)
    base = urljoin(reply.url, anchors.base)
    files = []
    for href, text in anchors.links:
        url, fragment = urldefrag(urljoin(base, href))
        sha256 = fragment.removeprefix("sha256=").lower() if fragment.startswith("sha256=") else ""
        files.append(WheelFile(text.strip(), url, sha256, 0))
    return files
