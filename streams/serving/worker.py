"""One worker process: everything that `sensorium worker` and `sensorium up` run, wired together.

    async with Worker(settings, bootstrap) as worker:
        await worker.run(stop)          # until `stop` is set; raises what went wrong

Start order: store (and its lock) and model first, then the producer, then the HTTP server, the consumer last. Stop is
the other way round: reading stops, what is in flight is finished for a few seconds, offsets are committed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import faust
import structlog

from models.interface import WindowModel
from streams.drift import DriftConfig
from streams.events.audio import ClipDecoder
from streams.events.topics import TOPICS
from streams.events.types import MODALITIES, Modality
from streams.kafka.admin import check_topics, describe_topics
from streams.kafka.clients import client_options, cluster_id, new_producer, ssl_context
from streams.kafka.consumer import Batch, BatchApp
from streams.kafka.ledger import OffsetLedger
from streams.kafka.producer import KafkaOutputs
from streams.kafka.progress import InputProgress, Start
from streams.metrics import Metrics
from streams.pipeline.inference import Inference
from streams.pipeline.ingest import Intake
from streams.pipeline.publisher import Announcer
from streams.pipeline.recovery import Restorer
from streams.pipeline.state import Partition
from streams.pipeline.status import Board
from streams.serving.versions import Version, serving_version
from streams.settings import Settings
from streams.store.base import VectorStore
from streams.store.retrying import PatientStore
from streams.windows.types import Output

log = structlog.get_logger(__name__)
_TICK_S = 0.25
_QUEUE_OUTPUTS = 256
_DRAIN_S = 4.0
_STOP_S = 4.0
_RETENTION_EVERY_S = 600.0


class Worker:
    """Consumes the three inputs until told to stop. Not started yet: use `async with`."""

    def __init__(
        self,
        settings: Settings,
        bootstrap: str,
        *,
        board: Board | None = None,
        metrics: Metrics | None = None,
        version: Version | None = None,
    ) -> None:
        """`version`: the model version to run; None: the one that serves."""
        self.settings = settings
        self.bootstrap = bootstrap
        self.metrics = metrics or Metrics()
        self._given = version
        self.board = board or Board()
        self.started_at = time.monotonic()
        self._exits = contextlib.AsyncExitStack()
        self._failed: asyncio.Future[None] | None = None
        self.store_waiting = False
        self.joined = False  # a member of the group, with or without partitions

    # -- life ----------------------------------------------------------------------------------------------------

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
        await self._exits.aclose()

    async def _open(self) -> None:
        settings, exits = self.settings, self._exits
        self.version = self._given or await serving_version(settings)
        self.model: WindowModel = self.version.model
        bare = await exits.enter_async_context(self.version.store())
        self.store: VectorStore = PatientStore(bare, self._on_store_wait)
        check_topics(await describe_topics(settings, self.bootstrap))
        self.origin = await cluster_id(settings, self.bootstrap)
        self.producer = new_producer(settings, self.bootstrap)
        self.outputs = KafkaOutputs(self.producer, settings.topic, new=lambda: new_producer(settings, self.bootstrap))
        exits.push_async_callback(self._stop_producer)
        await self.outputs.start()
        clips = await exits.enter_async_context(ClipDecoder(settings.audio))
        self.ledger = OffsetLedger()
        self.queue: asyncio.Queue[tuple[Partition, Output]] = asyncio.Queue(maxsize=_QUEUE_OUTPUTS)
        window = settings.window
        restorer = Restorer(
            self.store,
            DriftConfig.from_settings(settings),
            model=self.model.version,
            size_ms=window.size_ms,
            origin=self.origin,
        )
        self.intake = Intake(
            window,
            ledger=self.ledger,
            outputs=self.outputs,
            queue=self.queue,
            restorer=restorer,
            clips=clips,
            metrics=self.metrics,
            now_ms=lambda: int(time.time() * 1000),
            topic=settings.topic,
        )
        self.inference = Inference(
            queue=self.queue,
            model=self.model,
            store=self.store,
            restorer=restorer,
            announcer=Announcer(self.outputs, self.metrics, settings.topic, watch=self.board.see),
            ledger=self.ledger,
            metrics=self.metrics,
            origin=self.origin,
            topic=settings.topic,
            batch_windows=settings.batch_windows,
            batch_wait_ms=settings.batch_wait_ms,
        )
        self.app = self._make_app()

    async def _stop_producer(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.outputs.stop(), 2.0)

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set. An error in any part ends the process: Kafka hands its partitions on."""
        self._failed = asyncio.get_running_loop().create_future()
        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(self.inference.run(), name="inference"),
            asyncio.create_task(self._tick(), name="tick"),
            asyncio.create_task(self._retain(), name="retention"),
        ]
        app_start = asyncio.create_task(self.app.start(), name="app")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        try:
            waited: set[asyncio.Future[Any]] = {*tasks, stopping, self._failed}
            done, _ = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            for ended in done:
                ended.result()
            await self._drain()
        finally:
            stopping.cancel()
            await self._stop_app(app_start)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _drain(self) -> None:
        """Reading has ended by now; finish what is in flight, as far as a few seconds allow."""
        consumer = self.app.consumer
        with contextlib.suppress(Exception):
            consumer.stop_flow()
        deadline = time.monotonic() + _DRAIN_S
        while not self.inference.idle and time.monotonic() < deadline:
            await asyncio.sleep(0.02)

    async def _stop_app(self, app_start: asyncio.Task[None]) -> None:
        """Faust swallows cancellation between one child's stop and the next: nothing of it is waited for for ever."""
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
        app.ledger = self.ledger
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
                    await self._take(modality, event.value)
                except Exception as error:
                    self._fail(error)
                    raise

        app.agent(topic, name=f"ingest-{modality.value}")(ingest)

    async def _take(self, modality: Modality, batch: Batch) -> None:
        if batch.epoch == self.app.consumer.epoch:
            await self.intake.handle(modality, batch.partition, batch.records)

    # -- assignment ----------------------------------------------------------------------------------------------

    async def assigned(self, starts: Mapping[tuple[str, int], Start]) -> None:
        """Take over the partition numbers of which all three inputs are ours."""
        names = [self.settings.topic(TOPICS[m]) for m in MODALITIES]
        resume = {tp: start.offset for tp, start in starts.items()}
        numbers = {number for _, number in resume}
        for number in sorted(numbers):
            missing = [name for name in names if (name, number) not in resume]
            if missing:
                log.warning("partition is not read: its other inputs are missing", partition=number, missing=missing)
                continue
            self.intake.assign(number, [resume[name, number] for name in names], self.app.consumer.epoch)
        self.joined = True
        if self.intake.partitions:
            log.info("assigned", partitions=len(self.intake.partitions))

    async def revoked(self) -> None:
        """Drop everything: Faust rebalances eagerly, all partitions at once."""
        for number in list(self.intake.partitions):
            self.intake.revoke(number)
        self.metrics.forget_partitions()

    # -- time ----------------------------------------------------------------------------------------------------

    def progress(self) -> dict[tuple[Modality, int], InputProgress]:
        """Where the consumer stands, by modality and partition number."""
        modality_of = {self.settings.topic(TOPICS[m]): m for m in MODALITIES}
        found = self.app.consumer.progress()
        return {(modality_of[topic], n): p for (topic, n), p in found.items() if topic in modality_of}

    async def _tick(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(_TICK_S)
            now = time.monotonic()
            elapsed, last = now - last, now
            self.metrics.loop_lag.set(max(0.0, elapsed - _TICK_S))
            self.metrics.queue.set(self.queue.qsize())
            if self.app.crashed:
                raise RuntimeError(f"the Kafka consumer failed: {self.app.crash_reason!r}")
            progress = self.progress()
            # after a stall (suspend, a long garbage collection) inputs may look quiet that were only not read
            elapsed_ms = min(int(elapsed * 1000), 4 * int(_TICK_S * 1000))
            await self.intake.tick(elapsed_ms, progress)
            self._pause()
            self._measure(progress)

    def _pause(self) -> None:
        ahead = self.intake.ahead()
        names = {key: (self.settings.topic(TOPICS[key[0]]), key[1]) for key in ahead}
        self.app.pause([names[k] for k, far in ahead.items() if far], [names[k] for k, far in ahead.items() if not far])
        for key, far in ahead.items():
            self.metrics.paused.labels(names[key][0], str(key[1])).set(int(far))

    def _measure(self, progress: Mapping[tuple[Modality, int], InputProgress]) -> None:
        for (modality, number), at in progress.items():
            name, partition = self.settings.topic(TOPICS[modality]), str(number)
            if at.highwater is not None:
                self.metrics.lag.labels(name, partition).set(max(0, at.highwater - at.position))
            self.metrics.pending.labels(name, partition).set(self.ledger.pending((name, number)))

    async def _retain(self) -> None:
        days = self.settings.retention_days
        while days is not None:
            deleted = await self.store.delete_before(int((time.time() - days * 86_400) * 1000))
            if deleted:
                log.info("retention", windows_deleted=deleted)
            await asyncio.sleep(_RETENTION_EVERY_S)
        await asyncio.Event().wait()

    def _on_store_wait(self, waiting: bool) -> None:
        self.store_waiting = waiting
        self.metrics.store_waiting.set(int(waiting))


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
