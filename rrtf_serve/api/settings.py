"""What the API serves and the limits it keeps."""

from __future__ import annotations

from dataclasses import dataclass, field

from rrtf_serve.api.limits import Limits
from rrtf_serve.api.origin import Origins
from rrtf_serve.engine.scheduler import Scheduler
from rrtf_serve.models.folder import Card
from rrtf_serve.models.prompts import Prompts
from rrtf_serve.models.tokens import Tokenizer


@dataclass(frozen=True)
class Known:
    """A model that clients may name, loaded or not."""

    name: str  # what /v1/models lists and every answer carries
    aliases: tuple[str, ...]  # other names that `model` may hold
    card: Card
    tokenizer: Tokenizer
    prompts: Prompts
    created: int  # Unix seconds
    context: int  # tokens, prompt and completion together


@dataclass(frozen=True, kw_only=True)
class Served(Known):
    """A model that is loaded."""

    scheduler: Scheduler
    prefill_speed: float | None = None  # tokens of prompt read in a second, measured; None: not known


@dataclass(frozen=True)
class ApiSettings:
    # SHA-256 hex digests of keys that stay as they are; a server whose keys may change has a Keyring.
    api_keys: frozenset[str] = frozenset()
    open_paths: tuple[str, ...] = ("/", "/health", "/ready", "/version", "/openapi.json", "/favicon.ico",
                                   "/manifest.json")  # fmt: skip
    page: str = "/ui"  # what lies under it has a sign-in of its own
    max_body_bytes: int = 4 * 2**20
    max_rows: int = 256  # completions made for one request: prompts x choices
    first_token_seconds: float = 1.0  # an editor's prompt is cut to what is read in this time; 0: it isn't
    chat_max_tokens: int = 1024  # a chat that names no limit ends here, or where the context does
    max_prompt_tokens: int | None = None  # of each prompt; None: what the context holds
    receive_seconds: float | None = 30.0  # without PROGRESS_BYTES of a body, see api/body; None: no limit
    request_seconds: float | None = None  # from a request's arrival to the end of its answer; None: no limit
    limits: Limits = field(default_factory=Limits)  # per client
    origins: Origins = field(default_factory=Origins)
    log_prompts: bool = False

    def is_open(self, path: str) -> bool:
        """Whether a path answers without a key. Every other asks for one: what is new is closed."""
        return path in self.open_paths or path == self.page or path.startswith(f"{self.page}/")
