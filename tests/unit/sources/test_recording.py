"""A recording folder as messages: in order of event time, complete, invalid rows included."""

from __future__ import annotations

import hashlib
import random
import resource
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.sources.recording import (
    Label,
    Recording,
    RecordingError,
    read_labels,
    time_ms_of,
)

BASE = 1_767_225_600_000  # 2026-01-01T00:00:00Z


def _write(folder: Path, name: str, *lines: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def _values(folder: Path) -> list[Any]:
    return [msgspec.json.decode(m.value) for m in Recording(folder).messages()]


def test_all_inputs_come_out_in_order_of_event_time(tmp_path: Path) -> None:
    _write(tmp_path, "sensors/a.csv", "time,flow,heat", "2026-01-01T00:00:01.000Z,1.5,", f"{BASE + 3000},2,-3e2")
    _write(tmp_path, "sensors/b.csv", "time,flow", "2026-01-01T01:00:02+01:00,7")
    _write(tmp_path, "audio.csv", "time,stream,file", "2026-01-01T00:00:02Z,a,clips/x.ogg")
    _write(tmp_path, "captions.csv", "time,stream,text", '2026-01-01T00:00:00Z,b,"öl, überall"')
    _write(tmp_path, "clips/x.ogg", "sound")
    recording = Recording(tmp_path)
    clip = [("time", str(BASE + 2000).encode()), ("content-type", b"audio/ogg")]
    assert [(m.time_ms - BASE, m.topic, m.key, m.headers) for m in recording.messages()] == [
        (0, "captions", b"b", []),
        (1000, "sensor-readings", b"a", []),
        (2000, "sensor-readings", b"b", []),
        (2000, "audio-clips", b"a", clip),
        (3000, "sensor-readings", b"a", []),
    ]
    values = [m.value for m in recording.messages()]
    assert msgspec.json.decode(values[0]) == {"time": BASE, "text": "öl, überall"}
    assert msgspec.json.decode(values[1]) == {"time": BASE + 1000, "values": {"flow": 1.5, "heat": None}}
    assert values[3] == b"sound\n"
    assert msgspec.json.decode(values[4])["values"] == {"flow": 2.0, "heat": -300.0}
    assert recording.counts() == {"sensor": 3, "audio": 1, "caption": 1}
    assert (recording.streams, recording.start_ms, recording.end_ms) == (["a", "b"], BASE, BASE + 3001)


@pytest.mark.parametrize(
    "cells", ["yesterday,1", f"{BASE + 1},warm", f"{BASE + 1},nan", f"{BASE + 1},1,2", f"{'9' * 30},1"]
)
def test_an_invalid_row_is_sent_as_it_is_after_the_row_before(tmp_path: Path, cells: str) -> None:
    _write(tmp_path, "sensors/a.csv", "time,flow", f"{BASE},1", cells, f"{BASE + 2},3")
    recording = Recording(tmp_path)
    messages = list(recording.messages())
    assert recording.counts()["sensor"] == len(messages) == 3
    assert all(cell.encode() in messages[1].value for cell in cells.split(","))
    assert messages[1].time_ms in (BASE, BASE + 1)


def test_large_values_are_not_taken_for_invalid_ones(tmp_path: Path) -> None:
    _write(tmp_path, "sensors/a.csv", "time,x,y", f"{BASE},1e308,1e308", f"{BASE + 1},5")
    assert [value["values"] for value in _values(tmp_path)] == [{"x": 1e308, "y": 1e308}, {"x": 5.0, "y": None}]


def test_sensor_rows_out_of_order_by_a_thousand_rows_come_in_order(tmp_path: Path) -> None:
    times = [BASE + n * 1000 for n in range(5000)]
    rng = random.Random(1)
    rows = sorted(times, key=lambda t: t + rng.uniform(0, 900_000))
    assert rows != times
    _write(tmp_path, "sensors/a.csv", "time,flow", *(f"{t},1" for t in rows))
    assert [m.time_ms for m in Recording(tmp_path).messages()] == times


def test_captions_written_stream_by_stream_come_in_order(tmp_path: Path) -> None:
    rows = [f"{BASE + n},{stream},all well" for stream in "ab" for n in range(3000)]
    _write(tmp_path, "captions.csv", "time,stream,text", *rows)
    messages = list(Recording(tmp_path).messages())
    assert [m.time_ms for m in messages] == sorted(BASE + n for n in range(3000) for _ in "ab")
    assert Counter(m.key for m in messages) == {b"a": 3000, b"b": 3000}


def test_rows_over_many_blocks_are_complete_even_with_line_ends_in_cells(tmp_path: Path) -> None:
    texts = [f'note {n}\nsecond line, "quoted" {"x" * (n % 90)}' for n in range(4000)]
    quoted = ['"' + text.replace('"', '""') + '"' for text in texts]
    _write(tmp_path, "captions.csv", "time,stream,text", *(f"{BASE + n},a,{q}" for n, q in enumerate(quoted)))
    assert (tmp_path / "captions.csv").stat().st_size > 3 * 65_536
    assert [value["text"] for value in _values(tmp_path)] == texts


def test_a_caption_that_is_too_long_is_sent_for_the_service_to_reject(tmp_path: Path) -> None:
    _write(tmp_path, "captions.csv", "time,stream,text", f"{BASE},a,{'x' * 1_000_000}")
    assert len(_values(tmp_path)[0]["text"]) == 1_000_000


def test_windows_line_ends_a_byte_order_mark_and_blank_lines_change_nothing(tmp_path: Path) -> None:
    _write(tmp_path, "one/sensors/ölpumpe.csv", "time,wärme", f"{BASE},1", f"{BASE + 1},2")
    (tmp_path / "two/sensors").mkdir(parents=True)
    text = f"\r\ntime,wärme\r\n{BASE},1\r\n\r\n{BASE + 1},2"
    (tmp_path / "two/sensors/ölpumpe.csv").write_bytes(text.removeprefix("\r\n").encode("utf-8-sig"))
    assert list(Recording(tmp_path / "two").messages()) == list(Recording(tmp_path / "one").messages())


def test_many_streams_do_not_need_many_open_files(tmp_path: Path) -> None:
    for n in range(300):
        _write(tmp_path, f"sensors/s{n:03d}.csv", "time,flow", *(f"{BASE + t},1" for t in range(3)))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    try:
        keys = [(m.time_ms - BASE, m.key) for m in Recording(tmp_path).messages()]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert keys == [(t, f"s{n:03d}".encode()) for t in range(3) for n in range(300)]


def test_a_clip_above_half_a_mebibyte_travels_as_a_claim_check(tmp_path: Path) -> None:
    _write(tmp_path, "audio.csv", "time,stream,file", f"{BASE},a,fits.wav", f"{BASE + 1},a,large.flac")
    (tmp_path / "fits.wav").write_bytes(bytes(524_288))
    large = random.Random(2).randbytes(524_289)
    (tmp_path / "large.flac").write_bytes(large)
    fits, claim = Recording(tmp_path).messages()
    assert (fits.value, fits.headers[1]) == (bytes(524_288), ("content-type", b"audio/wav"))
    assert claim.headers == [("content-type", b"application/json")]
    assert msgspec.json.decode(claim.value) == {
        "time": BASE + 1,
        "uri": (tmp_path / "large.flac").resolve().as_uri(),
        "sha256": hashlib.sha256(large).hexdigest(),
    }


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("sensors/a.csv", [], "a.csv:1: empty"),
        ("sensors/a.csv", ["when,flow", "1,1"], "a.csv:1: the header must be time"),
        ("sensors/a.csv", ["time,flow,flow", "1,1,1"], "a.csv:1: there are two columns flow"),
        ("sensors/a.csv", ["time,flow"], "no event with a valid time"),
        ("captions.csv", ["time,text", "1,x"], "captions.csv:1: the header must be time,stream,text"),
        ("audio.csv", ["time,stream,file", "1,a,gone.wav"], "audio.csv:2: there is no clip .*gone.wav; put it there"),
        ("audio.csv", ["time,stream,file", "1,a"], "audio.csv:2: there is no clip"),
    ],
)
def test_a_folder_that_is_not_a_recording_is_rejected_with_file_and_line(
    tmp_path: Path, name: str, lines: list[str], message: str
) -> None:
    _write(tmp_path, name, *lines)
    with pytest.raises(RecordingError, match=message):
        Recording(tmp_path)


