"""How much one client may ask for: requests and tokens per minute, requests at once.

Each is a bucket that holds a minute's worth and fills evenly, so that a client may spend it at once and then
waits for what comes back. Refusals and the headers x-ratelimit-* are as OpenAI's:
https://platform.openai.com/docs/guides/rate-limits.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from rrtf_serve.api.errors import ApiError

MAX_ACCOUNTS = 10_000  # clients without a key are told apart by address, of which there are many
LOOKED_AT = 16  # at most, for a new client: all others wait meanwhile


@dataclass(frozen=True)
class Limits:
    """Per client; None: no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None  # of prompt and completion together
    concurrent_requests: int | None = None

    @property
    def any(self) -> bool:
        return self != Limits()


class Bucket:
    """Holds `per_minute`, and regains it in a minute. Times are seconds of time.monotonic()."""

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at = now

    def level(self, now: float) -> float:
        self._level = min(self.per_minute, self._level + (now - self._at) * self.per_minute / 60)
        self._at = now
        return self._level

    def take(self, amount: float, now: float) -> float:
        """Seconds to wait before as much can be taken; 0: it was taken. What is more than the bucket ever
        holds is given out of a full one, which then takes longer to fill again."""
        short = min(amount, self.per_minute) - self.level(now)
        if short > 1e-9:  # far less than a request or a token: what rounding leaves
            return short * 60 / self.per_minute
        self._level -= amount
        return 0.0

    def give(self, amount: float, now: float) -> None:
        self._level = min(self.per_minute, self.level(now) + amount)

    def seconds_to_full(self, now: float) -> float:
        return (self.per_minute - self.level(now)) * 60 / self.per_minute


class Account:
    """What one client has used."""

    def __init__(self, limits: Limits, now: float) -> None:
        self._limits = limits
        self._running = 0
        self._requests = _bucket(limits.requests_per_minute, now)
        self._tokens = _bucket(limits.tokens_per_minute, now)

    @property
    def running(self) -> int:
        """Requests that have not ended."""
        return self._running

    def enter(self) -> None:
        """A request begins. Raises ApiError 429."""
        most = self._limits.concurrent_requests
        if most is not None and self._running >= most:
            raise _refusal(
                "requests", f"Concurrency limit reached: at most {most} of your requests at once.", 1.0
            )
        if self._requests is not None and (wait := self._requests.take(1, time.monotonic())):
            limit = self._requests.per_minute
            raise _refusal("requests", f"Rate limit reached for requests per minute: {limit}.", wait)
        self._running += 1

    def leave(self) -> None:
        self._running -= 1

    def reserve(self, tokens: int) -> None:
        """Before they are used. Raises ApiError 429."""
        if self._tokens is not None and (wait := self._tokens.take(tokens, time.monotonic())):
            limit = self._tokens.per_minute
            message = f"Rate limit reached for tokens per minute: {limit}; this request may take {tokens}."
            raise _refusal("tokens", message, wait)

    def give_back(self, tokens: int) -> None:
        """Reserved and not used."""
        if self._tokens is not None:
            self._tokens.give(tokens, time.monotonic())

    def headers(self) -> Mapping[str, str]:
        now = time.monotonic()
        found: dict[str, str] = {}
        for what, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                found[f"x-ratelimit-limit-{what}"] = str(bucket.per_minute)
                found[f"x-ratelimit-remaining-{what}"] = str(max(0, math.floor(bucket.level(now) + 1e-9)))
                found[f"x-ratelimit-reset-{what}"] = _duration(bucket.seconds_to_full(now))
        return found


class Accounts:
    """One for each client, by key name or address. Of more than MAX_ACCOUNTS the one used longest ago is
    forgotten, and with it what its client has used up; never one with a request under way."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._accounts: OrderedDict[str, Account] = OrderedDict()  # the one used last stands last

    def of(self, client: str) -> Account:
        account = self._accounts.get(client)
        if account is None:
            self._make_room()
            account = self._accounts[client] = Account(self._limits, time.monotonic())
        self._accounts.move_to_end(client)
        return account

    def _make_room(self) -> None:
        looked = 0
        while len(self._accounts) >= MAX_ACCOUNTS and looked < LOOKED_AT:
            oldest, account = next(iter(self._accounts.items()))
            if account.running:
                self._accounts.move_to_end(oldest)
                looked += 1
            else:
                del self._accounts[oldest]


def _bucket(per_minute: int | None, now: float) -> Bucket | None:
    return None if per_minute is None else Bucket(per_minute, now)


def _refusal(what: str, message: str, wait: float) -> ApiError:
    """type is OpenAI's: requests or tokens."""
    headers = {
        "retry-after": str(max(1, math.ceil(wait))),
        "retry-after-ms": str(max(1, math.ceil(wait * 1000))),
    }
    text = f"{message} Please try again in {_duration(wait)}."
    return ApiError(429, text, "rate_limit_exceeded", type=what, headers=headers)


def _duration(seconds: float) -> str:
    """As OpenAI writes it: 20ms, 1.5s, 6m0s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    tenths = math.ceil(seconds * 10)
    if tenths < 600:
        return f"{tenths / 10:g}s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s"
