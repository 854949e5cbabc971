"""Which model answers a request: by the name or alias that it gives, or the first where it gives none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from typing import Protocol

from rrtf_serve.api.errors import ApiError, deadline_exceeded
from rrtf_serve.api.settings import Known, Served
from rrtf_serve.api.sse import unless_gone
from rrtf_serve.api.visit import Visit, current

# What TGI's clients call its one model, whatever that is: text_generation.Client.chat() says no other name.
TGI_NAME = "tgi"


class Opener(Protocol):
    """Loads and unloads."""

    @property
    def loaded(self) -> list[Served]: ...

    @property
    def beginning(self) -> bool:
        """While the first model is being loaded: until then there is none."""

    def is_open(self, known: Known) -> bool: ...

    async def open(self, known: Known) -> Served:
        """Load it where it isn't, and keep it until `leave` was called as often. Does not wait where it is
        open. Raises ApiError 429 and 503."""

    def leave(self, known: Known) -> None:
        """Somebody for whom it was opened needs it no more."""


class Models:
    """The models that clients may name, in the order in which they are listed.

    Without `opener` all are Served. Raises ValueError on none, and on a name that two of them have.
    """

    def __init__(self, known: Sequence[Known], opener: Opener | None = None) -> None:
        if not known:
            raise ValueError("no model: a server needs at least one")
        self._by_name: dict[str, Known] = {}
        for each in known:
            if each.name in self._by_name:
                raise ValueError(f"--model: two models have the name '{each.name}'; leave one out")
            self._by_name[each.name] = each
        for each in known:  # behind all names, which win over aliases
            for alias in each.aliases:
                self._by_name.setdefault(alias, each)
        self._by_name.setdefault(TGI_NAME, known[0])
        self._known = list(known)
        self._opener = opener

    @property
    def all(self) -> list[Known]:
        return list(self._known)

    @property
    def loaded(self) -> list[Served]:
        if self._opener is not None:
            return self._opener.loaded
        return [each for each in self._known if isinstance(each, Served)]

    @property
    def beginning(self) -> bool:
        """Whether the first model is still being loaded, and every request hears so."""
        return self._opener is not None and self._opener.beginning

    async def get(self, name: object) -> Served:
        """As `open`; raises ApiError 404, too. What isn't a string is left to the checks of
        the endpoint's fields; some editors send an empty one where none is set."""
        return await self.open(self.find(name) if isinstance(name, str) and name else self._known[0])

    def find(self, name: str) -> Known:
        """By name or alias, loaded or not. Raises ApiError 404."""
        found = self._by_name.get(name)
        if found is None:
            names = ", ".join(f"'{each.name}'" for each in self._known)
            raise ApiError(
                404,
                f"The model '{name[:200]}' does not exist here. This server has {names}.",
                "model_not_found",
                path=("model",),
            )
        return found

    async def open(self, known: Known) -> Served:
        """The model, which stays loaded until the current visit ends.

        Raises ApiError 429 where too many wait for a model, 503 where it can't be loaded, 504 at the visit's
        deadline; ClientGone.
        """
        if self._opener is None:
            assert isinstance(known, Served)
            return known
        visit = current()
        opening = _open(self._opener, known, visit)
        if self._opener.is_open(known):
            return await opening
        left = None if visit.deadline is None else max(0.0, visit.deadline - time.monotonic())
        try:
            async with asyncio.timeout(left):
                return await (opening if visit.receive is None else unless_gone(visit.receive, opening))
        except TimeoutError as error:
            raise deadline_exceeded() from error


async def _open(opener: Opener, known: Known, visit: Visit) -> Served:
    served = await opener.open(known)
    # Here and not where it is waited for: who gave up waiting at this moment holds it nevertheless.
    visit.leaving.append(partial(opener.leave, known))
    return served
