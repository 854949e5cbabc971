"""One HTTP answer that goes on, as lines of JSON: the way in which Ollama's clients read it.

The answer itself, and how its work stops when the client has gone, are sse.EventStream's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from rrtf_serve.api.errors import ApiError

MEDIA_TYPE = "application/x-ndjson"


def line(record: Mapping[str, object]) -> bytes:
    # ASCII only: Python's clients split lines at U+2028 and its like, which JSON lets stand in strings.
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


class LinesEnding:
    """The last line says by itself that it is the last; a failure is the line {"error": "text"}."""

    media_type = MEDIA_TYPE
    done = b""

    def failure(self, error: ApiError) -> bytes:
        return line({"error": error.message})
