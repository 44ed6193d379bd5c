"""Fired windows -> batches -> vectors -> verdicts -> store -> output topics -> ledger, in this order and no other.

Two tasks, joined by a short queue so that the next batch is embedded while the last one is stored. The commit order
is the promise: a record is released only when every window that holds it is final, stored and announced.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import structlog

from models.interface import WindowInput, WindowModel, WindowVectors
from streams.drift.types import Observation
from streams.events.topics import TOPICS
from streams.events.types import MODALITIES
from streams.kafka.ledger import OffsetLedger
from streams.metrics import Metrics
from streams.pipeline.payload import bookkeeping, channel_stats, mask_of, payload_of, window_input
from streams.pipeline.publisher import Announcer
from streams.pipeline.recovery import Restorer
from streams.pipeline.state import Known, Partition, StreamMemory
from streams.store.base import Point, VectorStore
from streams.windows.types import PaneFinal, Fired, Output, StreamIdle

log = structlog.get_logger(__name__)
_DETECTORS_KEPT = 1024  # in memory, 50 to 120 KB each; the others are read from the store when their stream goes on
Item = tuple[Partition, Output]


@dataclass(slots=True, eq=False)
class Work:
    """One fired window on its way through: what is known of it, and what it becomes."""

    partition: Partition
    window: Fired
    memory: StreamMemory
    id: str
    content_hash: str
    known: Known | None
    fate: str = "new"  # new | revised | recounted | known
    vectors: WindowVectors | None = None
    payload: dict[str, Any] = field(default_factory=dict)
    bank_before: frozenset[int] = frozenset()
    bank_after: frozenset[int] = frozenset()


@dataclass(slots=True)
class Batch:
    items: list[Item]
    works: dict[int, Work]  # by position in items


class Inference:
    """Owns the executor; `store` and `outputs` wait while they are away, and nothing is dropped."""

    def __init__(
        self,
        *,
        queue: asyncio.Queue[Item],
        model: WindowModel,
        store: VectorStore,
        restorer: Restorer,
        announcer: Announcer,
        ledger: OffsetLedger,
        metrics: Metrics,
        origin: str,
        topic: Callable[[str], str] = str,
        batch_windows: int = 32,
        batch_wait_ms: int = 20,
    ) -> None:
        self._queue = queue
        self._model = model
        self._store = store
        self._restorer = restorer
        self._announcer = announcer
        self._ledger = ledger
        self._metrics = metrics
        self._origin = origin
        self._topic = topic
        self._batch_windows = batch_windows
        self._batch_wait_s = batch_wait_ms / 1000
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="inference")
        self._embedded: asyncio.Queue[Batch] = asyncio.Queue(maxsize=2)
        self._warm: OrderedDict[int, StreamMemory] = OrderedDict()  # those with a detector, longest unused first
        self._taken = 0  # outputs taken from the queue
        self._finished = 0

    async def run(self) -> None:
        """Work until cancelled; an exception in here must stop the process."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._embed_batches(), name="embed")
                tasks.create_task(self._finish_batches(), name="finish")
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def finished(self) -> int:
        """Outputs worked off since the start; health tells stuck from quiet by it."""
        return self._finished

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is being worked on."""
        return self._queue.empty() and self._taken == self._finished

    # -- batches -------------------------------------------------------------------------------------------------

    async def _embed_batches(self) -> None:
        while True:
            items = await self._gather()
            batch = await self._embed(items)
            await self._embedded.put(batch)

    async def _gather(self) -> list[Item]:
        """Up to `batch_windows` windows, or what came within `batch_wait` of the first; always in order."""
        items = [await self._queue.get()]
        self._taken += 1
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
            self._taken += 1
            fired += isinstance(item[1], Fired)
        return items

    async def _embed(self, items: list[Item]) -> Batch:
        """Recognise windows that are stored already, embed the others, and score them stream by stream in order."""
        loop = asyncio.get_running_loop()
        fired = [(i, p, o) for i, (p, o) in enumerate(items) if isinstance(o, Fired) and not p.revoked]
        hashes = await loop.run_in_executor(self._pool, lambda: [window.content_hash() for _, _, window in fired])
        works: dict[int, Work] = {}
        new_in_batch: dict[tuple[int, str, int], Work] = {}
        for (i, partition, window), content_hash in zip(fired, hashes, strict=True):
            memory = partition.memories.setdefault(window.stream, StreamMemory())
            work = Work(
                partition=partition,
                window=window,
                memory=memory,
                id=self._restorer.window_id(window.stream, window.start_ms),
                content_hash=content_hash,
                known=memory.known.get(window.start_ms),
            )
            key = (id(partition), window.stream, window.start_ms)
            if work.known is None and window.stored is not None and key not in new_in_batch:
                stored = window.stored
                work.known = Known(stored.revision, stored.content_hash, stored.payload)
            works[i] = new_in_batch[key] = work
        await self._score_batch(list(works.values()))
        self._cool()
        return Batch(items, works)

    def _cool(self) -> None:
        """Let go of detectors that were not used for long: what they know is in the store, as far as it was scored."""
        while len(self._warm) > _DETECTORS_KEPT:
            _, memory = self._warm.popitem(last=False)
            memory.detector = None

    async def _score_batch(self, works: list[Work]) -> None:
        """Score in runs: whatever moves a stream along its stored chain of drift states ends the run before it."""
        run: list[Work] = []
        for work in works:
            memory, known, first = work.memory, work.known, work.window.firing == 0
            if known is not None and first:
                if any(other.memory is memory for other in run):
                    await self._in_executor(run)
                    run = []
                if known.content_hash == work.content_hash:
                    self._adopt(work)
                    continue
                # stored, but a late event has joined it since: its own vector changes, the chain behind it does not
                await self._with_detector(work)
                await self._in_executor([work])
                self._follow(memory, known, work.window.start_ms)
                continue
            await self._with_detector(work)
            run.append(work)
        if run:
            await self._in_executor(run)

    async def _with_detector(self, work: Work) -> None:
        if work.memory.detector is None:
            work.memory.detector = await self._restorer.detector(work.window.stream, work.memory)
        self._warm[id(work.memory)] = work.memory
        self._warm.move_to_end(id(work.memory))

    async def _in_executor(self, run: list[Work]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._pool, self._embed_and_score, run)

    def _adopt(self, work: Work) -> None:
        """The store has this window as it is: its score stands."""
        assert work.known is not None
        payload = work.known.payload
        counted = bookkeeping(work.window, self._origin, work.memory.sealed_before_ms)
        same = all(payload[key] == counted[key] for key in ("home", "duplicates", "members", "origin"))
        work.fate = "known" if same else "recounted"
        work.payload = dict(payload) if same else dict(payload) | counted
        known = Known(work.known.revision, work.known.content_hash, work.payload)
        work.memory.known[work.window.start_ms] = known
        self._follow(work.memory, known, work.window.start_ms)

    def _follow(self, memory: StreamMemory, known: Known, start_ms: int) -> None:
        """Continue from the drift state that a stored window carries, unless it was scored out of order."""
        if known.payload["drift"] is not None and (memory.last_start_ms is None or start_ms > memory.last_start_ms):
            memory.chain, memory.detector, memory.last_start_ms = known.payload, None, start_ms

    # -- in the executor -----------------------------------------------------------------------------------------

    def _embed_and_score(self, works: Sequence[Work]) -> None:
        began = time.perf_counter()
        # a window that fired twice within one batch is embedded in its last form as well: both are cheap and right
        vectors = self._embed_all([window_input(work.window) for work in works])
        embedded = time.perf_counter()
        for work, vector in zip(works, vectors, strict=True):
            if vector is None:
                work.fate = "failed"
            else:
                work.vectors = vector
                self._score(work, vector)
        self._metrics.batch.observe(len(works))
        self._metrics.stage.labels("embed").observe(embedded - began)
        self._metrics.stage.labels("score").observe(time.perf_counter() - embedded)

    def _embed_all(self, inputs: list[WindowInput]) -> list[WindowVectors | None]:
        """One batch; if that fails, one by one, so that a window the model cannot take harms no other."""
        try:
            return list(self._model.embed(inputs))
        except Exception:
            log.exception("batch failed, embedding one by one", windows=len(inputs))
        vectors: list[WindowVectors | None] = []
        for one in inputs:
            try:
                vectors.extend(self._model.embed([one]))
            except Exception:
                vectors.append(None)
        return vectors

    def _score(self, work: Work, vectors: WindowVectors) -> None:
        window, memory = work.window, work.memory
        # the window may have fired before in this very batch
        known = work.known = memory.known.get(window.start_ms) or work.known
        detector = memory.detector
        assert detector is not None
        if known is not None and known.content_hash == work.content_hash:
            work.fate = "recounted"  # repeats came in: they change the count and nothing else
            work.payload = dict(known.payload) | bookkeeping(window, self._origin, memory.sealed_before_ms)
            memory.known[window.start_ms] = Known(known.revision, known.content_hash, work.payload)
            return
        observation = Observation(
            stream=window.stream,
            window=work.id,
            start_ms=window.start_ms,
            end_ms=window.end_ms,
            mask=mask_of(window),
            vectors=_named(vectors),
            channels=channel_stats(window.readings),
        )
        in_order = known is None and (memory.last_start_ms is None or window.start_ms > memory.last_start_ms)
        drift: str | None = None
        if in_order:
            work.bank_before = detector.bank
            verdict = detector.observe(observation)
            memory.last_start_ms = window.start_ms
            drift = detector.state.to_payload()
            work.bank_after = detector.bank
        else:
            # a late event: the window gets its own vector and score; the chain of drift states stays as it was
            previous = None if known is None else known.payload["score"]
            verdict = detector.review(observation, previous_score=previous)
            detector.replace_vectors(window.start_ms, observation.vectors)
        revision = 0
        if known is not None:
            work.fate, revision, drift = "revised", known.revision + 1, known.payload["drift"]
        work.payload = payload_of(
            window,
            revision=revision,
            content_hash=work.content_hash,
            model=self._model.version,
            verdict=verdict,
            attention=vectors.attention,
            drift=drift,
            origin=self._origin,
            sealed_before_ms=memory.sealed_before_ms,
        )
        if known is not None:  # steps of earlier firings stand, late ones follow them; all are published after a crash
            steps = [*known.payload["steps"], *work.payload["steps"]]
            kept = {"incident": known.payload["incident"] or work.payload["incident"]}
            kept |= {"bank": known.payload["bank"]} if "bank" in known.payload else {}
            work.payload = dict(work.payload) | kept | {"steps": steps, "incident_step": bool(steps)}
        elif window.start_ms in work.bank_after:
            work.payload["bank"] = True
        if in_order:
            memory.chain = work.payload
        memory.known[window.start_ms] = Known(revision, work.content_hash, work.payload)

    # -- after inference -----------------------------------------------------------------------------------------

    async def _finish_batches(self) -> None:
        while True:
            batch = await self._embedded.get()
            began = time.perf_counter()
            live = [work for work in batch.works.values() if not work.partition.revoked]
            await self._write(live)
            stored = time.perf_counter()
            await self._announce([work for work in live if not work.partition.revoked])
            for partition, output in batch.items:
                if partition.revoked:
                    continue
                if isinstance(output, PaneFinal):
                    self._release(partition, output)
                elif isinstance(output, StreamIdle):
                    await self._announcer.silence(output)
            for partition in {partition for partition, _ in batch.items}:
                partition.forget_silent()
            self._finished += len(batch.items)
            self._metrics.windows.labels("stale").inc(len(batch.works) - len(live))
            self._metrics.stage.labels("store").observe(stored - began)
            self._metrics.stage.labels("announce").observe(time.perf_counter() - stored)

    async def _write(self, works: list[Work]) -> None:
        """Upsert what is new; merge payloads where only the bookkeeping changed; flag members of reference banks."""
        newest: dict[str, Work] = {}
        for work in works:
            if work.fate in ("new", "revised"):
                assert work.vectors is not None
                newest[work.id] = work
            elif work.fate == "recounted" and work.id in newest:
                newest[work.id].payload = work.payload
        points = [Point(w.id, _named(w.vectors), w.payload) for w in newest.values() if w.vectors is not None]
        if points:
            await self._store.upsert(points)
        for work in works:
            if work.fate == "recounted" and work.id not in newest:
                keys = ("home", "duplicates", "members", "origin", "sealed")
                await self._store.set_payload(work.id, {key: work.payload[key] for key in keys})
        await self._flag_banks(works)

    async def _flag_banks(self, works: list[Work]) -> None:
        """Retention spares the windows that a stream's banks are made of. One that joins them is written as such."""
        flags: dict[tuple[str, int], bool] = {}
        for work in works:
            joined, left = work.bank_after - work.bank_before, work.bank_before - work.bank_after
            flags.update(((work.window.stream, start), True) for start in joined if start != work.window.start_ms)
            flags.update(((work.window.stream, start), False) for start in left)
        for flag in (True, False):
            ids = [self._restorer.window_id(*window) for window, flagged in flags.items() if flagged is flag]
            await self._store.set_payload(ids, {"bank": flag})

    async def _announce(self, works: list[Work]) -> None:
        fates: dict[str, int] = {}
        async with asyncio.TaskGroup() as sends:
            for work in works:
                fates[work.fate] = fates.get(work.fate, 0) + 1
                if work.fate == "failed":
                    sends.create_task(self._announcer.failure(work.id, work.window, work.partition.number))
                else:
                    sends.create_task(self._announcer.window(work.id, work.payload))
        for fate, count in fates.items():
            self._metrics.windows.labels(fate).inc(count)
        self._count([work for work in works if work.fate != "failed"])
        for work in works:
            if work.fate == "failed":
                continue
            steps = work.payload["steps"]
            late = [step for step in steps if step.get("late")]
            if work.fate == "revised" and work.window.firing:
                await self._announcer.incidents(late, again=False)
            elif work.window.firing == 0:
                # published before a restart, perhaps: the crash may have come between store and topic
                await self._announcer.incidents(steps, again=work.fate != "new")

    def _count(self, works: list[Work]) -> None:
        gained = dict.fromkeys(MODALITIES, 0)
        repeats = 0
        for work in works:
            before: Mapping[str, Any] = work.known.payload if work.known is not None else {"home": {}, "duplicates": 0}
            for modality in MODALITIES:
                more = work.payload["home"].get(modality.value, 0) - before["home"].get(modality.value, 0)
                gained[modality] += max(0, more)
            repeats += max(0, work.payload["duplicates"] - before["duplicates"])
        for modality, events in gained.items():
            if events:
                self._metrics.events.labels(self._topic(TOPICS[modality]), "windowed").inc(events)
        if repeats:
            self._metrics.events.labels("all", "duplicate").inc(repeats)

    def _release(self, partition: Partition, output: PaneFinal) -> None:
        for modality, offsets in zip(MODALITIES, output.offsets, strict=True):
            if offsets:
                self._ledger.release((self._topic(TOPICS[modality]), partition.number), partition.epoch, offsets)
        partition.finished[output.stream] = output.start_ms
        memory = partition.memories.get(output.stream)
        if memory is not None:
            sealed = output.start_ms + partition.config.hop_ms
            memory.sealed_before_ms = max(sealed, memory.sealed_before_ms or sealed)
            for start in list(memory.known):  # a copy: the executor may be adding to it
                if start < memory.sealed_before_ms:
                    del memory.known[start]


def _named(vectors: WindowVectors) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    return {"joint": vectors.joint, **vectors.unimodal}