def test_a_missing_or_empty_folder_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="sensorium simulate --out"):
        Recording(tmp_path / "nowhere")
    with pytest.raises(RecordingError, match="not a recording"):
        Recording(tmp_path)


def test_text_that_is_not_utf8_is_rejected_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_bytes(b"time,stream,text\n1,a,fine\n2,a,\xfcber\n")
    with pytest.raises(RecordingError, match=r"captions\.csv:3: not UTF-8; convert it"):
        Recording(tmp_path)


def test_labels_are_read_and_an_invalid_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    _write(
        tmp_path, "labels.csv", "stream,start,end,kind,modalities", f"a,{BASE},2026-01-01T00:01:00Z,all,sensor audio"
    )
    assert read_labels(path) == [Label("a", BASE, BASE + 60_000, "all", ("sensor", "audio"))]
    _write(tmp_path, "labels.csv", "stream,start,end,kind,modalities", "a,soon,later,all,sensor")
    with pytest.raises(RecordingError, match=r"labels\.csv:2"):
        read_labels(path)


@given(st.datetimes(), st.integers(0, 999))
def test_a_time_reads_the_same_as_rfc_3339_and_as_epoch_ms(moment: Any, ms: int) -> None:
    text = moment.replace(microsecond=ms * 1000).isoformat(timespec="milliseconds")
    at = time_ms_of(text + "Z")
    assert at % 1000 == ms
    assert at < 0 or time_ms_of(str(at)) == at
