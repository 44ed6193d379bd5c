"""Recordings: a folder of CSVs and clips, read as messages in event-time order.

    sensors/<stream>.csv   time,<channel>,...      one row per reading; an empty cell is a missing value
    audio.csv              time,stream,file        time is the clip's first sample; the file is relative
    captions.csv           time,stream,text
    labels.csv             stream,start,end,kind,modalities   (optional, for scoring only)

Times are RFC 3339 or epoch ms. A cell that is no number and a time that is none are sent as they are: the service says
what is wrong with them, in `dead-letters`.
"""

from __future__ import annotations

import csv
import hashlib
import heapq
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

_CLAIM_BYTES = 524_288  # above this a clip travels as a claim check
_LOOK_AHEAD = 256  # rows of one file that may be out of order
_CONTENT_TYPES = {".wav": "audio/wav", ".flac": "audio/flac", ".ogg": "audio/ogg", ".oga": "audio/ogg"}
_encode = msgspec.json.Encoder().encode


class RecordingError(Exception):
    """A folder that is no recording; names file and line, and what would mend it."""


class Message(NamedTuple):
    """One record to be produced; `topic` is the short name, `events` how many events it holds."""

    time_ms: int
    topic: str
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]
    events: int = 1


class Label(NamedTuple):
    """Something that happened, for scoring: start <= t < end."""

    stream: str
    start_ms: int
    end_ms: int
    kind: str
    modalities: tuple[str, ...]


def time_ms_of(text: str) -> int:
    """Epoch ms of an RFC 3339 string or of digits. Raises `ValueError`."""
    if text.isdecimal():
        return int(text)
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // _MILLISECOND


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = datetime(1970, 1, 1, 0, 0, 0, 1000, UTC) - _EPOCH


