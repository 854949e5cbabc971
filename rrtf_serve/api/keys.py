"""API keys: several, each with a name, from a file (read again when it changes) and from the environment.

A line of the file is `name:key`, `name = key`, or a key alone, which is named after its digest. The same
stands in the environment variable, with commas between. Only SHA-256 digests are kept; logs show names.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "RRTF_API_KEYS"
POLL_SECONDS = 1.0
# A file changed this lately may change again within the same tick of its clock, unseen in its times.
FRESH_SECONDS = 2.0

# Two forms, tried in turn; base64 keys end in "=", so the sign counts only with spaces around it.
_NAMED = (
    re.compile(r"(?P<name>[^\s:=]+)\s*:\s*(?P<key>.*)"),
    re.compile(r"(?P<name>[^\s:=]+)\s+=(\s+(?P<key>.*))?"),
)
_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")

log = logging.getLogger(__name__)

# Modification time (ns), size (bytes), inode.
_Mark = tuple[int, int, int]


@dataclass(frozen=True)
class Key:
    name: str  # for logs and limits
    digest: str  # SHA-256, hex


def digest_of(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()


class Keyring:
    """Whose a key is. For one thread.

    Besides the keys it was given it knows one key for each of them with which the page calls the API in the
    name of a visitor who signed in with it: the same for as long as the server runs and the key is there.
    """

    def __init__(
        self, keys: Iterable[Key] = (), *, file: Path | None = None, poll_seconds: float = POLL_SECONDS
    ) -> None:
        """keys: these stay. file: more of them, looked at again when a key is asked for, but once in
        poll_seconds at most. Raises ValueError naming the flag and the line."""
        self._fixed = tuple(keys)
        self._file = file
        self._secret = secrets.token_bytes(32)
        self._poll_seconds = poll_seconds
        self._mark: _Mark | None = None
        self._settled = True
        self._problem = ""
        self._polled = time.monotonic()
        self._known: dict[str, Key] = {}
        if file is not None:
            self._look(file)
            self._keep(self._read(file))
        else:
            self._keep(())

    @property
    def required(self) -> bool:
        """Whether clients are asked for a key. Decided at the start: no change of the file opens a server."""
        return bool(self._fixed) or self._file is not None

    def find(self, key: bytes) -> Key | None:
        """Whose this key is, in a time that doesn't depend on how much of it is right."""
        self._poll()
        digest = digest_of(key)
        found: Key | None = None
        for known, owner in self._known.items():
            if hmac.compare_digest(digest, known):
                found = owner
        return found

    def page_key(self, visitors: str) -> str | None:
        """With which key the page calls the API for a visitor with this one; None where theirs is none."""
        owner = self.find(visitors.encode("utf-8", "surrogatepass"))
        return None if owner is None else self._page_key(owner)

    def holds(self, key: str) -> bool:
        """Whether a key, the page's own included, is still one."""
        return self.find(key.encode("utf-8", "surrogatepass")) is not None

    def reload(self) -> None:
        """Read the file now. Where it can't be used the keys stay as they were, and a warning says why."""
        self._problem = ""
        self._reload()

    def _reload(self) -> None:
        if self._file is None:
            return
        self._look(self._file)
        try:
            keys = self._read(self._file)
        except ValueError as error:
            if str(error) != self._problem:  # said once, not at every poll
                log.warning("%s; the keys stay as they were", error)
            self._problem = str(error)
            return
        self._problem = ""
        before = {key.name for key in self._known.values()}
        self._keep(keys)
        after = {key.name for key in self._known.values()}
        if before != after:
            added, gone = sorted(after - before), sorted(before - after)
            log.info("API keys read again: added %s; removed %s", added or "none", gone or "none")

    def _poll(self) -> None:
        now = time.monotonic()
        if self._file is None or now - self._polled < self._poll_seconds:
            return
        self._polled = now
        if not self._settled or _mark(self._file) != self._mark:
            self._reload()

    def _look(self, file: Path) -> None:
        """Before the reading: what changes meanwhile is seen at the next poll."""
        self._mark = _mark(file)
        fresh = self._mark is not None and time.time() - self._mark[0] / 1e9 < FRESH_SECONDS
        self._settled = not fresh

    def _read(self, file: Path) -> tuple[Key, ...]:
        keys = read_file(file)
        _check(self._fixed, keys, f"--api-key-file {file}")
        return keys

    def _keep(self, keys: tuple[Key, ...]) -> None:
        every = (*self._fixed, *keys)
        self._known = {key.digest: key for key in every}
        self._known |= {digest_of(self._page_key(key).encode()): key for key in every}

    def _page_key(self, owner: Key) -> str:
        return "page-" + hmac.new(self._secret, owner.digest.encode(), "sha256").hexdigest()


def read_file(path: Path) -> tuple[Key, ...]:
    """Empty lines and those that start with # are left out. Raises ValueError naming the flag and the line,
    never what stands there."""
    where = f"--api-key-file {path}"
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise ValueError(f"{where}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 text") from error
    keys = tuple(
        _parse(line.strip(), f"{where}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    )
    if not keys:
        raise ValueError(f"{where}: holds no key")
    _check((), keys, where)
    return keys


def read_variable(value: str) -> tuple[Key, ...]:
    """Keys of the environment variable's value; empty: none. Raises ValueError naming the variable."""
    items = [item.strip() for item in value.split(",") if item.strip()]
    # Serving without any check is surely not what somebody who set keys wants: never fail open.
    if value and not items:
        raise ValueError(f"{VARIABLE} is set but holds no key; unset it to serve without keys")
    keys = tuple(_parse(item, f"{VARIABLE}, item {number}") for number, item in enumerate(items, 1))
    _check((), keys, VARIABLE)
    return keys


def _parse(text: str, where: str) -> Key:
    name, key = None, text
    for form in _NAMED:
        if found := form.fullmatch(text):
            name, key = found["name"], (found["key"] or "").strip()
            break
    if not key:
        raise ValueError(f"{where}: no key after the name")
    if name is not None and not _NAME.fullmatch(name):
        raise ValueError(
            f"{where}: the name before the key may hold letters, digits and _ . @ - (1 to 64 of them)"
        )
    if any(ord(character) < 32 or ord(character) == 127 for character in key):
        raise ValueError(f"{where}: the key holds a control character, which no header can carry")
    digest = digest_of(key.encode())
    return Key(name or f"key-{digest[:8]}", digest)


def _check(first: tuple[Key, ...], more: tuple[Key, ...], where: str) -> None:
    """One key, one name. (One name may have several keys: an old one and its successor.)"""
    names = {key.digest: key.name for key in first}
    for key in more:
        other = names.setdefault(key.digest, key.name)
        if other != key.name:
            raise ValueError(f"{where}: one key has two names, {other} and {key.name}; give each its own key")


def _mark(path: Path) -> _Mark | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
