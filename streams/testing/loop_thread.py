"""An event loop in a thread of its own, so that a call that is no coroutine can wait for a broker's answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")
_LIMIT_S = 60.0


class LoopThread:
    """Runs coroutines in another thread; each is given up with `TimeoutError` after a minute."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="harness-kafka", daemon=True)

    async def __aenter__(self) -> Self:
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join)
        self._loop.close()

    def wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        """Block until it is done."""
        return self._submit(work).result()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait without blocking; cancelling the wait cancels the work."""
        return await asyncio.wrap_future(self._submit(work))

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, _LIMIT_S), self._loop)
