"""`sensorium replay`: play a recording into Kafka in event-time order, and account for every event of it."""

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
from aiokafka.errors import KafkaError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from streams.events.envelope import format_ms
from streams.events.topics import INPUTS
from streams.events.types import CloudEvent, IncidentEvent, WindowRecord
from streams.kafka.admin import check_topics, describe_topics
from streams.kafka.clients import new_producer, open_admin
from streams.kafka.reader import end_offsets, follow, raw_record, read_all
from streams.settings import Settings
from streams.sources.reconciliation import Account
from streams.sources.recording import Message, Recording

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
    sent_time_ms: int | None = None
    heard_at: float = field(default_factory=time.monotonic)
    newest_window_ms: int | None = None

    async def run(self, console: Console, *, give_up_s: float = 300.0) -> dict[str, Any]:
        """Send everything, wait until every event is accounted for; returns the account as JSON.

        Raises `TimeoutError` when nothing has come back for `give_up_s`.
        """
        started = time.monotonic()
        check_topics(await describe_topics(self.settings, self.bootstrap))
        total = sum(self.recording.counts().values())
        start = await self._look_back()
        stop = asyncio.Event()
        listener = asyncio.create_task(self._listen(start, stop))
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
        self.account.seconds = round(self.heard_at - started, 3)
        return self.account.to_json(self.recording.labels())

    async def _look_back(self) -> dict[Any, int]:
        """Take note of what other replays have left; returns where the outputs end now."""
        settings, bootstrap = self.settings, self.bootstrap
        inputs = await end_offsets(settings, bootstrap, [settings.topic(name) for name in INPUTS])
        self.account.since = {(tp.topic, tp.partition): offset for tp, offset in inputs.items()}
        names = [settings.topic(name) for name in _OUTPUTS]
        ends = await end_offsets(settings, bootstrap, names)
        if any(inputs.values()):  # the last of them may still be worked on
            while True:
                await asyncio.sleep(_QUIET_S)
                before, ends = ends, await end_offsets(settings, bootstrap, names)
                if ends == before:
                    break
        if any(ends.values()):
            async for record in read_all(settings, bootstrap, [settings.topic("windows")], ends):
                self.account.window_before(msgspec.json.decode(record.value, type=WindowRecord))
        return ends

    # -- sending -------------------------------------------------------------------------------------------------

    async def _send(self) -> None:
        producer = new_producer(self.settings, self.bootstrap, linger_ms=20, max_batch_size=262_144)
        await producer.start()
        try:
            async with _bounded(producer) as send:
                async for message in self._paced():
                    topic = self.settings.topic(message.topic)
                    await send(topic, message.value, key=message.key, headers=message.headers)
                    self.account.produced += message.events
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

    # -- listening -----------------------------------------------------------------------------------------------

    async def _listen(self, start: dict[Any, int], stop: asyncio.Event) -> None:
        async for records in follow(self.settings, self.bootstrap, start, stop):
            self.heard_at = time.monotonic()
            for record in records:
                self._take(record)

    def _take(self, record: ConsumerRecord) -> None:
        name = record.topic.removeprefix(self.settings.topic_prefix)
        if name == "windows":
            window = msgspec.json.decode(record.value, type=WindowRecord)
            self.newest_window_ms = max(window.end_ms, self.newest_window_ms or window.end_ms)
            self.account.window(window)
        elif name == "incidents":
            event = msgspec.json.decode(record.value, type=CloudEvent)
            if event.type.startswith("sensorium.incident."):
                self.account.incident(msgspec.convert(event.data, IncidentEvent))
        else:
            self.account.letter(raw_record(record), late=name == "late-events")

    async def _settle(self, console: Console, give_up_s: float, listener: asyncio.Task[None]) -> None:
        """Until every event is accounted for, and nothing more has come for a moment."""
        hinted = False
        while True:
            if listener.done():
                listener.result()
            quiet_s = time.monotonic() - self.heard_at
            if self.account.missing <= 0 and quiet_s >= _QUIET_S:
                if self.account.missing:
                    more = -self.account.missing
                    why = "somebody else sends as well, or what was sent earlier had not been worked on"
                    console.print(f"{more} events more came back than were sent: {why}", soft_wrap=True)
                return
            if quiet_s > give_up_s:
                raise TimeoutError(
                    f"nothing has come back for {give_up_s:.0f} s: {self.account.missing} events are not accounted "
                    "for; look at the worker's log, and at: sensorium doctor"
                )
            if not hinted and quiet_s > _HINT_S and not self.account.heard:
                hinted = True
                group = self.settings.topic_prefix + self.settings.group
                if not await _members(self.settings, self.bootstrap, group):
                    console.print(f"no worker of group {group} is running; start one with: sensorium worker")
            await asyncio.sleep(0.1)

    # -- progress ------------------------------------------------------------------------------------------------

    async def _show(self, progress: Progress, bar: TaskID) -> None:
        while True:
            self._draw(progress, bar)
            await asyncio.sleep(0.25)

    def _draw(self, progress: Progress, bar: TaskID) -> None:
        at, behind = "", ""
        if self.sent_time_ms is not None:
            at = format_ms(self.sent_time_ms)[:19].replace("T", " ")
            if self.newest_window_ms is not None:
                behind = f"{max(0, self.sent_time_ms - self.newest_window_ms) / 1000:.0f} s behind"
        progress.update(bar, completed=self.account.accounted, time=at, lag=behind)


def _progress(console: Console) -> Progress:
    return Progress(
        BarColumn(14),
        MofNCompleteColumn(),
        TextColumn("events"),
        TextColumn("{task.fields[time]}"),
        TextColumn("{task.fields[lag]}"),
        TimeElapsedColumn(),
        console=console,
        transient=not console.is_terminal,
    )


async def _members(settings: Settings, bootstrap: str, group: str) -> int:
    admin: AIOKafkaAdminClient = await open_admin(settings, bootstrap)
    try:
        for response in await admin.describe_consumer_groups([group]):
            for described in response.groups:
                return len(described[5])
        return 0
    except KafkaError:  # no group has ever met on this cluster, or its coordinator is just away
        return 0
    finally:
        await admin.close()


@contextlib.asynccontextmanager
async def _bounded(producer: AIOKafkaProducer) -> AsyncIterator[Any]:
    """A `send` that waits when too much is unacknowledged; every delivery has succeeded when the block is left."""
    gate = asyncio.Semaphore(_UNSENT_AT_ONCE)
    failed: list[BaseException] = []

    async def send(topic: str, value: bytes, **options: Any) -> asyncio.Future[Any]:
        await gate.acquire()
        if failed:
            raise failed[0]
        sent: asyncio.Future[Any] = await producer.send(topic, value, **options)

        def done(future: asyncio.Future[Any]) -> None:
            gate.release()
            if not future.cancelled() and (error := future.exception()) is not None:
                failed.append(error)

        sent.add_done_callback(done)
        return sent

    yield send
    for _ in range(_UNSENT_AT_ONCE):
        await gate.acquire()
    if failed:
        raise failed[0]
