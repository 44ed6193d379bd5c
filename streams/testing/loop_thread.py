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
        self._running: tuple[asyncio.AbstractEventLoop, threading.Thread] | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="harness-kafka", daemon=True)
        thread.start()
        self._running = loop, thread
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._running is not None
        (loop, thread), self._running = self._running, None
        loop.call_soon_threadsafe(loop.stop)
        await asyncio.to_thread(thread.join)
        loop.close()

    def wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        """Block until it is done."""
        return self._submit(work).result()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait without blocking; cancelling the wait cancels the work."""
        return await asyncio.wrap_future(self._submit(work))

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        if self._running is None:
            work.close()
            raise RuntimeError("the harness is not connected to Kafka: use it inside of async with Harness(...)")
        return asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, _LIMIT_S), self._running[0])
