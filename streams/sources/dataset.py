"""Windows for training and evaluation, from a recording or from what the input topics hold now.

The same decoding and the same windows as the service's, without its clocks: nothing is ever late, every event counts in
whatever order it comes. What the service would refuse is refused here too, and counted.

What was going on in a window of a recording comes from the recording itself, never from a model: the kinds of fault in
labels.csv that overlap it, and the sound that most of its clips are of, where clips lie in a folder of that name
(audio/<sound>/...).
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from models.interface import WindowInput
from models.training.stream_windows import StreamWindow
from streams.events.audio import ClipDecoder
from streams.events.decode import decode
from streams.events.envelope import decode_key
from streams.events.topics import MODALITY_OF, TOPICS
from streams.events.types import MODALITIES, Reason, Rejection
from streams.kafka.reader import read_all
from streams.settings import AudioSettings, Settings
from streams.sources.recording import Label, Recording, time_ms_of
from streams.windows.model_input import model_input
from streams.windows.pane import Pane

Headers = Sequence[tuple[str, bytes]]
Raw = tuple[str, bytes | None, bytes | None, Headers, int | None]  # topic (short name), key, value, headers, time in ms


@dataclass(slots=True)
class TrainingWindows:
    """Windows by start, then stream. `events`: how many were decoded and selected; `refused`: records by reason."""

    windows: list[StreamWindow]
    events: int = 0
    refused: Counter[Reason] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class WindowSelection:
    """Which events: times from_ms <= t < to_ms (event time), of one stream; and at most the newest `most` windows
    (None: all)."""

    from_ms: int | None = None
    to_ms: int | None = None
    stream: str | None = None
    most: int | None = 5_000

    def takes(self, stream: str, time_ms: int) -> bool:
        """Whether an event of this stream and event time is selected."""
        return (
            (self.stream is None or stream == self.stream)
            and (self.from_ms is None or time_ms >= self.from_ms)
            and (self.to_ms is None or time_ms < self.to_ms)
        )


@dataclass(frozen=True, slots=True)
class LabelledWindow:
    """`sound`: empty where the recording does not name one; `faults`: (kind, modalities that it shows in), sorted;
    empty for a calm window."""

    stream: str
    window: WindowInput
    sound: str
    faults: tuple[tuple[str, tuple[str, ...]], ...]


async def windows_of_recording(folder: Path, settings: Settings, selection: WindowSelection) -> TrainingWindows:
    """Raises RecordingError where the folder is no recording."""
    recording = Recording(folder)

    async def records() -> AsyncIterator[Raw]:
        for message in recording.messages():
            yield message.topic, message.key, message.value, message.headers, message.time_ms

    # A clip above the size limit of a message is sent as a reference to its file in the recording.
    roots = (*settings.audio.claim_roots, folder.resolve())
    return await _windowed(records(), settings, settings.audio.model_copy(update={"claim_roots": roots}), selection)


async def windows_of_topics(settings: Settings, bootstrap: str, selection: WindowSelection) -> TrainingWindows:
    """Everything that the input topics hold now. Raises KafkaUnreachable."""
    short = {settings.topic(topic): topic for topic in TOPICS.values()}

    async def records() -> AsyncIterator[Raw]:
        async for record in read_all(settings, bootstrap, list(short)):
            headers = [(name, value) for name, value in record.headers if value is not None]
            yield short[record.topic], record.key, record.value, headers, record.timestamp

    return await _windowed(records(), settings, settings.audio, selection)


async def labelled_windows(folder: Path, settings: Settings) -> list[LabelledWindow]:
    """Every window of a recording, by start and stream. Raises RecordingError where the folder is no recording."""
    labels, sounds = Recording(folder).labels(), _sounds_of_clips(folder)
    found = await windows_of_recording(folder, settings, WindowSelection(most=None))
    return [LabelledWindow(one.stream, one.window, _sound(one, sounds), _faults(one, labels)) for one in found.windows]


async def _windowed(
    records: AsyncIterator[Raw], settings: Settings, audio: AudioSettings, selection: WindowSelection
) -> TrainingWindows:
    size_ms, hop_ms, most = settings.window.size_ms, settings.window.hop_ms, selection.most
    panes: dict[tuple[int, str], Pane] = {}  # (start of the window in ms, stream); a pane is a whole window here
    found = TrainingWindows([])
    async with ClipDecoder(audio) as clips:
        async for topic, key, value, headers, timestamp_ms in records:
            modality = MODALITY_OF[topic]
            try:
                stream = decode_key(key)
                events = await decode(modality, value, headers, timestamp_ms, clips)
            except Rejection as rejection:
                found.refused[rejection.reason] += 1
                continue
            for event in events:
                if not selection.takes(stream, event.time_ms):
                    continue
                found.events += 1
                newest_ms = event.time_ms // hop_ms * hop_ms
                for start_ms in range(newest_ms, event.time_ms - size_ms, -hop_ms):
                    pane = panes.setdefault((start_ms, stream), Pane())
                    pane.arrived[MODALITIES.index(modality)][0].append(event)
            if most is not None and len(panes) > 2 * most:
                panes = dict(sorted(panes.items())[-most:])
    ordered = sorted(panes.items())
    for (start_ms, stream), pane in ordered if most is None else ordered[-most:]:
        pane.tidy()
        found.windows.append(StreamWindow(stream, model_input(start_ms, start_ms + size_ms, *pane.events)))
    return found


def _sounds_of_clips(folder: Path) -> dict[tuple[str, int], str]:
    """(stream, time of a clip in ms) -> the folder that the clip lies in, where that is one of several in `audio`."""
    found: dict[tuple[str, int], str] = {}
    path = folder / "audio.csv"
    if path.is_file():
        with path.open(newline="", encoding="utf-8-sig") as file:
            for row in csv.DictReader(file):
                parts = Path(row["file"]).parts
                try:
                    found[row["stream"], time_ms_of(row["time"])] = parts[-2] if len(parts) > 2 else ""
                except ValueError:
                    continue  # a clip without a time is refused by the decoder, and counted there
    return found


def _sound(one: StreamWindow, sounds: dict[tuple[str, int], str]) -> str:
    """The sound of most clips of a window; of several as frequent, the first by name."""
    counts = Counter(sounds.get((one.stream, time_ms), "") for time_ms, _ in one.window.clips)
    return max(sorted(counts), key=lambda name: counts[name]) if counts else ""


def _faults(one: StreamWindow, labels: Sequence[Label]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    window = one.window
    overlapping = {
        (label.kind, label.modalities)
        for label in labels
        if label.stream == one.stream and label.start_ms < window.end_ms and window.start_ms < label.end_ms
    }
    return tuple(sorted(overlapping))
