"""A recording as windows with labels, for training and evaluation: no Kafka, the same decoding and windowing.

What was going on in a window is told by the recording itself, never by a model: the kinds of fault in labels.csv that
overlap it, and the sound that most of its clips are of, where clips lie in a folder of that name (audio/<sound>/...).
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.interface import WindowInput
from streams.events.audio import ClipDecoder
from streams.events.json_codec import decode_caption, decode_readings
from streams.events.topics import TOPICS
from streams.events.types import MODALITIES, Event, Modality, Rejection
from streams.pipeline.ingest import window_config
from streams.settings import AudioSettings, WindowSettings
from streams.sources.recording import Label, Message, Recording, time_ms_of
from streams.windows.operator import PartitionWindows
from streams.windows.types import Fired, Output, Record

_INDEX = {TOPICS[modality]: i for i, modality in enumerate(MODALITIES)}


@dataclass(frozen=True, slots=True)
class LabelledWindow:
    """`sound`: empty where the recording does not tell; `faults`: kinds with the modalities that they show in, sorted,
    empty for a calm window."""

    stream: str
    content: WindowInput
    sound: str
    faults: tuple[tuple[str, tuple[str, ...]], ...]


async def labelled_windows(folder: Path, window: WindowSettings, audio: AudioSettings) -> list[LabelledWindow]:
    """Every window of a recording, by start and stream. What cannot be decoded is left out, as the service would."""
    recording = Recording(folder)
    labels, sounds = recording.labels(), _sounds(folder)
    fired = [window async for window in _fired(recording, window, audio)]
    found = [LabelledWindow(one.stream, _content(one), _sound(one, sounds), _faults(one, labels)) for one in fired]
    return sorted(found, key=lambda one: (one.content.start_ms, one.stream))


async def _fired(recording: Recording, window: WindowSettings, audio: AudioSettings) -> AsyncIterator[Fired]:
    config = window_config(window)
    operator = PartitionWindows(config)
    newest: dict[tuple[str, int], Fired] = {}  # a late event fires a window again: the last word counts

    def keep(outputs: Sequence[Output]) -> None:
        for output in outputs:
            if isinstance(output, Fired):
                newest[output.stream, output.start_ms] = output

    async with ClipDecoder(audio) as clips:
        for offset, message in enumerate(recording.messages()):
            try:
                events = await _decode(message, clips)
            except Rejection:
                continue
            stream = message.key.decode()
            operator.push(_INDEX[message.topic], [Record(offset, stream, event) for event in events])
            if offset % 500 == 499:
                keep(operator.advance())
    keep(operator.advance())
    # the end: every input is quiet, and has been for long enough
    operator.tick(config.idle_timeout_ms, [True] * len(MODALITIES))
    keep(operator.advance())
    operator.tick(2 * config.idle_timeout_ms + config.allowed_lateness_ms, [True] * len(MODALITIES))
    keep(operator.advance())
    for output in newest.values():
        yield output


async def _decode(message: Message, clips: ClipDecoder) -> Sequence[Event]:
    if message.topic == TOPICS[Modality.SENSOR]:
        return decode_readings(message.value, message.headers, message.time_ms)
    if message.topic == TOPICS[Modality.CAPTION]:
        return [decode_caption(message.value, message.headers, message.time_ms)]
    return [await clips.decode(message.value, message.headers, message.time_ms)]


def _content(window: Fired) -> WindowInput:
    units = {name: unit for reading in window.readings for name, unit in (reading.units or {}).items()}
    return WindowInput(
        start_ms=window.start_ms,
        end_ms=window.end_ms,
        readings=[(reading.time_ms, reading.values) for reading in window.readings],
        clips=[(clip.time_ms, clip.samples) for clip in window.clips],
        captions=[(caption.time_ms, caption.text) for caption in window.captions],
        units=units,
    )


def _sounds(folder: Path) -> dict[tuple[str, int], str]:
    """(stream, time of a clip) -> the folder that the clip lies in, where that is one of several under `audio`."""
    found: dict[tuple[str, int], str] = {}
    path = folder / "audio.csv"
    if path.is_file():
        with path.open(newline="", encoding="utf-8-sig") as file:
            for row in csv.DictReader(file):
                parts = Path(row["file"]).parts
                try:
                    found[row["stream"], time_ms_of(row["time"])] = parts[-2] if len(parts) > 2 else ""
                except ValueError:
                    continue
    return found


def _sound(window: Fired, sounds: dict[tuple[str, int], str]) -> str:
    heard = Counter(sounds.get((window.stream, clip.time_ms), "") for clip in window.clips)
    return max(sorted(heard), key=lambda name: heard[name]) if heard else ""


def _faults(window: Fired, labels: Sequence[Label]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple(
        sorted(
            {
                (label.kind, label.modalities)
                for label in labels
                if label.stream == window.stream and label.start_ms < window.end_ms and window.start_ms < label.end_ms
            }
        )
    )
