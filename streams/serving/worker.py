"""One worker process: a pipeline between Kafka and the store, as `sensorium worker` and `sensorium up` run it.

    async with Worker(settings, bootstrap) as worker:
        await worker.run(stop)          # until `stop` is set; raises what went wrong

Start order: store (and its lock) and model first, then the producer, then the HTTP server, the consumer last. Stop is
the other way round: reading stops, what is in flight is finished for a few seconds, offsets are committed. Where the
input topics change (made anew, other partitions, another cluster), consumption starts afresh in the same process.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import faust
import structlog

from models.interface import WindowModel
from streams.events.audio import ClipDecoder
from streams.events.topics import TOPICS
from streams.events.types import MODALITIES, Modality
from streams.kafka.admin import check_topics, describe_topics, topic_ids
from streams.kafka.clients import client_options, new_producer, ssl_context
from streams.kafka.consumer import Batch, BatchApp
from streams.kafka.input_watch import InputWatch
from streams.kafka.producer import KafkaOutputs
from streams.kafka.progress import InputProgress, Start
from streams.lifecycle import Opened
from streams.metrics import Metrics
from streams.pipeline.pipeline import Pipeline
from streams.pipeline.publisher import OutputPublisher
from streams.pipeline.recovery import Origin
from streams.pipeline.status import StatusTable
from streams.serving.lanes import Lanes
from streams.serving.versions import Version, serving_version
from streams.settings import Settings
from streams.store.base import VectorStore
from streams.store.retrying import RetryingStore

log = structlog.get_logger(__name__)
_TICK_S = 0.25
_DRAIN_S = 4.0
_STOP_S = 4.0
_LOOK_S = 1.0
_RETENTION_EVERY_S = 600.0


@dataclass(frozen=True, slots=True)
class WorkerSnapshot:
    """What health needs to know of a worker at one moment."""

    progress: Mapping[tuple[Modality, int], InputProgress]
    partitions: Sequence[int]
    in_hand: int  # read and not worked off: more than 0 while anything is
    finished: int  # outputs worked off since the start
    read: Sequence[int]  # one past the last record taken in, of every input of every partition
    joined: bool  # a member of the consumer group, with or without partitions
    waiting_for: Sequence[str]  # parts that are away: the store, Kafka
    input_problem: str | None  # why the inputs cannot be read as they should


class Worker(Opened):
    """Consumes the three inputs until stopped. Not started yet: use `async with`."""

    def __init__(
        self,
        settings: Settings,
        bootstrap: str,
        *,
        status: StatusTable | None = None,
        metrics: Metrics | None = None,
        version: Version | None = None,
    ) -> None:
        """`version`: the model version to run; None: the one that serves."""
        super().__init__()
        self.settings = settings
        self.bootstrap = bootstrap
        self.metrics = metrics or Metrics()
        self._given = version
        self.status = status or StatusTable()
        self.started_at = time.monotonic()
        self._failed: asyncio.Future[None] | None = None
        self._changed = asyncio.Event()  # the inputs: consumption must start afresh
        self.topic_partitions = 0  # of each input
        self.numbers: frozenset[int] = frozenset()  # partitions that were assigned last, also when it has ended
        self._joined = False

    # -- life ----------------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        settings, exits = self.settings, self._exits
        self.version = self._given or await serving_version(settings)
        self.model: WindowModel = self.version.model
        bare = await exits.enter_async_context(self.version.store())
        self.query_store: VectorStore = bare  # queries answer 503 at once while it is away; the pipeline retries
        self.store = RetryingStore(bare, self._on_store_wait)
        check_topics(await describe_topics(settings, self.bootstrap))
        producer = new_producer(settings, self.bootstrap)
        self.outputs = KafkaOutputs(producer, settings.topic, new=lambda: new_producer(settings, self.bootstrap))
        exits.push_async_callback(self._stop_producer)
        await self.outputs.start()
        self._clips = await exits.enter_async_context(ClipDecoder(settings.audio))
        self._watch = InputWatch(
            settings,
            self.bootstrap,
            group=self.version.group,
            owned=lambda: len(self.app.consumer.assignment()) if self._joined else None,
        )
        await self._prepare()

    async def _prepare(self) -> None:
        """A pipeline and a consumer for the input topics as they are now."""
        settings = self.settings
        topics = await describe_topics(settings, self.bootstrap)
        check_topics(topics)
        states = {state.spec.name: state for state in topics}
        ids = await topic_ids(settings, self.bootstrap)
        self.topic_partitions = states[TOPICS[Modality.SENSOR]].partitions
        self.pipeline = Pipeline(
            settings,
            model=self.model,
            store=self.store,
            outputs=self.outputs,
            publisher=OutputPublisher(self.outputs, self.metrics, settings.topic, watch=self.status.update),
            clips=self._clips,
            origin=Origin({m: ids[settings.topic(name)] for m, name in TOPICS.items()}),
            progress=self._progress_of,
            metrics=self.metrics,
            partitions=self.topic_partitions,
        )
        self._lanes = Lanes(self.pipeline.ingest.handle, self._fail)
        self._joined = False
        self.app = self._make_app()

    async def _stop_producer(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.outputs.stop(), 2.0)

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set. An error in any part ends the process: Kafka hands its partitions on."""
        background = [
            asyncio.create_task(self._watch.watch(self._on_inputs_changed), name="inputs"),
            asyncio.create_task(self._retain(), name="retention"),
        ]
        try:
            while await self._consume(stop, background):
                log.info("reading starts afresh")
        finally:
            await _cancel(background)

    async def _consume(self, stop: asyncio.Event, background: Sequence[asyncio.Task[None]]) -> bool:
        """Read and work until `stop` is set or the inputs change; returns whether to start afresh."""
        self._failed = asyncio.get_running_loop().create_future()
        self._changed.clear()
        tasks = [
            asyncio.create_task(self.pipeline.run(), name="pipeline"),
            asyncio.create_task(self._tick(), name="tick"),
        ]
        app_start = asyncio.create_task(self.app.start(), name="app")
        ends = [asyncio.create_task(event.wait(), name="end") for event in (stop, self._changed)]
        try:
            waited: set[asyncio.Future[Any]] = {*tasks, *background, *ends, self._failed}
            done, _ = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if not stop.is_set() and not self._changed.is_set() and await self._inputs_are_broken():
                done = set()
            for ended in done:
                ended.result()
            await self._drain()
        finally:
            await _cancel(ends)
            await self._stop_app(app_start)
            await self._lanes.close()
            await _cancel(tasks)
            for number in list(self.pipeline.ingest.partitions):
                self.pipeline.ingest.revoke(number)
            if self._failed.done() and not self._failed.cancelled():
                self._failed.exception()  # it was looked at
        if stop.is_set():
            return False
        return await self._until_whole(stop)

    async def _inputs_are_broken(self) -> bool:
        """Whether an error comes from input topics that are missing or not co-partitioned: waiting mends that."""
        await self._watch.look()
        return self._watch.problem is not None

    async def _until_whole(self, stop: asyncio.Event) -> bool:
        """Wait until the inputs can be read again; False: stopped before."""
        while not stop.is_set():
            await self._watch.look()
            if self._watch.problem is None:
                await self._prepare()
                return True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await stop.wait()
        return False

    async def _on_inputs_changed(self, what: str) -> None:
        self._changed.set()

    async def _drain(self) -> None:
        """Reading has ended by now; finish what is in flight, as far as a few seconds allow."""
        consumer = self.app.consumer
        with contextlib.suppress(Exception):
            consumer.stop_flow()
        deadline = time.monotonic() + _DRAIN_S
        while (self._lanes.busy or not self.pipeline.idle) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)

    async def _stop_app(self, app_start: asyncio.Task[None]) -> None:
        """Faust swallows cancellation between one child's stop and the next: every wait for it has an end."""
        stopping = asyncio.create_task(self.app.stop(), name="app-stop")
        await asyncio.wait({stopping}, timeout=_STOP_S)
        left = {task for task in (stopping, app_start) if not task.done()}
        for _ in range(20):
            for task in left:
                task.cancel()
            if left:
                _, left = await asyncio.wait(left, timeout=0.1)
        for task in (stopping, app_start):
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                log.debug("faust stopped badly", error=repr(error))  # it changes nothing for us

    def _fail(self, error: BaseException) -> None:
        if self._failed is not None and not self._failed.done():
            self._failed.set_exception(error)

    # -- Faust ---------------------------------------------------------------------------------------------------

    def _make_app(self) -> BatchApp:
        settings = self.settings
        app = BatchApp(
            self.version.group,
            broker=[f"kafka://{server}" for server in self.bootstrap.split(",")],
            broker_credentials=_faust_credentials(settings),
            autodiscover=False,
            key_serializer="raw",
            value_serializer="raw",
            stream_wait_empty=False,
            stream_buffer_maxsize=8,  # messages, and a message is up to 500 records
            stream_recovery_delay=0.0,
            broker_max_poll_records=500,
            # aiokafka leaves the group when it has not fetched for this long, and we do not fetch while the store is
            # away or while all partitions are other workers'; `health` tells a worker that is stuck
            broker_max_poll_interval=7 * 86_400.0,
            broker_commit_interval=1.0,
            broker_session_timeout=settings.session_timeout_s,
            broker_heartbeat_interval=min(3.0, settings.session_timeout_s / 5),
            broker_request_timeout=max(40.0, settings.session_timeout_s + 5),
            consumer_auto_offset_reset="earliest",
            table_standby_replicas=1,  # selects Faust's own assignor, which co-partitions the inputs
            topic_allow_declare=False,
            topic_disable_leader=True,
            topic_partitions=settings.partitions,
            worker_redirect_stdouts=False,
            web_enabled=False,
        )
        app.ledger = self.pipeline.ledger
        app.assignee = self
        app.metrics = self.metrics
        app.fail = self._fail
        for modality in MODALITIES:
            self._add_agent(app, modality)
        app.finalize()
        return app

    def _add_agent(self, app: BatchApp, modality: Modality) -> None:
        topic = app.topic(self.settings.topic(TOPICS[modality]), key_type=bytes, value_type=bytes)

        async def ingest(stream: faust.StreamT[Any]) -> None:
            async for event in stream.noack().events():
                try:
                    self._take(modality, event.value)
                except Exception as error:
                    self._fail(error)
                    raise

        app.agent(topic, name=f"ingest-{modality.value}")(ingest)

    def _take(self, modality: Modality, batch: Batch) -> None:
        if batch.epoch == self.app.consumer.epoch:
            self._lanes.put(modality, batch.partition, batch.records)

    # -- assignment ----------------------------------------------------------------------------------------------

    async def assigned(self, starts: Mapping[tuple[str, int], Start]) -> None:
        """Take over the partition numbers of which all three inputs are ours."""
        names = [self.settings.topic(TOPICS[m]) for m in MODALITIES]
        numbers = sorted({number for _, number in starts})
        taken = 0
        for number in numbers:
            missing = [name for name in names if (name, number) not in starts]
            if missing:
                # topics are being made or given partitions: the watch over the inputs says so, and starts us afresh
                log.warning("partition not assigned with the others", partition=number, missing=", ".join(missing))
                continue
            self.pipeline.ingest.assign(number, [starts[name, number] for name in names], self.app.consumer.epoch)
            taken += 1
        self._joined = True
        self.numbers = frozenset(self.pipeline.ingest.partitions)
        if taken:
            log.info("assigned", partitions=taken)

    async def revoked(self) -> None:
        """Drop everything: Faust rebalances eagerly, all partitions at once."""
        await self._lanes.close()
        for number in list(self.pipeline.ingest.partitions):
            self.pipeline.ingest.revoke(number)
        self.metrics.forget_partitions()

    # -- time ----------------------------------------------------------------------------------------------------

    def progress(self) -> dict[tuple[Modality, int], InputProgress]:
        """Where the consumer stands, by modality and partition number."""
        modality_of = {self.settings.topic(TOPICS[m]): m for m in MODALITIES}
        found = self.app.consumer.progress()
        return {(modality_of[topic], n): p for (topic, n), p in found.items() if topic in modality_of}

    def _progress_of(self, modality: Modality, number: int) -> InputProgress | None:
        progress: InputProgress | None = self.app.consumer.progress_of(self.settings.topic(TOPICS[modality]), number)
        return progress

    async def _tick(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(_TICK_S)
            now = time.monotonic()
            elapsed, last = now - last, now
            self.metrics.loop_lag.set(max(0.0, elapsed - _TICK_S))
            self.metrics.queue.set(self.pipeline.queue.qsize())
            if self.app.crashed:
                raise RuntimeError(f"the Kafka consumer failed: {self.app.crash_reason!r}")
            # after a stall (suspend, a long garbage collection) inputs may look quiet that were only not read
            elapsed_ms = min(int(elapsed * 1000), 4 * int(_TICK_S * 1000))
            await self.pipeline.ingest.tick(elapsed_ms)
            self._pause()
            self._measure(self.progress())

    def _pause(self) -> None:
        full = self.pipeline.ingest.full()
        for key in full:
            full[key] = full[key] or self._lanes.is_full(*key)
        names = {key: (self.settings.topic(TOPICS[key[0]]), key[1]) for key in full}
        self.app.pause(
            [names[k] for k, stop in full.items() if stop], [names[k] for k, stop in full.items() if not stop]
        )
        for key, stopped in full.items():
            self.metrics.paused.labels(names[key][0], str(key[1])).set(int(stopped))

    def _measure(self, progress: Mapping[tuple[Modality, int], InputProgress]) -> None:
        for (modality, number), at in progress.items():
            name, partition = self.settings.topic(TOPICS[modality]), str(number)
            if at.highwater is not None:
                self.metrics.lag.labels(name, partition).set(max(0, at.highwater - at.position))
            self.metrics.pending.labels(name, partition).set(self.pipeline.ledger.pending((name, number)))

    async def _retain(self) -> None:
        days = self.settings.retention_days
        while days is not None:
            deleted = await self.store.delete_before(int((time.time() - days * 86_400) * 1000))
            if deleted:
                log.info("retention", windows_deleted=deleted)
            await asyncio.sleep(_RETENTION_EVERY_S)
        await asyncio.Event().wait()

    def _on_store_wait(self, waiting: bool) -> None:
        self.metrics.store_waiting.set(int(waiting))

    def snapshot(self) -> WorkerSnapshot:
        """Where the worker stands now."""
        pipeline = self.pipeline
        partitions = pipeline.ingest.partitions
        waiting = []
        if self.store.waiting_for is not None:
            waiting.append(f"the store ({self.store.waiting_for})")
        if self.outputs.waiting_since is not None:
            waiting.append("Kafka")
        return WorkerSnapshot(
            progress=self.progress(),
            partitions=sorted(partitions),
            in_hand=pipeline.in_hand + self._lanes.waiting,
            finished=pipeline.finished,
            read=[offset for number in sorted(partitions) for offset in partitions[number].read],
            joined=self._joined,
            waiting_for=waiting,
            input_problem=self._watch.problem,
        )


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _faust_credentials(settings: Settings) -> Any:
    options = client_options(settings, "unused")
    if options["security_protocol"] == "SSL":
        return faust.SSLCredentials(context=ssl_context(settings))
    if options["security_protocol"].startswith("SASL"):
        return faust.SASLCredentials(
            username=options["sasl_plain_username"],
            password=options["sasl_plain_password"],
            mechanism=options["sasl_mechanism"],
            ssl_context=options["ssl_context"],
        )
    return None
