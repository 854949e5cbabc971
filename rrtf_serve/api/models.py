"""Which model answers a request: by the name or alias that it gives, or the first where it gives none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rrtf_serve.api.errors import ApiError
from rrtf_serve.api.settings import Known, Served


class Opener(Protocol):
    """Loads and unloads."""

    @property
    def loaded(self) -> list[Served]: ...

    async def open(self, known: Known) -> Served:
        """Load it where it isn't; called for every request, so that it knows which are in use. Raises
        ApiError 503."""


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

    async def get(self, name: object) -> Served:
        """Raises ApiError 404, and 503 where it can't be loaded. What isn't a string is left to the checks of
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
        """Raises ApiError 503 where it can't be loaded."""
        if self._opener is not None:
            return await self._opener.open(known)
        assert isinstance(known, Served)
        return known
