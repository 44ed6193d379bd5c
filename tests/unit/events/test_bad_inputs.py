"""Every bad input is rejected with its own reason; decoders raise nothing but `Rejection`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.events.audio import ClipDecoder
from streams.events.clock_guard import TimeGuard
from streams.events.decode import decode
from streams.events.decoder_child import ogg_checksum
from streams.events.envelope import decode_key
from streams.events.json_codec import decode_caption, decode_readings
from streams.events.topics import MODALITY_OF
from streams.events.types import Caption, Clip, Event, Reading, Reason, Rejection
from streams.settings import WindowSettings
from tests.bad_inputs import AUDIO, BAD_INPUTS, CLIPS, NOW_MS, BadInput, encode, tone, vorbis


class Decoders:
    """All decoders behind one call, on one event loop, with one decoder process."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self.runner = runner
        self.clips = ClipDecoder(AUDIO)
        self.guard = TimeGuard(WindowSettings(), lambda: NOW_MS)

    def decode(
        self, topic: str, key: bytes | None, value: bytes | None, headers: tuple[tuple[str, bytes], ...]
    ) -> Sequence[Event]:
        decode_key(key)
        events = self.runner.run(decode(MODALITY_OF[topic], value, headers, NOW_MS, self.clips))
        for event in events:
            self.guard.check(event.time_ms)
        return events


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    with asyncio.Runner() as runner:
        found = Decoders(runner)
        yield found
        runner.run(found.clips.__aexit__(None, None, None))


@pytest.mark.parametrize("bad", BAD_INPUTS, ids=lambda bad: bad.name)
def test_a_bad_input_is_rejected_with_its_own_reason(bad: BadInput, decoders: Decoders) -> None:
    with pytest.raises(Rejection) as caught:
        decoders.decode(bad.topic, bad.key, bad.value, bad.headers)
    assert caught.value.reason is bad.reason, caught.value.detail
    assert 5 < len(caught.value.detail) < 500
    assert caught.value.detail.isprintable()


def test_twenty_kinds_of_bad_input_have_twenty_reasons() -> None:
    kinds = [
        "not JSON",
        "NaN",
        "a number as text",
        "an unknown modality",
        "no key",
        "1970",
        "the year 2100",
        "a message of 60 MB",
        "an empty clip",
        "a header of 1,024 channels",
        "a FLAC bomb",
        "ADPCM in WAV",
        "a truncated OGG",
        "MP3",
        "control characters",
        "a caption of 1 MB",
        "SenML without a base name",
        "a unit that SenML does not know",
        "a claim with a wrong hash",
        "a claim without a file",
    ]
    reasons = {bad.name: bad.reason for bad in BAD_INPUTS}
    assert len({reasons[name] for name in kinds}) == len(kinds) == 20


def test_a_good_clip_after_all_bad_ones_is_decoded(decoders: Decoders) -> None:
    for bad in BAD_INPUTS:
        if bad.topic == CLIPS:
            with pytest.raises(Rejection):
                decoders.decode(bad.topic, bad.key, bad.value, bad.headers)
    (clip,) = decoders.decode(CLIPS, b"pump-1", vorbis(), ())
    assert isinstance(clip, Clip)
    assert clip.duration_ms == 1_000


_ANY_HEADERS = st.lists(
    st.tuples(
        st.sampled_from(["content-type", "Content-Type", "modality", "time", "other"]),
        st.one_of(
            st.binary(max_size=20),
            st.sampled_from(
                [b"application/json", b"application/senml+json", b"text/plain", b"audio/wav", b"sensor", b"1e5"]
            ),
        ),
    ),
    max_size=3,
).map(tuple)
_FIELDS = ["time", "values", "units", "text", "source", "lang", "uri", "sha256"]  # ours, and then SenML's
_FIELDS += ["n", "bn", "u", "bu", "v", "bv", "vb", "vs", "vd", "s", "t", "bt", "bver"]
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=4), inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(_FIELDS),
            inner,
            max_size=6,
        )
    ),
    max_leaves=12,
)


def _json_bytes(value: object) -> bytes:
    return json.dumps(value).encode()


_VALUES = st.none() | st.binary(max_size=200) | _JSON.map(_json_bytes) | st.text(max_size=100).map(str.encode)


@settings(max_examples=1_000, deadline=None)
@given(value=_VALUES, headers=_ANY_HEADERS, timestamp=st.none() | st.integers(-1, 2**62), key=st.binary(max_size=40))
def test_any_bytes_give_events_or_a_rejection(
    value: bytes | None, headers: tuple[tuple[str, bytes], ...], timestamp: int | None, key: bytes
) -> None:
    for decoder in (decode_readings, decode_caption, lambda *_: decode_key(key)):
        result: object = []
        caught: Rejection | None = None
        try:
            result = decoder(value, headers, timestamp)  # type: ignore[operator]
        except Rejection as rejection:
            caught = rejection
        assert caught is None or caught.detail.isprintable()
        for event in result if isinstance(result, list) else [result]:
            if isinstance(event, Reading):
                assert event.values
                assert all(v is None or (type(v) is float and abs(v) <= 1e18) for v in event.values.values())
                assert type(event.time_ms) is int
            elif isinstance(event, Caption):
                assert 0 < len(event.text) <= 4_000
                assert event.text.isprintable() or not event.text.isascii()


_SEEDS = [
    encode(tone(0.2), 16_000, "WAV"),
    encode(tone(0.2), 16_000, "WAVEX", "PCM_24"),
    encode(tone(0.2), 16_000, "FLAC"),
    encode(tone(0.2), 16_000, "OGG", "VORBIS"),
    encode(tone(0.2), 16_000, "OGG", "OPUS"),
]


@st.composite
def _damaged_clips(draw: st.DrawFn) -> bytes:
    clip = bytearray(draw(st.sampled_from(_SEEDS)))
    for _ in range(draw(st.integers(1, 6))):
        # headers are at the start, where damage has most effect
        at = draw(st.integers(0, 120) | st.integers(0, len(clip) - 1))
        clip[min(at, len(clip) - 1)] = draw(st.integers(0, 255))
    whole = bytes(clip[: draw(st.just(len(clip)) | st.integers(1, len(clip)))])
    return _with_checksums(whole) if draw(st.booleans()) else whole


def _with_checksums(clip: bytes) -> bytes:
    """OGG pages with corrected checksums: damage would not reach libsndfile otherwise."""
    starts = [i for i in range(len(clip) - 26) if clip[i : i + 4] == b"OggS"]
    for start, end in pairwise([*starts, len(clip)]):
        checksum = ogg_checksum(clip[start:end]).to_bytes(4, "little")
        clip = clip[: start + 22] + checksum + clip[start + 26 :]
    return clip


@settings(max_examples=400, deadline=None)
@given(value=_damaged_clips() | st.binary(max_size=100))
def test_a_damaged_clip_gives_a_clip_within_limits_or_a_rejection(value: bytes, decoders: Decoders) -> None:
    reason, clip = None, None
    try:
        (clip,) = decoders.decode(CLIPS, b"pump-1", value, ())
    except Rejection as caught:
        reason = caught.reason
    if reason is not None:
        # damage must not look like a fault of the decoder
        assert reason not in (Reason.AUDIO_DECODER_TIMEOUT, Reason.AUDIO_DECODER_CRASHED)
    else:
        assert isinstance(clip, Clip)
        assert 0 < len(clip.samples) <= AUDIO.max_seconds * 16_000
        assert clip.samples.dtype == "int16"
