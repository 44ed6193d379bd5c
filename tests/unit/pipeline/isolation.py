"""Plans of streams that differ, their records, two ways to deliver them, and what each stream's windows must hold.

Everything here is written from the sentences of DESIGN section 5 and shares no code with the window operator.
"""

from __future__ import annotations

import io
import json
import random
import wave
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.interface import WindowInput
from streams.kafka.producer import Headers
from streams.settings import Settings, WindowSettings
from streams.store.base import Filter
from streams.testing import Harness, RecordedOutputs, Sent
from tests.memory_store import MemoryStore
from tests.standin import StandInModel

SENSORS, CLIPS, CAPTIONS = TOPICS = ("sensor-readings", "audio-clips", "captions")
MODALITY = {SENSORS: "sensor", CLIPS: "audio", CAPTIONS: "caption"}
T0_MS = 1_800_000_000_000  # production of every plan starts here
SIZE_MS = 10_000
IDLE_MS = 10_000  # settings.window.idle_timeout_ms
DISORDER_MS = 2_000
STEP_MS = 500  # the live clock moves in such steps
JITTER_MS = DISORDER_MS - STEP_MS - 100  # nothing leaves its bound by being read a step later
CLOSING_MS = 900_000  # longer than the longest idle time (max_stream_lag) and allowed lateness together
# what a replay must reproduce of a stored window; record offsets and the like belong to the delivery, not to the window
CONTENT = ("stream", "start", "end", "revision", "mask", "events", "home", "duplicates", "hash")
SCORES = ("score", "status", "severity", "incident", "steps", "parts", "shares", "drift")
TEXTS = ("all quiet", "valve open", "odd noise", "shift change")


@dataclass(frozen=True)
class StreamPlan:
    """One stream: what it produces, when, and how long after the event. Seconds are of event time from T0."""

    name: str
    seed: int
    seconds: int  # how long it produces
    lag_ms: int = 0  # constant: how long after its event time each record is produced
    jitter_ms: int = 0  # each record up to this much later
    sensor_s: float | None = 1.0  # interval of readings; None: has no sensor
    caption_s: float | None = None
    clip_s: float | None = None
    starts_s: int = 0
    pause_s: tuple[int, int] | None = None  # (from, until): produces nothing
    caption_ends: bool = False  # stops writing captions half-way
    future: float = 0.0  # share of readings with a clock minutes ahead
    repeats: float = 0.0  # share of records that come twice
    late: float = 0.0  # share of records that come up to two minutes later: the stream leaves its bounds
    fault: bool = False  # its level jumps for a while near the end


@dataclass(frozen=True, order=True)
class Produced:
    """A record as its producer writes it. `produced_ms` is its Kafka timestamp."""

    produced_ms: int
    stream: str
    number: int  # among the stream's records
    time_ms: int = field(compare=False)
    topic: str = field(compare=False)
    value: bytes = field(compare=False)
    headers: dict[str, bytes] = field(compare=False, default_factory=dict)
    future: bool = field(compare=False, default=False)

    @property
    def identity(self) -> tuple[str, str, int, bytes]:
        """An event's identity is its stream, modality, event time and content."""
        return self.stream, self.topic, self.time_ms, self.value


