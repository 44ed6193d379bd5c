"""`sensorium replay`: sends a recording to Kafka in event-time order and accounts for every event of it.

Event time is in the messages; the record timestamp is the time of sending, which the client sets (CreateTime).
"""

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

from streams.errors import DependencyError
from streams.events.envelope import format_ms
from streams.events.topics import INPUTS
from streams.events.types import CloudEvent, IncidentEvent, WindowRecord
from streams.kafka.admin import check_topics, describe_topics
from streams.kafka.clients import new_producer, open_admin
from streams.kafka.reader import end_offsets, follow, raw_record, read_all
from streams.settings import Settings
from streams.sources.reconciliation import ReplayReport
from streams.sources.recording import Message, Recording

_OUTPUTS = ("windows", "incidents", "dead-letters", "late-events")
_MAX_UNACKNOWLEDGED = 5_000
_QUIET_S = 2.0  # without new output once everything is accounted for: the replay is complete
_HINT_S = 15.0  # without any output: look whether a worker runs


class ReplayStalled(DependencyError):
    """No worker has published anything for too long."""


@dataclass(slots=True)
class Replay:
    """One replay: what was sent, and what came back of it."""

    settings: Settings
    bootstrap: str
    recording: Recording
    speed: float | None = None  # event seconds per second; None: as fast as possible
    account: ReplayReport = field(default_factory=ReplayReport)
    sent_time_ms: int | None = None  # event time of the last message
    last_output_at: float = field(default_factory=time.monotonic)  # monotonic seconds
    newest_window_ms: int | None = None  # end of the newest window

    async def run(self, console: Console, *, give_up_s: float = 300.0) -> dict[str, Any]:
        """Send everything, wait until every event is accounted for; returns the report as JSON.

        Raises `ReplayStalled` when nothing has come back for `give_up_s` seconds, `KafkaUnreachable`, `TopicsError` and
        `RecordingError`.
        """
        started = time.monotonic()
        check_topics(await describe_topics(self.settings, self.bootstrap))
        total = sum(self.recording.counts().values())
        start = await self._take_baseline()
        stop = asyncio.Event()
        reader = asyncio.create_task(self._read_outputs(start, stop))
        try:
            with _progress(console) as progress:
                bar = progress.add_task("replay", total=total, time="", lag="")
                shown = asyncio.create_task(self._show(progress, bar))
                try:
                    await self._send()
                    self.last_output_at = time.monotonic()
                    await self._wait_for_results(console, give_up_s, reader)
                finally:
                    shown.cancel()
                self._draw(progress, bar)
        finally:
            stop.set()
            await asyncio.gather(reader, return_exceptions=True)
        self.account.seconds = round(self.last_output_at - started, 3)
        return self.account.to_json(self.recording.labels())

    async def _take_baseline(self) -> dict[Any, int]:
        """Note what is in the topics already; returns where the outputs end now."""
        settings, bootstrap = self.settings, self.bootstrap
        inputs = await end_offsets(settings, bootstrap, [settings.topic(name) for name in INPUTS])
        self.account.since = {(tp.topic, tp.partition): offset for tp, offset in inputs.items()}
        names = [settings.topic(name) for name in _OUTPUTS]
        ends = await end_offsets(settings, bootstrap, names)
        if any(inputs.values()):  # the last of them may still be in work
            while True:
                await asyncio.sleep(_QUIET_S)
                before, ends = ends, await end_offsets(settings, bootstrap, names)
                if ends == before:
                    break
        if any(ends.values()):
            async for record in read_all(settings, bootstrap, [settings.topic("windows")], ends):
                self.account.add_baseline(msgspec.json.decode(record.value, type=WindowRecord))
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

    # -- outputs -------------------------------------------------------------------------------------------------

    async def _read_outputs(self, start: dict[Any, int], stop: asyncio.Event) -> None:
        async for records in follow(self.settings, self.bootstrap, start, stop):
            self.last_output_at = time.monotonic()
            for record in records:
                self._count(record)

    def _count(self, record: ConsumerRecord) -> None:
        name = record.topic.removeprefix(self.settings.topic_prefix)
        if name == "windows":
            window = msgspec.json.decode(record.value, type=WindowRecord)
            self.newest_window_ms = max(window.end_ms, self.newest_window_ms or window.end_ms)
            self.account.add_window(window)
        elif name == "incidents":
            event = msgspec.json.decode(record.value, type=CloudEvent)
            if event.type.startswith("sensorium.incident."):
                self.account.add_incident_step(msgspec.convert(event.data, IncidentEvent))
        else:
            self.account.add_dead_letter(raw_record(record), late=name == "late-events")

    async def _wait_for_results(self, console: Console, give_up_s: float, reader: asyncio.Task[None]) -> None:
        """Until every event is accounted for, and nothing more has come for `_QUIET_S`."""
        hinted = False
        while True:
            if reader.done():
                reader.result()
            quiet_s = time.monotonic() - self.last_output_at
            if self.account.missing <= 0 and quiet_s >= _QUIET_S:
                if self.account.missing:
                    extra = -self.account.missing
                    why = "another producer is sending, or events sent earlier were still in work"
                    console.print(f"{extra} more events came back than were sent: {why}", soft_wrap=True)
                return
            if quiet_s > give_up_s:
                raise ReplayStalled(
                    f"nothing has come back for {give_up_s:.0f} s: {self.account.missing} events are not accounted "
                    "for; see the worker's log, and: sensorium doctor"
                )
            if not hinted and quiet_s > _HINT_S and not self.account.has_results:
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
    except KafkaError:  # the cluster has no group yet, or its coordinator is away
        return 0
    finally:
        await admin.close()


@contextlib.asynccontextmanager
async def _bounded(producer: AIOKafkaProducer) -> AsyncIterator[Any]:
    """A `send` that waits while too much is unacknowledged; at the end of the block every record is acknowledged.

    Raises the error of the first delivery that failed.
    """
    gate = asyncio.Semaphore(_MAX_UNACKNOWLEDGED)
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
    for _ in range(_MAX_UNACKNOWLEDGED):
        await gate.acquire()
    if failed:
        raise failed[0]
