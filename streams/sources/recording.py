"""Recordings: a folder of CSVs and clips, read as messages in event-time order.

    sensors/<stream>.csv   time,<channel>,...      one row per reading; an empty cell is a missing value
    audio.csv              time,stream,file        time is the clip's first sample; the file is relative
    captions.csv           time,stream,text
    labels.csv             stream,start,end,kind,modalities   (optional, for scoring only)

Times are RFC 3339 or epoch ms. Cells that are not numbers and times that are not times are sent as they are: the
service rejects them into `dead-letters` with a reason. Files are read block by block and closed in between, so that
several hundred streams need neither as many open files nor much memory.
"""

from __future__ import annotations

import csv
import hashlib
import heapq
import math
import os
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from streams.errors import DataError

_CLAIM_BYTES = 524_288  # above this a clip travels as a claim check
_CACHE_BYTES = 33_554_432  # of clips kept, for recordings that use one clip many times
_BLOCK_BYTES = 65_536  # read from a file at a time
_LOOK_AHEAD = 1024  # rows by which a sensor file may be out of order
_SORTED_BYTES = 67_108_864  # an audio.csv or captions.csv out of order is sorted as a whole up to this size
_FIELD_BYTES = 16_777_216  # longest cell; the limit on captions is the service's
_CONTENT_TYPES = {".wav": "audio/wav", ".flac": "audio/flac", ".ogg": "audio/ogg", ".oga": "audio/ogg"}
_JSON = ("content-type", b"application/json")
_encode = msgspec.json.Encoder().encode


class RecordingError(DataError):
    """A folder that is not a valid recording; the message names file, line and the remedy."""


class Message(NamedTuple):
    """One record to be produced; `topic` is the short name, `events` how many events it holds."""

    time_ms: int
    topic: str
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]
    events: int = 1


class Label(NamedTuple):
    """A known fault, for scoring: start <= t < end (epoch ms)."""

    stream: str
    start_ms: int
    end_ms: int
    kind: str
    modalities: tuple[str, ...]


class _Row(NamedTuple):
    """A row with its sort key: event time, then file, then line."""

    order_ms: int
    source: int
    line: int
    time: int | str  # epoch ms, or the invalid text
    cells: list[str]


@dataclass(slots=True)
class _File:
    modality: str
    path: Path
    header: list[str]
    in_order: bool = True


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = datetime(1970, 1, 1, 0, 0, 0, 1000, UTC) - _EPOCH


def time_ms_of(text: str) -> int:
    """Epoch ms of an RFC 3339 string or of digits. Raises `ValueError`."""
    if text.isdecimal():
        if len(text) > 18:
            raise ValueError(f"{text[:40]} is not a time: too many digits")
        return int(text)
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // _MILLISECOND


