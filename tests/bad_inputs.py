"""Every known kind of bad input, each with the reason it must be rejected for.

`BAD_INPUTS` is used by the unit tests against the decoders and by the tests on real Kafka. The limits are those of
`AUDIO`, the settings a worker under test must have; `CLAIM_ROOT` is the folder that its claim checks may point into.
Large values and sounds are made when `value` is read.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from streams.events.types import Reason
from streams.settings import AudioSettings

CLAIM_ROOT = Path(__file__).resolve().parent
AUDIO = AudioSettings(claim_roots=(CLAIM_ROOT,))
NOW_MS = 1_800_000_000_000  # event time of inputs whose time is right; also the start of the test harness's clock
READINGS, CLIPS, CAPTIONS = "sensor-readings", "audio-clips", "captions"


@dataclass(frozen=True)
class BadInput:
    """One record that must end in `dead-letters` with `reason`."""

    name: str
    topic: str
    key: bytes | None
    make: Callable[[], bytes | None]
    headers: tuple[tuple[str, bytes], ...]
    reason: Reason

    @property
    def value(self) -> bytes | None:
        return self.make()


def encode(samples: Any, rate: int, format: str, subtype: str | None = None) -> bytes:
    """A sound file of `samples`, shape (frames,) or (frames, channels), as libsndfile writes it."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype)
    return file.getvalue()


def tone(seconds: float = 1.0, rate: int = 16_000, hertz: float = 440.0) -> Any:
    """A sine at half of full scale, shape (frames,)."""
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def wav_header(*, tag: int = 1, channels: int = 1, rate: int = 16_000, bits: int = 16, data: int = 0) -> bytes:
    """RIFF and format chunk and the head of a data chunk of `data` bytes."""
    block = channels * bits // 8
    form = struct.pack("<HHIIHH", tag, channels, rate, rate * block & 0xFFFFFFFF, block & 0xFFFF, bits)
    return (
        b"RIFF"
        + struct.pack("<I", 36 + data)
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + form
        + b"data"
        + struct.pack("<I", data)
    )