@cache
def sound(seed: int) -> bytes:
    """A hundredth of a second of noise as a WAV file."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(samples_of(seed).tobytes())
    return out.getvalue()


def samples_of(seed: int) -> NDArray[np.int16]:
    noise = np.random.default_rng(seed).standard_normal(160) * 1000
    return noise.astype("<i2")


_SOUND_SEEDS = {sound(seed): seed for seed in range(4)}


def reading(time_ms: int, **values: float) -> bytes:
    return json.dumps({"time": time_ms, "values": values}).encode()


def caption(time_ms: int, text: str) -> bytes:
    return json.dumps({"time": time_ms, "text": text}).encode()


def time_header(time_ms: int) -> dict[str, bytes]:
    return {"time": str(time_ms).encode(), "content-type": b"audio/wav"}


def records_of(plan: StreamPlan) -> list[Produced]:
    """The stream's records, in production order, within its own bounds (but for `late`).

    Within its bounds means: no event comes more than JITTER_MS out of order; no silence as long as the idle timeout
    lies inside a window (it would close the window, as it should); of readings from the future, one at a time.
    """
    rng = random.Random(plan.seed)
    found = [event for topic in TOPICS for event in _events(plan, rng, topic)]
    found += [_again(plan, rng, event) for event in found if not event.future and rng.random() < plan.repeats]
    numbered = sorted(replace(event, number=i) for i, event in enumerate(found))
    return numbered if plan.late else _without_split_windows(numbered)


def _events(plan: StreamPlan, rng: random.Random, topic: str) -> list[Produced]:
    interval_s = {SENSORS: plan.sensor_s, CLIPS: plan.clip_s, CAPTIONS: plan.caption_s}[topic]
    if interval_s is None:
        return []
    level, found, far_ms = random.Random(plan.seed).uniform(1, 9), list[Produced](), 0
    second, end = plan.starts_s + rng.uniform(0, min(interval_s, 3)), plan.starts_s + plan.seconds
    if topic == CAPTIONS and plan.caption_ends:
        end -= plan.seconds // 2
    while second < end:
        time_ms = T0_MS - plan.lag_ms + int(second * 1000)
        if not (plan.pause_s and plan.pause_s[0] <= second < plan.pause_s[1]):
            faulty = plan.fault and 0.75 * plan.seconds < second - plan.starts_s < 0.9 * plan.seconds
            event = _event(plan, rng, topic, time_ms, level + (30 if faulty else 0))
            if topic == SENSORS and len(found) > 3 and time_ms > far_ms and rng.random() < plan.future:
                event = _in_the_future(rng, event)
                far_ms = event.time_ms
            found.append(event)
        second += interval_s * (rng.uniform(0.9, 1.1) if interval_s < 8 else rng.uniform(1.0, 1.1))
    return found


def _event(plan: StreamPlan, rng: random.Random, topic: str, time_ms: int, level: float) -> Produced:
    produced_ms = time_ms + plan.lag_ms + rng.randint(0, plan.jitter_ms)
    if plan.late and rng.random() < plan.late:
        produced_ms += rng.randint(0, 120_000)
    if topic == CLIPS:
        return Produced(produced_ms, plan.name, 0, time_ms, topic, sound(rng.randrange(4)), time_header(time_ms))
    if topic == CAPTIONS:
        return Produced(produced_ms, plan.name, 0, time_ms, topic, caption(time_ms, rng.choice(TEXTS)))
    value = reading(time_ms, flow=level + rng.gauss(0, 0.2), heat=20 + rng.gauss(0, 0.1))
    return Produced(produced_ms, plan.name, 0, time_ms, topic, value)


def _in_the_future(rng: random.Random, event: Produced) -> Produced:
    """The same reading with a clock that is more than `max_jump` and less than `max_clock_skew` ahead."""
    base_ms = event.time_ms if rng.random() < 0.5 else event.produced_ms  # of the stream's own clock, or of everybody's
    time_ms = base_ms + rng.randint(65_000, 290_000)
    return replace(event, time_ms=time_ms, value=reading(time_ms, **json.loads(event.value)["values"]), future=True)


def _again(plan: StreamPlan, rng: random.Random, event: Produced) -> Produced:
    return replace(event, produced_ms=event.time_ms + plan.lag_ms + rng.randint(0, plan.jitter_ms))


def _without_split_windows(records: list[Produced]) -> list[Produced]:
    """Leave out what would come into a window that a silence of the stream had closed before."""
    kept: list[Produced] = []
    closed_ms, newest_ms, last_ms = 0, 0, None
    for record in records:
        if last_ms is not None and record.produced_ms - last_ms >= IDLE_MS - 2 * STEP_MS:
            closed_ms = (newest_ms // SIZE_MS + 1) * SIZE_MS
        if record.time_ms < closed_ms:
            continue
        last_ms = record.produced_ms
        if not record.future:
            newest_ms = max(newest_ms, record.time_ms)
        kept.append(record)
    return kept


# -- delivery -----------------------------------------------------------------------------------------------------


@dataclass
class StreamResult:
    """What the service made of one stream: only what must not depend on others."""

    windows: dict[str, dict[str, Any]] = field(default_factory=dict)  # by id: content, scores and vectors, as bytes
    published: dict[str, bytes] = field(default_factory=dict)  # by id: the newest message on `windows`
    fired_at_ms: dict[str, int] = field(default_factory=dict)  # by id: the clock at its first message on `windows`
    incidents: list[bytes] = field(default_factory=list)  # CloudEvents of its incidents, in order
    late: int = 0
    dead: int = 0


@dataclass
class Outcome:
    """A whole run: every stream's result, and how far commits got."""

    streams: dict[str, StreamResult]
    committed: dict[tuple[str, int], int]
    ends: dict[tuple[str, int], int]

    def uncommitted(self) -> list[str]:
        """Inputs whose commits do not reach the end of the log."""
        return [
            f"{topic}/{number}: {self.committed.get((topic, number), 0)} of {end}"
            for (topic, number), end in self.ends.items()
            if self.committed.get((topic, number), 0) != end
        ]


