"""Outputs of the window operator, gathered into batches of windows that are embedded together."""

from __future__ import annotations

import asyncio

from streams.pipeline.state import PartitionState
from streams.windows.types import Fired, Output

Item = tuple[PartitionState, Output]


class Batcher:
    """Takes from the queue between windowing and scoring; always in order."""

    def __init__(self, queue: asyncio.Queue[Item], *, batch_windows: int, batch_wait_ms: int) -> None:
        """`batch_windows`: most windows in a batch; `batch_wait_ms`: longest wait to fill one."""
        self._queue = queue
        self._batch_windows = batch_windows
        self._batch_wait_s = batch_wait_ms / 1000
        self.taken = 0  # outputs taken from the queue

    async def gather(self) -> list[Item]:
        """Up to `batch_windows` windows, or what came within the wait after the first output."""
        items = [await self._queue.get()]
        self.taken += 1
        deadline = asyncio.get_running_loop().time() + self._batch_wait_s
        fired = int(isinstance(items[0][1], Fired))
        while fired < self._batch_windows:
            try:
                item = self._queue.get_nowait()
            except asyncio.QueueEmpty:
                left = deadline - asyncio.get_running_loop().time()
                if left <= 0:
                    break
                try:
                    # not wait_for: it forgets that it was cancelled where an item comes in the same moment (until 3.12)
                    async with asyncio.timeout(left):
                        item = await self._queue.get()
                except TimeoutError:
                    break
            items.append(item)
            self.taken += 1
            fired += isinstance(item[1], Fired)
        return items
