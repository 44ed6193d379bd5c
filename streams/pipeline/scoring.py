"""Batches of fired windows -> vectors -> verdicts and payloads: what is to be stored and published.

Windows that are stored already are recognised, and keep their score. The others are embedded, and scored stream by
stream in order; embedding and scoring run in an executor of one thread.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import structlog
from msgspec.structs import replace

from models.interface import WindowInput, WindowModel, WindowVectors, check_vectors
from streams.drift.channel_stats import channel_stats
from streams.drift.types import Observation
from streams.metrics import Metrics
from streams.pipeline.batching import Item
from streams.pipeline.payload import WindowPayload, bookkeeping, mask_of, payload_of
from streams.pipeline.recovery import Origin, StateLoader
from streams.pipeline.state import PartitionState, StreamState, WindowRevision
from streams.windows.model_input import window_input
from streams.windows.types import Fired

log = structlog.get_logger(__name__)
_IN_FLIGHT = 8  # batches that may be scored and not stored yet, and some
_MEASURE_EVERY = 32  # windows of a stream between two looks at its detector's size

Outcome = Literal["new", "revised", "recounted", "known", "kept", "superseded", "failed"]


@dataclass(slots=True, eq=False)
class Work:
    """One fired window on its way through: what is known of it, and what it becomes.

    Outcomes: `new`; `revised`, another content than before; `recounted`, repeats came in; `known`, stored as it is;
    `kept`, the stored window stays because records that it is made of are gone; `superseded`, a later firing is in the
    same batch; `failed`, no model can take it.
    """

    partition: PartitionState
    window: Fired
    stream: StreamState
    id: str
    content_hash: str
    before: WindowRevision | None
    outcome: Outcome = "new"
    vectors: WindowVectors | None = None
    payload: WindowPayload | None = None
    new_steps: list[dict[str, Any]] = field(default_factory=list)
    failure: str = ""
    bank_before: frozenset[int] = frozenset()
    bank_after: frozenset[int] = frozenset()


@dataclass(slots=True)
class _Warm:
    """A stream whose detector is held in memory."""

    stream: StreamState
    nbytes: int = 0
    batch: int = 0  # that used it last


@dataclass(slots=True)
class Batch:
    items: list[Item]
    works: dict[int, Work]  # by position in items


class Scorer:
    """Owns the executor and the detectors that are kept in memory. `loader` waits while its store is away."""

    def __init__(
        self,
        *,
        model: WindowModel,
        loader: StateLoader,
        metrics: Metrics,
        origin: Origin,
        detector_bytes: int,
    ) -> None:
        """`detector_bytes`: memory for detectors; those unused for longest are let go and read back when needed."""
        self._model = model
        self._loader = loader
        self._metrics = metrics
        self._origin = origin
        self._most_bytes = detector_bytes
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="scoring")
        self._warm: OrderedDict[int, _Warm] = OrderedDict()  # streams with a detector, longest unused first
        self._batches = 0
        self._bytes = 0
        self._unwatched: dict[str, int] = {}  # channels beyond the detector's limit, per stream

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def score(self, items: list[Item]) -> Batch:
        """Recognise windows that are stored already, embed the others, and score them stream by stream in order."""
        loop = asyncio.get_running_loop()
        fired = [(i, p, o) for i, (p, o) in enumerate(items) if isinstance(o, Fired) and not p.revoked]
        hashes = await loop.run_in_executor(self._pool, lambda: [window.content_hash() for _, _, window in fired])
        works: dict[int, Work] = {}
        in_batch: set[tuple[int, str, int]] = set()
        for (i, partition, window), content_hash in zip(fired, hashes, strict=True):
            stream = partition.streams.setdefault(window.stream, StreamState())
            before = stream.revisions.get(window.start_ms)
            key = (id(partition), window.stream, window.start_ms)
            if before is None and window.stored is not None and key not in in_batch:
                stored = window.stored
                before = WindowRevision(stored.revision, stored.content_hash, stored.payload)
            in_batch.add(key)
            window_id = self._loader.window_id(window.stream, window.start_ms)
            works[i] = Work(partition, window, stream, window_id, content_hash, before)
        self._batches += 1
        await self._score_all(list(works.values()))
        self._cool()
        return Batch(items, works)

    async def _score_all(self, works: list[Work]) -> None:
        """Score in runs: whatever moves a stream along its stored chain of drift states ends the run before it."""
        run: list[Work] = []
        for work in works:
            stream, before, first = work.stream, work.before, work.window.firing == 0
            if before is not None and first:
                if any(other.stream is stream for other in run):
                    await self._embed_and_score_run(run)
                    run = []
                if before.content_hash == work.content_hash:
                    self._adopt(work)
                    continue
                if _is_part(work.window):
                    self._keep(work)
                    continue
                # stored, but a late event has joined it since: its own vector changes, the chain behind it does not
                await self._embed_and_score_run([work])
                self._follow(stream, before.payload)
                continue
            run.append(work)
        if run:
            await self._embed_and_score_run(run)

    async def _embed_and_score_run(self, run: list[Work]) -> None:
        cold = {work.window.stream: work.stream for work in run if work.stream.detector is None}
        if cold:
            await self._loader.load_detectors(cold)
        await asyncio.get_running_loop().run_in_executor(self._pool, self._embed_and_score, run)
        for work in run:
            self._warm_up(work.stream)

    def _warm_up(self, stream: StreamState) -> None:
        if stream.detector is None:
            return
        warm = self._warm.pop(id(stream), None)
        if warm is None:
            warm = _Warm(stream)
        if not warm.nbytes or stream.detector.state.windows % _MEASURE_EVERY == 0:
            self._bytes -= warm.nbytes
            warm.nbytes = stream.detector.nbytes
            self._bytes += warm.nbytes
        warm.batch = self._batches
        self._warm[id(stream)] = warm

    def _cool(self) -> None:
        """Let go of detectors that were not used for long: what they know is in the store, as far as it was scored."""
        while self._bytes > self._most_bytes:
            oldest = next(iter(self._warm.values()))
            if oldest.batch > self._batches - _IN_FLIGHT:
                break  # its last windows may not be stored yet
            self._drop_detector(oldest.stream)
        self._metrics.detectors.set(len(self._warm))

    # -- windows that are stored ---------------------------------------------------------------------------------

    def _adopt(self, work: Work) -> None:
        """The store has this window as it is: its score stands."""
        before = work.before
        assert before is not None
        payload = self._recount(work, before.payload)
        work.outcome = "known" if payload is before.payload else "recounted"
        self._take(work, before.revision, payload)

    def _keep(self, work: Work) -> None:
        """Records that the stored window is made of are gone from Kafka: it stays as it is."""
        before = work.before
        assert before is not None
        window = work.window
        log.warning(
            "a stored window stays as it is: some of its records are gone from Kafka",
            stream=window.stream,
            window=work.id,
            stored=sum(before.payload.home.values()),
            read_again=sum(window.home_events),
        )
        work.outcome = "kept"
        self._take(work, before.revision, before.payload)

    def _take(self, work: Work, revision: int, payload: WindowPayload) -> None:
        work.payload = payload
        work.stream.revisions[work.window.start_ms] = WindowRevision(revision, payload.hash, payload)
        self._follow(work.stream, payload)

    def _recount(self, work: Work, payload: WindowPayload) -> WindowPayload:
        """The payload with the bookkeeping of the window as it is now; the same object where nothing changed."""
        counted = bookkeeping(work.window, self._origin.of(work.partition.number), work.stream.final_before_ms)
        same = all(getattr(payload, name) == counted[name] for name in ("home", "duplicates", "members", "origin"))
        return payload if same else replace(payload, **counted)

    def _follow(self, stream: StreamState, payload: WindowPayload) -> None:
        """Continue from the drift state that a stored window carries, unless it was scored out of order."""
        if payload.drift is not None and (stream.last_start_ms is None or payload.start > stream.last_start_ms):
            stream.last_scored, stream.last_start_ms = payload, payload.start
            self._drop_detector(stream)

    def _drop_detector(self, stream: StreamState) -> None:
        stream.detector = stream.bank = None
        warm = self._warm.pop(id(stream), None)
        if warm is not None:
            self._bytes -= warm.nbytes

    # -- in the executor -----------------------------------------------------------------------------------------

    def _embed_and_score(self, works: Sequence[Work]) -> None:
        began = time.perf_counter()
        # of a window that late events made fire again several times, only the last form is embedded
        last = {(id(work.partition), work.window.stream, work.window.start_ms): work for work in works}
        needed = []
        for work in works:
            if work.window.firing == 0 or last[id(work.partition), work.window.stream, work.window.start_ms] is work:
                needed.append(work)
            else:
                work.outcome = "superseded"
        inputs = [window_input(work.window) for work in needed]
        vectors = self._embed_all(inputs)
        embedded = time.perf_counter()
        of_work = dict(zip(map(id, needed), zip(vectors, inputs, strict=True), strict=True))
        for work in works:
            if work.outcome == "superseded":
                self._supersede(work)
                continue
            vector, content = of_work[id(work)]
            failure = vector if isinstance(vector, str) else check_vectors(vector, content)
            if isinstance(vector, str) or failure is not None:
                work.outcome, work.failure = "failed", failure or ""
            else:
                work.vectors = vector
                self._score(work, vector)
        self._metrics.batch.observe(len(works))
        self._metrics.stage.labels("embed").observe(embedded - began)
        self._metrics.stage.labels("score").observe(time.perf_counter() - embedded)

    def _embed_all(self, inputs: list[WindowInput]) -> list[WindowVectors | str]:
        """One batch; if that fails, one by one, so that a window the model cannot take harms no other."""
        try:
            return self._embed(inputs)
        except Exception:
            log.exception("batch failed, embedding one by one", windows=len(inputs))
        vectors: list[WindowVectors | str] = []
        for one in inputs:
            try:
                vectors += self._embed([one])
            except Exception as error:
                vectors.append(f"{type(error).__name__}: {error}")
        return vectors

    def _embed(self, inputs: list[WindowInput]) -> list[WindowVectors | str]:
        vectors: list[WindowVectors | str] = list(self._model.embed(inputs))
        if len(vectors) != len(inputs):  # encoders come from third parties
            raise ValueError(f"the model gave {len(vectors)} results for {len(inputs)} windows")
        return vectors

    def _supersede(self, work: Work) -> None:
        """A later firing in the same batch says more: only the revision is counted."""
        before = work.stream.revisions.get(work.window.start_ms) or work.before
        if before is not None and before.content_hash != work.content_hash:
            work.stream.revisions[work.window.start_ms] = WindowRevision(
                before.revision + 1, work.content_hash, before.payload
            )

    def _score(self, work: Work, vectors: WindowVectors) -> None:
        window, stream = work.window, work.stream
        # the window may have fired before in this very batch
        before = work.before = stream.revisions.get(window.start_ms) or work.before
        if before is not None and before.content_hash == work.content_hash:
            work.outcome = "recounted"  # repeats came in: they change the count and nothing else
            work.payload = self._recount(work, before.payload)
            stream.revisions[window.start_ms] = WindowRevision(before.revision, before.content_hash, work.payload)
            return
        detector = stream.detector
        assert detector is not None
        observation = Observation(
            stream=window.stream,
            window=work.id,
            start_ms=window.start_ms,
            end_ms=window.end_ms,
            mask=mask_of(window),
            vectors=named(vectors),
            channels=channel_stats(window.readings),
        )
        newest = stream.last_start_ms is None or window.start_ms > stream.last_start_ms
        in_order = before is None and newest and not window.ahead
        drift: str | None = None
        if in_order:
            work.bank_before = detector.bank if stream.bank is None else stream.bank
            verdict = detector.observe(observation)
            stream.last_start_ms = window.start_ms
            drift = detector.state.to_payload()
            work.bank_after = stream.bank = detector.bank
        else:
            # a late event: the window gets its own vector and score; the chain of drift states stays as it was
            verdict = detector.review(observation, previous_score=before.payload.score if before is not None else None)
            detector.replace_vectors(window.start_ms, observation.vectors)
        revision = 0
        if before is not None:
            work.outcome, revision, drift = "revised", before.revision + 1, before.payload.drift
        payload = payload_of(
            window,
            revision=revision,
            content_hash=work.content_hash,
            model=self._model.version,
            verdict=verdict,
            attention=vectors.attention,
            drift=drift,
            origin=self._origin.of(work.partition.number),
            final_before_ms=stream.final_before_ms,
        )
        work.new_steps = payload.steps
        if before is not None:
            payload = _revised(payload, before.payload)
        elif window.start_ms in work.bank_after:
            payload.bank = True
        work.payload = payload
        if in_order:
            stream.last_scored = payload
            self._note_unwatched(window.stream, verdict.unwatched_channels)
        stream.revisions[window.start_ms] = WindowRevision(revision, work.content_hash, payload)

    def _note_unwatched(self, stream: str, channels: int) -> None:
        known = self._unwatched.get(stream, 0)
        if channels == known:
            return
        if channels > known:
            log.warning("channels beyond the detector's limit are not watched", stream=stream, channels=channels)
        if channels:
            self._unwatched[stream] = channels
        else:
            del self._unwatched[stream]
        self._metrics.unwatched_channels.set(sum(self._unwatched.values()))


def _revised(payload: WindowPayload, before: WindowPayload) -> WindowPayload:
    """What the first firing caused in incidents' lives stands, and is published again after a crash."""
    known = {_step_key(step) for step in before.steps}
    steps = before.steps + [step for step in payload.steps if _step_key(step) not in known]
    incident = before.incident if before.incident is not None else payload.incident
    return replace(payload, steps=steps, incident_step=bool(steps), incident=incident, bank=before.bank)


def _step_key(step: Mapping[str, Any]) -> tuple[Any, ...]:
    return step["id"], step["sequence"], step.get("late", False)


def _is_part(window: Fired) -> bool:
    """Whether a window that is built again lacks records that the stored one is made of."""
    stored = window.stored
    return stored is not None and any(not m <= set(now) for m, now in zip(stored.members, window.members, strict=True))


def named(vectors: WindowVectors) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """The vectors of a window by name, the joint one among them."""
    return {"joint": vectors.joint, **vectors.unimodal}
