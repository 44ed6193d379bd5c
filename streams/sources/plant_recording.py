"""Writes the simulated plant as a recording folder with labelled faults: `sensorium simulate --out DIR`."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import msgspec

from streams.events.envelope import format_ms
from streams.sources.recording import RecordingError
from streams.sources.simulator import Plant, plan_faults

_START_MS = 1_767_225_600_000  # 2026-01-01: the same recording whenever it is made
_CALM_MS = 600_000  # before the first fault: enough to learn what is normal


def record(folder: Path, *, streams: int, seed: int, seconds: float, noise: float = 1.0) -> int:
    """Write `seconds` of the plant as a recording, calm for the first ten minutes; returns its number of faults."""
    end_ms = _START_MS + int(seconds * 1000)
    faults = plan_faults(_START_MS + _CALM_MS, end_ms - 30_000, seed=seed, streams=streams)
    write_recording(Plant(streams, seed, faults, noise), _START_MS, end_ms, folder)
    return len(faults)


def write_recording(plant: Plant, from_ms: int, to_ms: int, folder: Path) -> None:
    """Write the events of `plant.messages` as a recording folder, without units and sources: the format has none.

    Raises `RecordingError` if the folder exists and is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RecordingError(f"{folder} exists already; remove it or choose another folder")
    (folder / "sensors").mkdir(parents=True)
    (folder / "audio").mkdir()
    rows: dict[str, list[list[str]]] = {"audio": [], "captions": []}
    sensors: dict[str, list[Mapping[str, object]]] = {}
    written: dict[bytes, str] = {}
    for message in plant.messages(from_ms, to_ms):
        stream, at = message.key.decode(), format_ms(message.time_ms)
        if message.topic == "sensor-readings":
            sensors.setdefault(stream, []).append({"time": at} | msgspec.json.decode(message.value)["values"])
        elif message.topic == "audio-clips":
            name = written.get(message.value)
            if name is None:
                name = written[message.value] = f"audio/{stream}-{len(written):03d}.wav"
                (folder / name).write_bytes(message.value)
            rows["audio"].append([at, stream, name])
        else:
            rows["captions"].append([at, stream, msgspec.json.decode(message.value)["text"]])
    for stream, readings in sensors.items():
        with (folder / "sensors" / f"{stream}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(readings[0]))
            writer.writeheader()
            writer.writerows(readings)
    labels = [
        [label.stream, format_ms(label.start_ms), format_ms(label.end_ms), label.kind, " ".join(label.modalities)]
        for label in plant.labels()
        if label.start_ms < to_ms and label.end_ms > from_ms
    ]
    _table(folder / "audio.csv", ["time", "stream", "file"], rows["audio"])
    _table(folder / "captions.csv", ["time", "stream", "text"], rows["captions"])
    _table(folder / "labels.csv", ["stream", "start", "end", "kind", "modalities"], labels)


def _table(path: Path, header: list[str], rows: list[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