@cache
def flac_bomb() -> bytes:
    """A FLAC file of a few kilobytes that declares, and contains, an hour."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 8_000, 1, format="FLAC", subtype="PCM_16") as sound:
        for _ in range(60):
            sound.write(np.zeros(60 * 8_000, np.int16))
    return file.getvalue()


def flac_with_length(encoded: bytes, frames: int) -> bytes:
    """The FLAC file with another length in its header."""
    field = int.from_bytes(encoded[21:26], "big") & ~((1 << 36) - 1) | frames
    return encoded[:21] + field.to_bytes(5, "big") + encoded[26:]


@cache
def vorbis() -> bytes:
    return encode(tone(), 16_000, "OGG", "VORBIS")


@cache
def mp3() -> bytes:
    """MPEG-1 layer III frames of silence: 128 kbit/s, 44.1 kHz."""
    return (b"\xff\xfb\x90\x64" + bytes(413)) * 8


def reading(values: Any, time: Any = NOW_MS, **more: Any) -> bytes:
    return json.dumps({"time": time, "values": values, **more}).encode()


def caption(text: Any, time: Any = NOW_MS, **more: Any) -> bytes:
    return json.dumps({"time": time, "text": text, **more}).encode()


def claim(path: Path, sha256: str = "0" * 64) -> bytes:
    return json.dumps({"time": NOW_MS, "uri": path.as_uri(), "sha256": sha256}).encode()


def _table() -> list[BadInput]:
    table: list[BadInput] = []

    def add(
        reason: Reason,
        name: str,
        topic: str,
        value: bytes | Callable[[], bytes] | None,
        key: bytes | None = b"bad",
        **headers: bytes,
    ) -> None:
        named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
        make = value if callable(value) else lambda: value
        table.append(BadInput(name, topic, key, make, named, reason))

    senml = {"content_type": b"application/senml+json"}
    as_json = {"content_type": b"application/json"}
    good = reading({"flow": 1.5})
    # envelope
    add(Reason.NO_KEY, "no key", READINGS, good, key=None)
    add(Reason.BAD_KEY, "a key that is not UTF-8", READINGS, good, key=b"pump-\xff")
    add(Reason.BAD_KEY, "a key with an escape sequence", CAPTIONS, caption("a note"), key=b"\x1b[2Jpump")
    add(Reason.BAD_KEY, "a key of 300 bytes", READINGS, good, key=b"k" * 300)
    add(Reason.EMPTY, "no reading at all", READINGS, None)
    add(Reason.TOO_LARGE, "a message of 60 MB", READINGS, lambda: good + b" " * 60_000_000)
    add(Reason.UNKNOWN_MODALITY, "an unknown modality", READINGS, good, modality=b"smell")
    add(Reason.UNKNOWN_MODALITY, "a reading on the captions topic", CAPTIONS, good, modality=b"sensor")
    add(Reason.UNKNOWN_CONTENT_TYPE, "readings as XML", READINGS, b"<values/>", content_type=b"text/xml")
    add(
        Reason.UNKNOWN_CONTENT_TYPE,
        "readings in UTF-16",
        READINGS,
        good,
        content_type=b"application/json; charset=utf-16",
    )
    # text and numbers
    add(Reason.NOT_JSON, "not JSON", READINGS, b"flow=1.5")
    add(Reason.NOT_JSON, "JSON that stops short", READINGS, good[:-2])
    add(Reason.NOT_JSON, "JSON nested too deeply", READINGS, lambda: b"[" * 1_000_000)
    add(Reason.NOT_UTF8, "Latin-1", READINGS, '{"values": {"Füllstand": 1}}'.encode("latin-1"))
    add(Reason.NOT_FINITE, "NaN", READINGS, b'{"time": 1800000000000, "values": {"flow": NaN}}')
    add(Reason.NOT_FINITE, "a number beyond a double", READINGS, b'{"values": {"flow": 1e999}}')
    add(Reason.NOT_FINITE, "an integer of 400 digits", READINGS, b'{"values": {"flow": ' + b"9" * 400 + b"}}")
    add(Reason.BAD_SCHEMA, "a number as text", READINGS, reading({"flow": "1.5"}))
    add(Reason.BAD_SCHEMA, "a boolean for a number", READINGS, reading({"flow": True}))
    add(Reason.BAD_SCHEMA, "one wrong row among right ones", READINGS, b"[" + good + b', {"values": 7}]')
    add(Reason.BAD_SCHEMA, "a channel name with a line end", READINGS, reading({"a\nb": 1}))
    add(Reason.NO_VALUES, "a reading of nothing", READINGS, reading({}))
    add(Reason.TOO_MANY_CHANNELS, "10,000 channels", READINGS, lambda: reading({str(i): 0 for i in range(10_000)}))
    add(Reason.BAD_UNIT, "units that are not text", READINGS, reading({"flow": 1}, units={"flow": 7}))
    add(
        Reason.BAD_UNIT,
        "a unit that SenML does not know",
        READINGS,
        b'[{"n": "flow", "u": "furlong", "v": 1}]',
        **senml,
    )
    add(Reason.SENML_NO_NAME, "SenML without a base name", READINGS, b'[{"bt": 1800000000, "v": 1.5}]', **senml)
    add(Reason.BAD_SCHEMA, "SenML of a later version", READINGS, b'[{"bver": 11, "n": "flow", "v": 1}]', **senml)
    # event time
    add(Reason.CLOCK_BEHIND, "1970", READINGS, reading({"flow": 1}, time=0))
    add(Reason.CLOCK_BEHIND, "seconds for milliseconds", CAPTIONS, caption("a note", time=1_800_000_000))
    add(Reason.CLOCK_AHEAD, "the year 2100", READINGS, reading({"flow": 1}, time="2100-01-01T00:00:00Z"))
    add(Reason.BAD_TIME, "a time without a zone", READINGS, reading({"flow": 1}, time="2027-01-15T08:00:00"))
    add(Reason.BAD_TIME, "a time header of words", CLIPS, lambda: encode(tone(), 16_000, "WAV"), time=b"noon")
    # captions
    add(Reason.CONTROL_CHARACTERS, "control characters", CAPTIONS, caption("all well\x1b]0;owned\x07"))
    add(Reason.CAPTION_TOO_LONG, "a caption of 1 MB", CAPTIONS, lambda: caption("x" * 1_000_000))
    add(Reason.EMPTY, "a caption of blanks", CAPTIONS, b" \n\t ", content_type=b"text/plain")
    add(Reason.NOT_UTF8, "a caption in Latin-1", CAPTIONS, "heiß".encode("latin-1"), content_type=b"text/plain")
    add(Reason.BAD_SCHEMA, "a caption that is a number", CAPTIONS, caption(7))
    # sound
    add(Reason.EMPTY, "an empty clip", CLIPS, b"")
    add(Reason.AUDIO_EMPTY, "a WAV without samples", CLIPS, wav_header())
    add(
        Reason.AUDIO_CHANNELS,
        "a header of 1,024 channels",
        CLIPS,
        wav_header(channels=1_024, data=2_048) + bytes(2_048),
    )
    add(Reason.AUDIO_RATE, "4 GHz", CLIPS, wav_header(rate=4_000_000_000, data=2) + bytes(2))
    add(Reason.AUDIO_TOO_LONG, "a FLAC bomb", CLIPS, flac_bomb)
    add(Reason.AUDIO_TOO_LONG, "a FLAC bomb that declares no length", CLIPS, lambda: flac_with_length(flac_bomb(), 0))
    add(Reason.AUDIO_CODEC, "ADPCM in WAV", CLIPS, lambda: encode(tone(), 16_000, "WAV", "IMA_ADPCM"))
    add(Reason.AUDIO_CODEC, "FLAC in OGG", CLIPS, lambda: vorbis().replace(b"\x01vorbis", b"\x7fFLAC\x01\x00", 1))
    add(Reason.AUDIO_FORMAT, "MP3", CLIPS, mp3, content_type=b"audio/mpeg")
    add(Reason.AUDIO_FORMAT, "a picture", CLIPS, b"\x89PNG\r\n\x1a\n" + bytes(64))
    add(Reason.AUDIO_CORRUPT, "a truncated OGG", CLIPS, lambda: vorbis()[: len(vorbis()) // 2])
    add(Reason.AUDIO_CORRUPT, "a truncated WAV", CLIPS, lambda: encode(tone(), 16_000, "WAV")[:-1_000])
    add(Reason.AUDIO_CORRUPT, "a truncated FLAC", CLIPS, lambda: encode(tone(), 16_000, "FLAC")[:-1_000])
    add(Reason.AUDIO_CORRUPT, "noise that starts like FLAC", CLIPS, b"fLaC" + bytes(range(256)) * 4)
    add(Reason.NOT_FINITE, "float WAV with NaN", CLIPS, wav_header(tag=3, bits=32, data=4) + struct.pack("<f", np.nan))
    add(Reason.TOO_LARGE, "a clip beyond the limit", CLIPS, lambda: wav_header(data=1 << 24) + bytes(1 << 24))
    # claim checks
    here = Path(__file__).resolve()
    add(Reason.CLAIM_HASH, "a claim with a wrong hash", CLIPS, claim(here), **as_json)
    add(Reason.CLAIM_MISSING, "a claim without a file", CLIPS, claim(here.with_name("no-such-clip.wav")), **as_json)
    add(Reason.CLAIM_FORBIDDEN, "a claim outside the roots", CLIPS, claim(Path("/etc/hostname")), **as_json)
    add(
        Reason.CLAIM_FORBIDDEN,
        "a claim with .. out of the root",
        CLIPS,
        claim(CLAIM_ROOT).replace(b'", "sha256', b'/../../etc/hostname", "sha256'),
        **as_json,
    )
    add(Reason.BAD_SCHEMA, "a claim without a hash", CLIPS, b'{"uri": "file:///x"}', **as_json)
    return table


BAD_INPUTS: list[BadInput] = _table()
