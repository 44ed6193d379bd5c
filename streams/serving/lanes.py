"""One queue and one task per input of a partition: a slow partition holds no other back.

Faust's agents serve all partitions of a topic in turn, and must not wait for any of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from streams.events.types import Modality

_BATCHES = 4  # waiting; beyond that fetching from the partition is paused

Key = tuple[Modality, int]


class Lanes:
    """Calls `handle` for the batches of each input in order, and of different inputs side by side."""

    def __init__(
        self,
        handle: Callable[[Modality, int, Sequence[Any]], Awaitable[None]],
        fail: Callable[[BaseException], None],
    ) -> None:
        """`fail` is called with an error of `handle`."""
        self._handle = handle
        self._fail = fail
        self._queues: dict[Key, asyncio.Queue[Sequence[Any]]] = {}
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._working = 0

    def put(self, modality: Modality, number: int, records: Sequence[Any]) -> None:
        """Take a batch; never waits."""
        key = (modality, number)
        if key not in self._queues:
            self._queues[key] = asyncio.Queue()
            self._tasks[key] = asyncio.create_task(self._work(key), name=f"{modality.value}-{number}")
        self._queues[key].put_nowait(records)

    async def _work(self, key: Key) -> None:
        queue = self._queues[key]
        try:
            while True:
                records = await queue.get()
                self._working += 1
                try:
                    await self._handle(*key, records)
                finally:
                    self._working -= 1
        except Exception as error:
            self._fail(error)

    def is_full(self, modality: Modality, number: int) -> bool:
        """Whether fetching should pause."""
        queue = self._queues.get((modality, number))
        return queue is not None and queue.qsize() >= _BATCHES

    @property
    def waiting(self) -> int:
        """Batches that wait."""
        return sum(queue.qsize() for queue in self._queues.values())

    @property
    def busy(self) -> bool:
        return self._working > 0 or self.waiting > 0

    async def close(self) -> None:
        """Drop what waits, and end what is being worked on."""
        tasks = list(self._tasks.values())
        self._queues.clear()
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