class Recording:
    """A recording folder. Raises `RecordingError` if it is not one, or is empty."""

    streams: list[str]
    start_ms: int  # time of the first event
    end_ms: int  # just after the last one

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise RecordingError(f"{folder} is not a folder; make a recording with: sensorium simulate --out {folder}")
        self._files = list(self._open())
        if not self._files:
            raise RecordingError(f"{folder} has no sensors/*.csv, audio.csv or captions.csv: not a recording")
        self._clips = _ClipCache()
        self._survey()

    def _open(self) -> Iterator[_File]:
        for path in sorted((self.folder / "sensors").glob("*.csv")):
            yield _File("sensor", path, _checked_header(path, None))
        for modality, name, columns in (
            ("audio", "audio.csv", ["time", "stream", "file"]),
            ("caption", "captions.csv", ["time", "stream", "text"]),
        ):
            if (self.folder / name).is_file():
                yield _File(modality, self.folder / name, _checked_header(self.folder / name, columns))

    def _survey(self) -> None:
        """One pass over all rows: counts events, finds streams and time range, marks files that are out of order."""
        streams: set[str] = set()
        found: set[str] = set()
        self._counts = {"sensor": 0, "audio": 0, "caption": 0}
        first: int | None = None
        last: int | None = None
        for file in self._files:
            before: int | None = None
            if file.modality == "sensor":
                streams.add(file.path.stem)
            for line, cells in _rows(file.path):
                self._counts[file.modality] += 1
                if file.modality != "sensor":
                    streams.add(cells[1] if len(cells) > 1 else "")
                if file.modality == "audio":
                    self._check_clip(file.path, line, cells, found)
                try:
                    at = time_ms_of(cells[0])
                except ValueError:
                    continue
                first = at if first is None or at < first else first
                last = at if last is None or at > last else last
                if before is not None and at < before:
                    file.in_order = False
                before = at
        if first is None or last is None:
            raise RecordingError(
                f"{self.folder} has no event with a valid time; check the column time in its CSV files"
            )
        self.streams = sorted(streams)
        self.start_ms, self.end_ms = first, last + 1

    def _check_clip(self, path: Path, line: int, cells: list[str], found: set[str]) -> None:
        name = cells[2] if len(cells) > 2 else ""
        if name in found:
            return
        if not name or not (self.folder / name).is_file():
            where = f"{path}:{line}"
            raise RecordingError(f"{where}: there is no clip {self.folder / name}; put it there, or remove the line")
        found.add(name)

    def counts(self) -> dict[str, int]:
        """Events by modality."""
        return dict(self._counts)

    def labels(self) -> list[Label]:
        """The labels of labels.csv; empty without one."""
        path = self.folder / "labels.csv"
        return read_labels(path) if path.is_file() else []

    def messages(self) -> Iterator[Message]:
        """All events in event-time order; ties in the order of file names, then of rows.

        Sensor rows that are out of order by more than 1,024 rows come late. A row without a valid time follows the
        row before it.
        """
        builders = {"sensor": _reading, "audio": self._clip, "caption": _caption}
        by_source = [(builders[file.modality], file) for file in self._files]
        for row in heapq.merge(*(self._ordered(n, file) for n, file in enumerate(self._files))):
            build, file = by_source[row.source]
            yield build(file, row)

    def _ordered(self, source: int, file: _File) -> Iterator[_Row]:
        rows = self._timed(source, file)
        if file.in_order:
            return rows
        if file.modality != "sensor" and file.path.stat().st_size <= _SORTED_BYTES:
            return iter(sorted(rows))  # such a file is often written stream by stream
        return _looking_ahead(rows)

    def _timed(self, source: int, file: _File) -> Iterator[_Row]:
        order_ms = self.start_ms
        for line, cells in _rows(file.path):
            time: int | str
            try:
                time = order_ms = time_ms_of(cells[0])
            except ValueError:
                time = cells[0]
            yield _Row(order_ms, source, line, time, cells)

    def _clip(self, file: _File, row: _Row) -> Message:
        path = self.folder / row.cells[2]
        try:
            encoded, digest = self._clips.read(path)
        except OSError as error:
            raise RecordingError(f"{file.path}:{row.line}: cannot read {path}: {error.strerror}") from None
        key = row.cells[1].encode()
        if encoded is None:
            claim = {"time": row.time, "uri": path.resolve().as_uri(), "sha256": digest}
            return Message(row.order_ms, "audio-clips", key, _encode(claim), [_JSON])
        kind = _CONTENT_TYPES.get(path.suffix.lower(), "application/octet-stream")
        headers = [("time", str(row.time).encode()), ("content-type", kind.encode())]
        return Message(row.order_ms, "audio-clips", key, encoded, headers)


class _ClipCache:
    """Encoded clips, least recently used evicted first; of clips above the claim-check size only the SHA-256."""

    def __init__(self) -> None:
        self._entries: OrderedDict[Path, tuple[bytes | None, str]] = OrderedDict()
        self._bytes = 0

    def read(self, path: Path) -> tuple[bytes | None, str]:
        """Encoded bytes and "", or None and the SHA-256 (hex) of a clip that travels as a claim check."""
        cached = self._entries.get(path)
        if cached is not None:
            self._entries.move_to_end(path)
            return cached
        with path.open("rb") as file:
            encoded: bytes | None = file.read(_CLAIM_BYTES + 1)
            assert encoded is not None
            if len(encoded) > _CLAIM_BYTES:
                file.seek(0)
                encoded, digest = None, hashlib.file_digest(file, "sha256").hexdigest()
            else:
                digest = ""  # only claim checks need it
        self._entries[path] = encoded, digest
        self._bytes += len(encoded or b"")
        while self._bytes > _CACHE_BYTES:
            self._bytes -= len(self._entries.popitem(last=False)[1][0] or b"")
        return encoded, digest