def new_harness(
    now_ms: int = T0_MS,
    partitions: int = 1,
    model: Any = None,
    store: Any = None,
    real: str | None = None,
    **window: Any,
) -> Harness:
    """A harness without a folder. `window`: settings of `settings.window`; `real`: bootstrap servers of a Kafka."""
    folder = Path("no-folder-is-made")
    settings = Settings(state=folder, window=WindowSettings(**window))
    return Harness(
        folder,
        model=model or StandInModel(),
        store=MemoryStore() if store is None else store,
        settings=settings,
        partitions=partitions,
        now_ms=now_ms,
        real=real,
    )


@dataclass
class Clock:
    """The wall clock of a run; it moves with the harness's, in steps."""

    now_ms: int

    async def step(self, h: Harness) -> None:
        self.now_ms += STEP_MS
        await h.advance(STEP_MS)


class TimedOutputs(RecordedOutputs):
    """Remembers when each record was produced."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self.at_ms: list[int] = []

    async def send(
        self, topic: str, value: bytes | None, *, key: bytes | None, headers: Headers = (), **where: Any
    ) -> None:
        self.at_ms.append(self._clock.now_ms)
        await super().send(topic, value, key=key, headers=headers, **where)


async def run(streams: Iterable[str], records: Iterable[Produced], *, live: bool, partitions: int) -> Outcome:
    """Play the records into a new worker, live or as a backlog, and let time pass until all is closed."""
    ordered = sorted(records)
    clock = Clock(T0_MS if live else max((record.produced_ms for record in ordered), default=T0_MS))
    h = new_harness(clock.now_ms, partitions=partitions)
    h.outputs = outputs = TimedOutputs(clock)
    async with h:
        if live:
            await play_live(h, ordered, clock)
        else:
            await play_backlog(h, ordered)
        await close(h, clock)
        return Outcome(await results(h, streams, outputs), h.commit(), h.ends())


async def play_live(h: Harness, ordered: Sequence[Produced], clock: Clock) -> None:
    """Every record is there when it was produced; the clock follows, in steps."""
    position = 0
    while position < len(ordered):
        before = position
        while position < len(ordered) and ordered[position].produced_ms <= clock.now_ms:
            await put(h, ordered[position])
            position += 1
        if position > before:
            await h.settle()
        await clock.step(h)


async def play_backlog(h: Harness, ordered: Sequence[Produced]) -> None:
    """Everything has been produced before the worker reads the first record."""
    for record in ordered:
        await put(h, record)
    await h.settle()


async def put(h: Harness, record: Produced) -> None:
    await h.push(
        record.topic,
        record.stream,
        record.value,
        headers=record.headers,
        timestamp_ms=record.produced_ms,
        settle=False,
    )


async def close(h: Harness, clock: Clock) -> None:
    """Let quiet pass until everything is finished, or longer than anything may take."""
    for step in range(CLOSING_MS // STEP_MS):
        await clock.step(h)
        if step % 40 == 39 and at_end(h):
            return


def at_end(h: Harness) -> bool:
    committed = h.commit()
    return all(committed.get(tp, 0) == end for tp, end in h.ends().items())


async def results(h: Harness, streams: Iterable[str], outputs: TimedOutputs) -> dict[str, StreamResult]:
    """What each of these streams got."""
    found = {name: StreamResult() for name in streams}
    async for point in h.store.scroll(Filter(), vectors=True):
        if (result := found.get(point.payload["stream"])) is not None:
            content = {key: json.dumps(point.payload.get(key)) for key in (*CONTENT, *SCORES)}
            vectors = {name: np.asarray(v, dtype="<f4").tobytes() for name, v in point.vectors.items()}
            result.windows[point.id] = content | vectors
    for sent, at_ms in zip(outputs.sent, outputs.at_ms, strict=True):
        if sent.topic == "windows" and (result := found.get(_key(sent))) is not None:
            id = json.loads(sent.value or b"")["id"]
            result.published[id] = sent.value or b""
            result.fired_at_ms.setdefault(id, at_ms)
    for sent in h.sent("incidents"):
        event = json.loads(sent.value or b"{}")
        name = event.get("data", {}).get("stream")
        if event.get("type", "").startswith("sensorium.incident.") and name in found:
            found[name].incidents.append(sent.value or b"")
    for sent in h.late():
        if (result := found.get(_key(sent))) is not None:
            result.late += 1
    for sent in h.dead():
        if (result := found.get(_key(sent))) is not None:
            result.dead += 1
    return found


def _key(sent: Sent) -> str:
    return (sent.key or b"").decode()


# -- what must be -------------------------------------------------------------------------------------------------


def differences(alone: StreamResult, among: StreamResult, *, live: bool) -> list[str]:
    """How a stream among others differs from itself alone; nothing if it does not.

    Live, no other stream may hold a window back either.
    """
    found = []
    for id in sorted(alone.windows.keys() ^ among.windows.keys()):
        window = alone.windows.get(id) or among.windows[id]
        found.append(f"window {window['start']} is only {'alone' if id in alone.windows else 'among others'}")
    for id in sorted(alone.windows.keys() & among.windows.keys(), key=lambda id: int(alone.windows[id]["start"])):
        one, other = alone.windows[id], among.windows[id]
        if changed := sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key)):
            found.append(f"window {one['start']} differs in {', '.join(changed)}")
        elif alone.published.get(id) != among.published.get(id):
            found.append(f"window {one['start']} is published otherwise")
        elif live and abs(held_ms := among.fired_at_ms[id] - alone.fired_at_ms[id]) > 2 * STEP_MS:
            found.append(f"window {one['start']} fired {held_ms:+} ms against alone")
    if alone.incidents != among.incidents:
        found.append(
            f"incident steps: {len(alone.incidents)} alone, {len(among.incidents)} among others, or other ones"
        )
    if (alone.late, alone.dead) != (among.late, among.dead):
        found.append(f"(late, dead): {alone.late, alone.dead} alone, {among.late, among.dead} among others")
    return found


def windows_within_bounds(records: Iterable[Produced]) -> dict[int, dict[str, list[Produced]]]:
    """By start: every distinct event of one stream in the one window that its time names, in order of time."""
    held: dict[int, dict[str, list[Produced]]] = {}
    distinct = {record.identity: record for record in records}
    for record in sorted(distinct.values(), key=lambda r: r.time_ms):
        start_ms = record.time_ms // SIZE_MS * SIZE_MS
        held.setdefault(start_ms, {}).setdefault(MODALITY[record.topic], []).append(record)
    return held


def unlike_the_promise(records: Sequence[Produced], result: StreamResult) -> list[str]:
    """What is wrong with the windows of a stream that stayed within its bounds; nothing if all is right."""
    expected, found = windows_within_bounds(records), []
    by_start = {int(window["start"]): window for window in result.windows.values()}
    if result.late or result.dead:
        found.append(f"{result.late} late and {result.dead} dead of events within their bounds")
    for start_ms in sorted(expected.keys() | by_start.keys()):
        if start_ms not in by_start or start_ms not in expected:
            found.append(f"window {start_ms} is {'missing' if start_ms in expected else 'of nothing'}")
            continue
        window, counts = by_start[start_ms], {name: len(held) for name, held in expected[start_ms].items()}
        if json.loads(window["events"]) != counts:
            found.append(f"window {start_ms} holds {window['events']}, not {counts}")
        elif not np.allclose(np.frombuffer(window["joint"], "<f4"), joint_of(start_ms, expected[start_ms]), atol=1e-6):
            found.append(f"window {start_ms} was embedded with other content")
        if window["revision"] != "0":
            found.append(f"window {start_ms} was fired before it was complete (revision {window['revision']})")
    repeats = len(records) - len({record.identity for record in records})
    counted = sum(int(window["duplicates"]) for window in result.windows.values())
    if counted != repeats:
        found.append(f"{counted} duplicates counted, {repeats} sent")
    return found


def joint_of(start_ms: int, held: Mapping[str, Sequence[Produced]]) -> NDArray[np.float32]:
    """The stand-in model's vector of these events."""
    window = WindowInput(
        start_ms=start_ms,
        end_ms=start_ms + SIZE_MS,
        readings=[(r.time_ms, json.loads(r.value)["values"]) for r in held.get("sensor", ())],
        clips=[(r.time_ms, samples_of(_SOUND_SEEDS[r.value])) for r in held.get("audio", ())],
        captions=[(r.time_ms, json.loads(r.value)["text"]) for r in held.get("caption", ())],
    )
    return StandInModel().embed([window])[0].joint
