"""`sensorium replay`: play a recording into Kafka in event-time order, wait until all of it is processed, account for it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiokafka import AIOKafkaProducer, ConsumerRecord
from aiokafka.admin import AIOKafkaAdminClient
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from streams.account import Account
from streams.events import CloudEvent, IncidentEvent, WindowRecord
from streams.intake import raw_record
from streams.kafka_clients import new_producer, open_admin
from streams.readout import end_offsets, follow
from streams.recording import Message, Recording
from streams.settings import Settings
from streams.topics import check_topics, describe_topics

_OUTPUTS = ("windows", "incidents", "dead-letters", "late-events")
_UNSENT_AT_ONCE = 5_000
_QUIET_S = 2.0  # nothing new for this long once everything is accounted for
_HINT_S = 15.0


@dataclass(slots=True)
class Replay:
    """One replay: what was sent, what came back."""

    settings: Settings
    bootstrap: str
    recording: Recording
    speed: float | None = None  # event seconds per second; None: as fast as it goes
    account: Account = field(default_factory=Account)
    sent: int = 0
    sent_time_ms: int | None = None
    heard_at: float = field(default_factory=time.monotonic)
    newest_window_ms: int | None = None

    async def run(self, console: Console, *, give_up_s: float = 300.0) -> dict[str, Any]:
        """Send everything, wait until every event is accounted for; returns the account as JSON.

        Raises `TimeoutError` when nothing has come back for `give_up_s`.
        """
        started = time.monotonic()
        check_topics(await describe_topics(self.settings, self.bootstrap))
        names = [self.settings.topic(name) for name in _OUTPUTS]
        start = await end_offsets(self.settings, self.bootstrap, names)
        stop = asyncio.Event()
        listener = asyncio.create_task(self._listen(start, stop))
        total = sum(self.recording.counts().values())
        try:
            with _progress(console) as progress:
                bar = progress.add_task("replay", total=total, time="", lag="")
                shown = asyncio.create_task(self._show(progress, bar))
                try:
                    await self._send()
                    self.heard_at = time.monotonic()
                    await self._settle(console, give_up_s, listener)
                finally:
                    shown.cancel()
                self._draw(progress, bar)
        finally:
            stop.set()
            await asyncio.gather(listener, return_exceptions=True)
        self.account.seconds = round(time.monotonic() - started - _QUIET_S, 3)
        return self.account.to_json(self.recording.labels(), self.recording.end_ms)

    # -- sending -------------------------------------------------------------------------------------------------

    async def _send(self) -> None:
        producer = new_producer(self.settings, self.bootstrap, linger_ms=20, max_batch_size=262_144)
        await producer.start()
        try:
            async with _bounded(producer) as send:
                async for message in self._paced():
                    partition_offset = await send(
                        self.settings.topic(message.topic), message.value, key=message.key, headers=message.headers
                    )
                    self.account.produced(partition_offset, message)
                    self.sent += message.events
                    self.sent_time_ms = message.time_ms
            await producer.flush()
        finally:
            await producer.stop()

    async def _paced(self) -> AsyncIterator[Message]:
        began, first = time.monotonic(), None
        for n, message in enumerate(self.recording.messages()):
            if self.speed is not None:
                first = message.time_ms if first is None else first
                due = began + (message.time_ms - first) / 1000 / self.speed
                while (wait := due - time.monotonic()) > 0:
                    await asyncio.sleep(min(wait, 0.5))
            elif n % 200 == 0:
                await asyncio.sleep(0)
            yield message
