"""One line for each HTTP request, as JSON or as text, on stderr or in a file.

No line holds a key or, unless it was asked for, any text of a prompt. Lines are written by a thread of their
own: neither a full disk nor a reader that doesn't read holds up a request; what can't be written is counted
and lost.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from rrtf_serve.api.visit import Visit

Format = Literal["text", "json", "none"]
FORMATS: tuple[Format, ...] = get_args(Format)
MAX_WAITING = 10_000  # lines
WARN_SECONDS = 60.0
# What supervisors and browsers ask for all day is told only where it goes wrong.
_QUIET = frozenset(("/health", "/ready", "/metrics", "/ui"))
_STDERR = 2

log = logging.getLogger(__name__)


def format_named(name: str) -> Format:
    """Raises ValueError naming --log-format."""
    for known in FORMATS:
        if name == known:
            return known
    raise ValueError(f"--log-format {name}: must be one of {', '.join(FORMATS)}")


class RequestLog:
    """Writes to `file`, or to stderr. lost: called, from any thread, for each line that could not be written.

    Raises ValueError naming --log-file where it can't be opened.
    """

    def __init__(self, form: Format, file: Path | None = None, *, lost: Callable[[], None]) -> None:
        self._form = form
        self._file = file
        self._lost = lost
        self._warned = -WARN_SECONDS
        self._broken = False  # the last line is there in part
        self._descriptor = _STDERR
        if file is not None:
            try:
                self._descriptor = _open(file)
            except OSError as error:
                raise ValueError(f"--log-file {file}: {error.strerror}") from error
        # None: open the file again. An Event: told once everything before it is written.
        self._lines: queue.Queue[bytes | threading.Event | None] = queue.Queue(MAX_WAITING)
        self._closed = False
        threading.Thread(target=self._work, name="request-log", daemon=True).start()

    def tell(self, visit: Visit) -> None:
        """Never blocks, never fails."""
        quiet = visit.route in _QUIET and visit.status is not None and visit.status < 400
        if self._form == "none" or quiet:
            return
        line = json_line(visit) if self._form == "json" else text_line(visit)
        self._put(line.encode("utf-8", "backslashreplace") + b"\n")

    def reopen(self) -> None:
        """After the file was moved away: go on in a new one of its name."""
        if self._file is not None:
            self._put(None)

    def close(self, seconds: float = 5.0) -> None:
        """Write what waits, for so long at most. Idempotent."""
        if self._closed:
            return
        self._closed = True
        written = threading.Event()
        self._put(written)
        written.wait(seconds)

    def _put(self, item: bytes | threading.Event | None) -> None:
        try:
            self._lines.put_nowait(item)
        except queue.Full:
            self._lost()

    def _work(self) -> None:
        while True:
            item = self._lines.get()
            if isinstance(item, bytes):
                self._write(item)
            elif item is None:
                self._open_again()
            else:
                if self._file is not None:
                    os.close(self._descriptor)
                item.set()
                return

    def _write(self, line: bytes) -> None:
        rest = b"\n" + line if self._broken else line
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
                self._broken = True
            self._broken = False
        except OSError as error:
            self._lost()
            self._warn(error)

    def _open_again(self) -> None:
        assert self._file is not None
        try:
            descriptor = _open(self._file)
        except OSError as error:
            self._warn(error)  # and go on in the old one
            return
        os.close(self._descriptor)
        self._descriptor, self._broken = descriptor, False

    def _warn(self, error: OSError) -> None:
        now = time.monotonic()
        # Where stderr itself is what fails, nobody can be told.
        if self._file is not None and now - self._warned >= WARN_SECONDS:
            self._warned = now
            log.warning("--log-file %s: %s; lines are lost", self._file, error.strerror)


def json_line(visit: Visit) -> str:
    """Times in milliseconds; `time` is when the request ended, in UTC. What is unknown is left out."""
    record: dict[str, object | None] = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "event": "request",
        "request_id": visit.request_id,
        "client": visit.client,
        "key": visit.key,
        "method": visit.method[:20],
        "route": visit.route,
        "path": visit.path[:200] if visit.route == "unmatched" else None,
        "status": visit.status,
        "error": visit.error,
        "gone": visit.gone or None,
        "model": visit.model,
        "rows": visit.rows or None,
        "prompt_tokens": visit.prompt_tokens if visit.model is not None else None,
        "completion_tokens": visit.completion_tokens if visit.model is not None else None,
        "queue_ms": _ms(visit.queue_seconds),
        "first_token_ms": _ms(visit.first_token_seconds),
        "total_ms": _ms(visit.ended - visit.started),
        "finish": visit.finishes or None,
        "prompts": visit.prompts or None,
    }
    return json.dumps({name: value for name, value in record.items() if value is not None})


def text_line(visit: Visit) -> str:
    """The same for people, without the time where supervisors add their own."""
    place = json.dumps(visit.path[:200]) if visit.route == "unmatched" else visit.route
    parts = [f"{visit.method[:20]} {place} {visit.status or '-'}"]
    if visit.error is not None:
        parts.append(visit.error)
    if visit.gone:
        parts.append("client gone")
    if visit.model is not None:
        finish = f" ({', '.join(sorted(set(visit.finishes)))})" if visit.finishes else ""
        parts.append(f"{visit.prompt_tokens} + {visit.completion_tokens} tokens{finish}")
    if visit.first_token_seconds is not None:
        parts.append(f"first after {visit.first_token_seconds * 1000:.0f} ms")
    parts.append(f"{(visit.ended - visit.started) * 1000:.0f} ms")
    if visit.key is not None:
        parts.append(f"key {visit.key}")
    parts += [visit.request_id, *(f"prompt {json.dumps(prompt)}" for prompt in visit.prompts)]
    return f"rrtf-serve: {datetime.now().strftime('%H:%M:%S')} " + " · ".join(parts)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)


def _open(file: Path) -> int:
    # Not for others to read: lines tell who asked when, and may hold prompts.
    return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
