"""What the API serves and the limits it keeps."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from rrtf_serve.engine.scheduler import Scheduler
from rrtf_serve.models.folder import Card
from rrtf_serve.models.prompts import Prompts
from rrtf_serve.models.tokens import Tokenizer


@dataclass(frozen=True)
class Served:
    """One model behind the API."""

    name: str  # what /v1/models lists and every answer carries
    aliases: tuple[str, ...]  # other names that `model` may hold
    card: Card
    tokenizer: Tokenizer
    prompts: Prompts
    scheduler: Scheduler
    created: int  # Unix seconds
    prefill_speed: float | None = None  # tokens of prompt read in a second, measured; None: not known


@dataclass(frozen=True)
class ApiSettings:
    api_keys: frozenset[str] = frozenset()  # SHA-256 hex digests; none: every client is let in
    # path prefixes that ask for a key
    protected: tuple[str, ...] = (
        "/v1", "/api", "/infill", "/completion", "/completions", "/props", "/slots", "/tokenize",
        "/detokenize", "/apply-template", "/v1beta", "/generate", "/generate_stream", "/info", "/models",
    )  # fmt: skip
    max_body_bytes: int = 4 * 2**20
    max_rows: int = 256  # completions made for one request: prompts x choices
    first_token_seconds: float = 1.0  # an editor's prompt is cut to what is read in this time; 0: it isn't
    chat_max_tokens: int = 1024  # a chat that names no limit ends here, or where the context does

    def admits(self, key: bytes) -> bool:
        """Whether one of the keys is this one, in a time that doesn't depend on how much of it is right."""
        return self.owner(key) is not None

    def owner(self, key: bytes) -> str | None:
        """Whose the key is: its SHA-256 hex digest, or None where it is none of the keys. Takes as long as
        `admits`."""
        digest = hashlib.sha256(key).hexdigest()
        # Summed, since any() would stop at the first match.
        known = sum(hmac.compare_digest(digest, each) for each in self.api_keys) > 0
        return digest if known else None
