"""One score that waits its turn in the scheduler, and is then made piece by piece."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from functools import partial
from typing import cast

from rrtf_serve.engine.protocol import AdmittingEngine, Engine, EngineError, TokenLogprob
from rrtf_serve.engine.stream import call

log = logging.getLogger(__name__)


class Score:
    """`go_on` and `tell` belong to the thread that calls the engine; `answer` to the event loop it was made
    on."""

    def __init__(self, prompt: tuple[int, ...], top: int) -> None:
        self.answer: asyncio.Future[list[TokenLogprob]] = asyncio.get_running_loop().create_future()
        self._prompt, self._top = prompt, top
        self._pieces: Iterator[list[TokenLogprob]] | None = None
        self._records: list[TokenLogprob] = []
        self._error: Exception | None = None

    @property
    def tokens(self) -> int:
        return len(self._prompt)

    def go_on(self, engine: Engine) -> bool:
        """Make one piece. False once it has ended: made, failed, or nobody waits for it any more."""
        if self.answer.done():
            return False
        try:
            if self._pieces is None:
                self._pieces = _pieces(engine, self._prompt, self._top)
            piece = next(self._pieces, None)
        except (ValueError, EngineError) as error:
            self._error = error
        except Exception as error:  # a fault in the engine must not end the thread that everyone waits on
            log.exception("scoring failed")
            self._error = engine_error(error)
        else:
            self._records += piece or []
            return piece is not None and len(self._records) < len(self._prompt) - 1
        return False

    def tell(self) -> None:
        """What `go_on` ended with, to whoever waits."""
        if self._error is not None:
            self.fail(self._error)
        else:
            call(self.answer.get_loop(), partial(_set_answer, self.answer, self._records))

    def fail(self, error: Exception) -> None:
        """From any thread."""
        call(self.answer.get_loop(), partial(_set_error, self.answer, error))


def _pieces(engine: Engine, prompt: tuple[int, ...], top: int) -> Iterator[list[TokenLogprob]]:
    if engine.capabilities.admission:
        return cast(AdmittingEngine, engine).score_pieces(prompt, top)
    return iter([engine.score(prompt, top)])


def engine_error(error: Exception) -> EngineError:
    """A fault in the engine as the error that the engine's callers know."""
    wrapped = EngineError(f"the engine failed: {error}")
    wrapped.__cause__ = error
    return wrapped


def _set_answer(answer: asyncio.Future[list[TokenLogprob]], value: list[TokenLogprob]) -> None:
    if not answer.done():
        answer.set_result(value)


def _set_error(answer: asyncio.Future[list[TokenLogprob]], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