def read_labels(path: Path) -> list[Label]:
    """Labels of a labels.csv, in its order. Raises `RecordingError`."""
    if not path.is_file():
        raise RecordingError(f"{path} does not exist")
    labels = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        try:
            for row in rows:
                modalities = tuple((row.get("modalities") or row["kind"]).replace("|", " ").replace("+", " ").split())
                start, end = time_ms_of(row["start"]), time_ms_of(row["end"])
                labels.append(Label(row["stream"], start, end, row["kind"], modalities))
        except (KeyError, ValueError, TypeError, AttributeError, csv.Error):
            where = f"{path}:{rows.line_num}"
            raise RecordingError(f"{where}: must have stream,start,end,kind with RFC 3339 times, in UTF-8") from None
    return labels


def _checked_header(path: Path, columns: list[str] | None) -> list[str]:
    header = next((cells for _, cells in _rows(path, skip=0)), None)
    if header is None:
        raise RecordingError(f"{path}:1: empty; the first line names the columns")
    if columns is None and (header[0] != "time" or len(header) < 2):
        raise RecordingError(f"{path}:1: the header must be time,<channel>,...")
    if columns is None and len(set(header)) < len(header):
        repeated = next(name for n, name in enumerate(header) if name in header[:n])
        raise RecordingError(f"{path}:1: there are two columns {repeated}; give each channel its own name")
    if columns is not None and header[: len(columns)] != columns:
        raise RecordingError(f"{path}:1: the header must be {','.join(columns)}")
    return header


def _rows(path: Path, skip: int = 1) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of each row that is not blank, without the header; the file is open only while a block is read."""
    csv.field_size_limit(_FIELD_BYTES)
    position = line = 0
    while True:
        with path.open("rb") as file:
            file.seek(position)
            block = file.readlines(_BLOCK_BYTES)
            if b"".join(block).count(b'"') % 2:  # ends inside a quoted cell, which may contain line ends
                for more in file:
                    block.append(more)
                    if more.count(b'"') % 2:
                        break
            position += sum(map(len, block))
        if not block:
            return
        reader = csv.reader(_decoded(path, line, block))
        try:
            for cells in reader:
                if not cells:
                    continue
                if skip:
                    skip -= 1
                else:
                    yield line + reader.line_num, cells
        except csv.Error as error:
            raise RecordingError(f"{path}:{line + reader.line_num}: {error}; correct or remove this line") from None
        line += len(block)


def _decoded(path: Path, line: int, block: list[bytes]) -> Iterator[str]:
    for n, raw in enumerate(block, start=line + 1):
        try:
            yield raw.decode("utf-8-sig" if n == 1 else "utf-8")
        except UnicodeDecodeError:
            raise RecordingError(f"{path}:{n}: not UTF-8; convert it: iconv -t UTF-8 {path.name}") from None


def _looking_ahead(rows: Iterator[_Row]) -> Iterator[_Row]:
    """Sort rows that are out of order by up to `_LOOK_AHEAD` rows."""
    heap: list[_Row] = []
    for row in rows:
        if len(heap) < _LOOK_AHEAD:
            heapq.heappush(heap, row)
        else:
            yield heapq.heappushpop(heap, row)
    while heap:
        yield heapq.heappop(heap)


def _reading(file: _File, row: _Row) -> Message:
    key, cells = os.fsencode(file.path.stem), row.cells
    if len(cells) > len(file.header):  # cells without a channel: sent as they are, for the service to reject
        return Message(row.order_ms, "sensor-readings", key, ",".join(cells).encode(), [])
    cells = cells + [""] * (len(file.header) - len(cells))
    values: list[Any]
    try:
        values = [float(cell) for cell in cells[1:]]
        if not math.isfinite(sum(values)):
            raise ValueError
    except ValueError:
        values = [_number(cell) for cell in cells[1:]]
    reading = {"time": row.time, "values": dict(zip(file.header[1:], values, strict=True))}
    return Message(row.order_ms, "sensor-readings", key, _encode(reading), [])


def _number(cell: str) -> float | str | None:
    if cell == "":
        return None
    try:
        number = float(cell)
    except ValueError:
        return cell
    return number if math.isfinite(number) else cell


def _caption(_: _File, row: _Row) -> Message:
    stream = row.cells[1] if len(row.cells) > 1 else ""
    text = ",".join(row.cells[2:])  # an unquoted comma is part of the text
    return Message(row.order_ms, "captions", stream.encode(), _encode({"time": row.time, "text": text}), [])