class Recording:
    """A recording folder. Raises `RecordingError` when it is none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise RecordingError(f"{folder} is not a folder; make a recording with: sensorium simulate --out {folder}")
        self._sensors = sorted((folder / "sensors").glob("*.csv"))
        self._audio = folder / "audio.csv"
        self._captions = folder / "captions.csv"
        if not (self._sensors or self._audio.is_file() or self._captions.is_file()):
            raise RecordingError(f"{folder} holds no sensors/*.csv, no audio.csv and no captions.csv: not a recording")
        self._survey()

    def _survey(self) -> None:
        """One pass over all files: headers are checked, events counted, the span of time found."""
        streams: set[str] = set()
        self._counts = {"sensor": 0, "audio": 0, "caption": 0}
        first, last = None, None
        for modality, path, columns in self._files():
            with path.open(newline="", encoding="utf-8-sig") as file:
                rows = csv.reader(file)
                header = next(rows, None)
                _check_header(path, header, columns)
                for row in rows:
                    if not row:
                        continue
                    self._counts[modality] += 1
                    streams.add(path.stem if modality == "sensor" else row[1] if len(row) > 1 else "")
                    try:
                        at = time_ms_of(row[0])
                    except ValueError:
                        continue
                    first = at if first is None or at < first else first
                    last = at if last is None or at > last else last
        if first is None or last is None:
            raise RecordingError(f"{self.folder} holds no event with a time; see `time` in its CSV files")
        self.streams = sorted(streams)
        self.start_ms, self.end_ms = first, last + 1

    def _files(self) -> Iterator[tuple[str, Path, list[str] | None]]:
        for path in self._sensors:
            yield "sensor", path, None
        if self._audio.is_file():
            yield "audio", self._audio, ["time", "stream", "file"]
        if self._captions.is_file():
            yield "caption", self._captions, ["time", "stream", "text"]

    def counts(self) -> dict[str, int]:
        """Events by modality."""
        return dict(self._counts)

    def labels(self) -> list[Label]:
        """What happened, or nothing where the recording does not say."""
        path = self.folder / "labels.csv"
        return read_labels(path) if path.is_file() else []

    def messages(self) -> Iterator[Message]:
        """All events in event-time order; ties in the order of file names, then of rows."""
        sources: list[Iterator[tuple[int, int, int, Message]]] = []
        for n, (modality, path, _) in enumerate(self._files()):
            rows = {"sensor": _readings, "audio": self._clips, "caption": _captions}[modality](path)
            sources.append(_in_order(n, rows))
        for _, _, _, message in heapq.merge(*sources):
            yield message

    def _clips(self, path: Path) -> Iterator[Message]:
        for number, row in _rows(path):
            at, stream, name = _padded(row, 3)
            file = self.folder / name
            try:
                encoded, digest = _clip(file)
            except OSError as error:
                raise RecordingError(f"{path}:{number}: cannot read {file}: {error.strerror}") from None
            kind = _CONTENT_TYPES.get(file.suffix.lower(), "application/octet-stream")
            if len(encoded) > _CLAIM_BYTES:
                claim = {"time": _time_or_text(at), "uri": file.resolve().as_uri(), "sha256": digest}
                yield Message(_order(at), "audio-clips", stream.encode(), _encode(claim), [_JSON])
            else:
                headers = [("time", str(_time_or_text(at)).encode()), ("content-type", kind.encode())]
                yield Message(_order(at), "audio-clips", stream.encode(), encoded, headers)


_JSON = ("content-type", b"application/json")


def read_labels(path: Path) -> list[Label]:
    """Labels of a labels.csv. Raises `RecordingError`."""
    if not path.is_file():
        raise RecordingError(f"{path} does not exist")
    labels = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            try:
                modalities = tuple((row.get("modalities") or row["kind"]).replace("|", " ").replace("+", " ").split())
                start, end = time_ms_of(row["start"]), time_ms_of(row["end"])
                labels.append(Label(row["stream"], start, end, row["kind"], modalities))
            except (KeyError, ValueError, TypeError, AttributeError):
                raise RecordingError(f"{path}:{number}: needs stream,start,end,kind with RFC 3339 times") from None
    return labels


def _check_header(path: Path, header: list[str] | None, columns: list[str] | None) -> None:
    if header is None:
        raise RecordingError(f"{path}:1: empty; the first line names the columns")
    if columns is None and (header[0] != "time" or len(header) < 2):
        raise RecordingError(f"{path}:1: the header must be time,<channel>,...")
    if columns is not None and header[: len(columns)] != columns:
        raise RecordingError(f"{path}:1: the header must be {','.join(columns)}")


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file)
        next(rows, None)
        for row in rows:
            if row:
                yield rows.line_num, row


def _readings(path: Path) -> Iterator[Message]:
    """Files are opened in turn and read in blocks: several hundred streams do not hold several hundred files open."""
    key = path.stem.encode()
    with path.open(newline="", encoding="utf-8-sig") as file:
        channels = next(csv.reader([file.readline()]))[1:]
        position = file.tell()
    while True:
        with path.open(newline="", encoding="utf-8-sig") as file:
            file.seek(position)
            lines = file.readlines(1_048_576)
            position = file.tell()
        if not lines:
            return
        for row in csv.reader(lines):
            if row:
                values = {c: _number(cell) for c, cell in zip(channels, row[1:], strict=False)}
                value = _encode({"time": _time_or_text(row[0]), "values": values})
                yield Message(_order(row[0]), "sensor-readings", key, value, [])


def _captions(path: Path) -> Iterator[Message]:
    for _, row in _rows(path):
        at, stream, text = _padded(row, 3)
        value = _encode({"time": _time_or_text(at), "text": text})
        yield Message(_order(at), "captions", stream.encode(), value, [])


def _in_order(source: int, messages: Iterable[Message]) -> Iterator[tuple[int, int, int, Message]]:
    """Sort rows that are out of order by up to `_LOOK_AHEAD` places."""
    number = count()
    heap: list[tuple[int, int, int, Message]] = []
    for message in messages:
        heapq.heappush(heap, (message.time_ms, source, next(number), message))
        if len(heap) > _LOOK_AHEAD:
            yield heapq.heappop(heap)
    while heap:
        yield heapq.heappop(heap)


@lru_cache(maxsize=256)
def _clip(path: Path) -> tuple[bytes, str]:
    encoded = path.read_bytes()
    return encoded, hashlib.sha256(encoded).hexdigest()


def _padded(row: list[str], columns: int) -> list[str]:
    return (row + [""] * columns)[:columns]


def _number(cell: str) -> Any:
    if cell == "":
        return None
    try:
        number = float(cell)
    except ValueError:
        return cell
    return number if np.isfinite(number) else cell


def _time_or_text(text: str) -> int | str:
    try:
        return time_ms_of(text)
    except ValueError:
        return text


def _order(text: str) -> int:
    try:
        return time_ms_of(text)
    except ValueError:
        return 0  # no time: sent first, and refused by the service


def shuffled(messages: Iterable[Message], bound_ms: int, seed: int) -> Iterator[Message]:
    """Messages out of order by less than `bound_ms` of event time."""
    rng = np.random.default_rng(seed)
    heap: list[tuple[int, int, Message]] = []
    for n, message in enumerate(messages):
        heapq.heappush(heap, (message.time_ms + int(rng.integers(bound_ms)), n, message))
        while heap and heap[0][0] <= message.time_ms:
            yield heapq.heappop(heap)[2]
    while heap:
        yield heapq.heappop(heap)[2]


def duplicated(messages: Iterable[Message], share: float, seed: int) -> Iterator[Message]:
    """Messages of which a share comes twice, the second time a few messages later."""
    rng = np.random.default_rng(seed)
    later: list[tuple[int, Message]] = []
    for n, message in enumerate(messages):
        yield message
        if rng.random() < share:
            later.append((n + int(rng.integers(1, 20)), message))
        while later and later[0][0] <= n:
            yield later.pop(0)[1]
    for _, message in later:
        yield message
