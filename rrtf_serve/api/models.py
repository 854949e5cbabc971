"""Which model answers a request: by the name or alias that it gives, or the first where it gives none."""

from __future__ import annotations

from collections.abc import Sequence

from rrtf_serve.api.errors import ApiError
from rrtf_serve.api.settings import Served


class Models:
    """The served models, in the order in which they are listed."""

    def __init__(self, served: Sequence[Served]) -> None:
        if not served:
            raise ValueError("no model: a server needs at least one")
        self._served = list(served)

    @property
    def all(self) -> list[Served]:
        return list(self._served)

    async def get(self, name: object) -> Served:
        """Raises ApiError 404. What isn't a string is left to the checks of the endpoint's fields; some
        editors send an empty one where none is set."""
        if not isinstance(name, str) or not name:
            return self._served[0]
        for served in self._served:
            if name == served.name or name in served.aliases:
                return served
        known = ", ".join(f"'{served.name}'" for served in self._served)
        raise ApiError(
            404,
            f"The model '{name[:200]}' does not exist here. This server has {known}.",
            "model_not_found",
            path=("model",),
        )
