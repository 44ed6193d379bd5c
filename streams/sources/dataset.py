"""What a model is trained on: the windows of a recording, or of what is in the input topics now.

The same decoding and the same windows as the service's, without its clocks: everything that is there counts, in
whatever order it came, and what the service would refuse is refused here and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.interface import WindowInput
from models.training.own_stream import StreamWindow
from streams.events.audio import ClipDecoder
from streams.events.envelope import decode_key
from streams.events.json_codec import decode_caption, decode_readings
from streams.events.topics import TOPICS
from streams.events.types import MODALITIES, Event, Modality, Reason, Rejection
from streams.kafka.reader import read_all
from streams.settings import AudioSettings, Settings
from streams.sources.recording import Recording
from streams.windows.pane import Pane

_MODALITY = {topic: modality for modality, topic in TOPICS.items()}
Raw = tuple[str, bytes | None, bytes | None, Sequence[tuple[str, bytes]], int | None]  # topic, key, value, headers, ms


@dataclass(slots=True)
class Lessons:
    """Windows by time, then stream, and what became of the events."""

    windows: list[StreamWindow]
    events: int = 0
    refused: Counter[Reason] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which windows: event times from <= t < to (ms), one stream, at most the newest so many."""

    from_ms: int | None = None
    to_ms: int | None = None
    stream: str | None = None
    most: int = 5_000

    def takes(self, stream: str, time_ms: int) -> bool:
        return (
            (self.stream is None or stream == self.stream)
            and (self.from_ms is None or time_ms >= self.from_ms)
            and (self.to_ms is None or time_ms < self.to_ms)
        )


async def lessons_of_recording(folder: Path, settings: Settings, chosen: Chosen) -> Lessons:
    """Raises RecordingError where the folder is no recording."""
    recording = Recording(folder)

    async def messages() -> AsyncIterator[Raw]:
        for message in recording.messages():
            yield message.topic, message.key, message.value, message.headers, message.time_ms

    roots = (*settings.audio.claim_roots, folder.resolve())
    return await _gather(messages(), settings, settings.audio.model_copy(update={"claim_roots": roots}), chosen)


async def lessons_of_topics(settings: Settings, bootstrap: str, chosen: Chosen) -> Lessons:
    """Everything that the input topics hold now. Raises KafkaUnreachable."""
    short = {settings.topic(topic): topic for topic in TOPICS.values()}

    async def records() -> AsyncIterator[Raw]:
        async for record in read_all(settings, bootstrap, list(short)):
            headers = [(name, value) for name, value in record.headers if value is not None]
            yield short[record.topic], record.key, record.value, headers, record.timestamp

    return await _gather(records(), settings, settings.audio, chosen)


async def _gather(raw: AsyncIterator[Raw], settings: Settings, audio: AudioSettings, chosen: Chosen) -> Lessons:
    size_ms, hop_ms = settings.window.size_ms, settings.window.hop_ms
    panes: dict[tuple[int, str], Pane] = {}
    lessons = Lessons([])
    async with ClipDecoder(audio) as clips:
        async for topic, key, value, headers, timestamp_ms in raw:
            modality = _MODALITY[topic]
            try:
                stream = decode_key(key)
                events = await _decoded(modality, value, headers, timestamp_ms, clips)
            except Rejection as rejection:
                lessons.refused[rejection.reason] += 1
                continue
            for event in events:
                if not chosen.takes(stream, event.time_ms):
                    continue
                lessons.events += 1
                newest = event.time_ms // hop_ms * hop_ms
                for start_ms in range(newest, event.time_ms - size_ms, -hop_ms):
                    pane = panes.setdefault((start_ms, stream), Pane(start_ms))
                    pane.events[MODALITIES.index(modality)].append(event)
            if len(panes) > 2 * chosen.most:
                panes = dict(sorted(panes.items())[-chosen.most :])
    for (start_ms, stream), pane in sorted(panes.items())[-chosen.most :]:
        pane.tidy()
        lessons.windows.append(StreamWindow(stream, _input_of(pane, start_ms, start_ms + size_ms)))
    return lessons


async def _decoded(
    modality: Modality, value: bytes | None, headers: Any, timestamp_ms: int | None, clips: ClipDecoder
) -> Sequence[Event]:
    if modality is Modality.SENSOR:
        return decode_readings(value, headers, timestamp_ms)
    if modality is Modality.AUDIO:
        return [await clips.decode(value, headers, timestamp_ms)]
    return [decode_caption(value or b"", headers, timestamp_ms)]


def _input_of(pane: Pane, start_ms: int, end_ms: int) -> WindowInput:
    readings, clips, captions = pane.events
    units: dict[str, str] = {}
    for reading in readings:
        units.update(reading.units or {})
    return WindowInput(
        start_ms,
        end_ms,
        [(reading.time_ms, reading.values) for reading in readings],
        [(clip.time_ms, clip.samples) for clip in clips],
        [(caption.time_ms, caption.text) for caption in captions],
        units,
    )
