"""What is opened in several steps, and closed in reverse, also where a step fails."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Opened(ABC):
    """An asynchronous context manager: `async with` runs `_open`, and closes at its end what that put on `_exits`.

    Where `_open` raises, what it had put there is closed before the error goes on.
    """

    def __init__(self) -> None:
        self._exits = contextlib.AsyncExitStack()

    @abstractmethod
    async def _open(self) -> None:
        """Open the parts in order, each entered into (or its closing pushed onto) `_exits`."""

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except BaseException:
            await self._exits.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exits.__aexit__(kind, error, trace)
