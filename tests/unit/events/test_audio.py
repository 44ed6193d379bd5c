"""Clips: every supported format becomes int16 mono at 16 kHz, always the same bytes; claim checks read files."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
from collections.abc import AsyncIterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from streams.events.audio import ClipDecoder
from streams.events.envelope import Headers
from streams.events.types import Clip, Reason, Rejection
from streams.events.wav import _MAX_PHASES, _ODD_PHASES, _banded, _phases, read_wav, wav_samples
from streams.settings import AudioSettings
from tests.bad_inputs import encode, flac_bomb, flac_with_length, tone, wav_header

T = 1_800_000_000_000
JSON = (("content-type", b"application/json"),)


@pytest.fixture
async def clips() -> AsyncIterator[ClipDecoder]:
    async with ClipDecoder(AudioSettings()) as decoder:
        yield decoder


async def rejection_of(clips: ClipDecoder, value: bytes | None, headers: Headers = ()) -> Rejection:
    with pytest.raises(Rejection) as caught:
        await clips.decode(value, headers, T)
    return caught.value


def worst(clip: Clip, expected: NDArray[Any], margin: int = 400) -> float:
    """Largest difference from `expected` (float, full scale 1.0) in steps of int16, without the ends."""
    n = min(len(clip.samples), len(expected))
    difference = clip.samples[:n].astype(float) - expected[:n] * 32_768
    return float(np.abs(difference[margin : n - margin]).max())


# -- formats


@pytest.mark.parametrize(
    ("format", "subtype", "tolerance"),
    [
        ("WAV", "PCM_16", 1),
        ("WAV", "PCM_24", 1),
        ("WAV", "PCM_32", 1),
        ("WAV", "FLOAT", 1),
        ("WAV", "DOUBLE", 1),
        ("WAV", "PCM_U8", 300),
        ("WAVEX", "PCM_16", 1),
        ("WAVEX", "FLOAT", 1),
        ("FLAC", "PCM_16", 1),
        ("FLAC", "PCM_24", 1),
        ("FLAC", "PCM_S8", 300),
        ("OGG", "VORBIS", 700),
        ("OGG", "OPUS", 1_500),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
async def test_every_format_gives_the_sound_that_went_in(
    clips: ClipDecoder, format: str, subtype: str, tolerance: int, channels: int
) -> None:
    rate = 48_000 if subtype == "OPUS" else 16_000
    wave = tone(1.0, rate)
    value = encode(np.stack([wave] * channels, axis=1), rate, format, subtype)
    clip = await clips.decode(value, (("time", b"1800000000500"),), T)
    assert (clip.time_ms, clip.sha256) == (T + 500, hashlib.sha256(value).hexdigest())
    assert clip.samples.dtype == np.int16
    assert clip.samples.shape == (16_000,)
    assert worst(clip, tone()) <= tolerance


async def test_16_bit_mono_at_16_khz_passes_bit_for_bit(clips: ClipDecoder) -> None:
    samples = np.random.default_rng(1).integers(-32_768, 32_768, 20_000).astype(np.int16)
    for format in ("WAV", "FLAC"):
        clip = await clips.decode(encode(samples, 16_000, format, "PCM_16"), (), T)
        assert np.array_equal(clip.samples, samples)


async def test_channels_are_averaged_and_loud_floats_clipped(clips: ClipDecoder) -> None:
    left, right = np.full(100, 0.5), np.full(100, -0.25)
    clip = await clips.decode(encode(np.stack([left, right], axis=1), 16_000, "WAV", "PCM_16"), (), T)
    assert set(clip.samples) == {4_096}
    loud = await clips.decode(encode(np.array([9.0, -9.0, 0.0]), 16_000, "WAV", "FLOAT"), (), T)
    assert loud.samples.tolist() == [32_767, -32_768, 0]


@pytest.mark.parametrize(
    "rate", [8_000, 11_025, 12_000, 16_001, 19_531, 22_050, 32_000, 44_100, 48_000, 95_999, 96_000]
)
async def test_every_rate_is_resampled_to_16_khz_with_its_pitch_and_length(clips: ClipDecoder, rate: int) -> None:
    clip = await clips.decode(encode(tone(2.0, rate), rate, "WAV", "FLOAT"), (), T)
    assert abs(len(clip.samples) - 32_000) <= 1
    assert worst(clip, tone(2.0)) <= 3


async def test_frequencies_above_8_khz_are_removed_and_a_constant_is_kept(clips: ClipDecoder) -> None:
    for rate in (44_100, 47_999, 48_000):
        above = await clips.decode(encode(tone(1.0, rate, 11_000), rate, "WAV", "FLOAT"), (), T)
        assert np.abs(above.samples[400:-400]).max() <= 3  # -78 dB of full scale; it would alias to 5 kHz
        constant = await clips.decode(encode(np.full(rate, 0.25), rate, "WAV", "FLOAT"), (), T)
        assert set(constant.samples[400:-400]) <= {8_191, 8_192}


async def test_the_samples_of_a_clip_are_the_same_bits_whatever_the_order_of_summation(clips: ClipDecoder) -> None:
    noise = np.random.default_rng(2).uniform(-1, 1, (20_000, 2))
    for rate in (44_100, 48_000, 31_999):
        value = encode(noise, rate, "WAV", "PCM_24")
        first = (await clips.decode(value, (), T)).samples
        # exact rational arithmetic: Python integers through the same filter
        exact = _resampled_exactly(value, rate, 1_500)
        assert np.array_equal(first[: len(exact)], exact)


def _resampled_exactly(value: bytes, rate: int, count: int) -> NDArray[np.int16]:
    data, _ = soundfile.read(io.BytesIO(value), dtype="int32")
    mono = [int(left >> 8) + int(right >> 8) for left, right in data]
    ratio = Fraction(16_000, rate)
    result = []
    for n in range(count):
        if ratio.numerator > _MAX_PHASES:
            half, table = _phases(rate)
            centre, phase = divmod((n * rate * _ODD_PHASES + 8_000) // 16_000, _ODD_PHASES)
            taps, start = table[phase], centre - half + 1
        else:
            step, before, matrix = _banded(rate)
            taps, start = matrix[:, n % matrix.shape[1]], n // matrix.shape[1] * step - before
        total = 0
        for k in np.flatnonzero(taps):
            if 0 <= start + k < len(mono):
                total += int(taps[k]) * mono[start + k]
        result.append(min(32_767, max(-32_768, round(Fraction(total, 2 << (8 + 22))))))
    return np.array(result, np.int16)


async def test_the_size_of_a_piped_wav_may_be_unknown(clips: ClipDecoder) -> None:
    value = bytearray(encode(tone(), 16_000, "WAV", "PCM_16"))
    at = value.index(b"data") + 4
    value[at : at + 4] = value[4:8] = b"\xff\xff\xff\xff"
    assert (await clips.decode(bytes(value), (), T)).samples.shape == (16_000,)


async def test_chunks_around_the_samples_are_skipped(clips: ClipDecoder) -> None:
    plain = encode(tone(), 16_000, "WAV", "PCM_16")
    extra = b"LIST" + struct.pack("<I", 3) + b"abc\0"  # odd sizes are padded
    value = plain[:12] + extra + plain[12:] + extra
    clip = await clips.decode(value, (), T)
    assert np.array_equal(clip.samples, (await clips.decode(plain, (), T)).samples)


# -- limits and damage


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG"])
async def test_limits_hold_for_every_format(format: str) -> None:
    settings = AudioSettings(max_seconds=1.0, max_channels=2, min_rate_hz=16_000, max_rate_hz=32_000)
    async with ClipDecoder(settings) as clips:
        assert (await clips.decode(encode(tone(1.0), 16_000, format), (), T)).duration_ms == 1_000
        assert (await rejection_of(clips, encode(tone(1.1), 16_000, format))).reason is Reason.AUDIO_TOO_LONG
        assert (await rejection_of(clips, encode(tone(1.0, 8_000), 8_000, format))).reason is Reason.AUDIO_RATE
        assert (await rejection_of(clips, encode(tone(0.5, 44_100), 44_100, format))).reason is Reason.AUDIO_RATE
        three = np.stack([tone(0.5)] * 3, axis=1)
        assert (await rejection_of(clips, encode(three, 16_000, format))).reason is Reason.AUDIO_CHANNELS


async def test_a_decompression_bomb_is_rejected_whatever_length_it_declares(clips: ClipDecoder) -> None:
    assert len(flac_bomb()) < 200_000
    for declared in (0, 3_600 * 8_000, (1 << 36) - 1):
        rejection = await rejection_of(clips, flac_with_length(flac_bomb(), declared))
        assert rejection.reason is Reason.AUDIO_TOO_LONG


async def test_channels_are_checked_before_the_samples_are_read(clips: ClipDecoder) -> None:
    rejection = await rejection_of(clips, wav_header(channels=1_024, data=1 << 31))
    assert rejection.reason is Reason.AUDIO_CHANNELS
    assert "1024" in rejection.detail


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG"])
async def test_a_clip_cut_off_anywhere_is_corrupt(clips: ClipDecoder, format: str) -> None:
    whole = encode(tone(0.5), 16_000, format)
    for share in (0.1, 0.5, 0.9, 0.99):
        rejection = await rejection_of(clips, whole[: int(len(whole) * share)])
        assert rejection.reason is Reason.AUDIO_CORRUPT, (share, rejection.detail)


async def test_a_page_missing_from_the_middle_of_an_ogg_is_noticed(clips: ClipDecoder) -> None:
    whole = encode(np.random.default_rng(3).uniform(-0.5, 0.5, 160_000), 16_000, "OGG", "VORBIS")
    starts = [i for i in range(len(whole)) if whole[i : i + 4] == b"OggS"]
    assert len(starts) > 6
    middle = len(starts) // 2
    rejection = await rejection_of(clips, whole[: starts[middle]] + whole[starts[middle + 1] :])
    assert rejection.reason is Reason.AUDIO_CORRUPT


@pytest.mark.parametrize("format", ["FLAC", "OGG"])
async def test_a_flipped_bit_among_the_samples_is_noticed(clips: ClipDecoder, format: str) -> None:
    whole = encode(np.random.default_rng(5).uniform(-0.5, 0.5, 48_000), 16_000, format)
    for share in (0.3, 0.6, 0.9):
        damaged = bytearray(whole)
        damaged[int(len(whole) * share)] ^= 4
        rejection = await rejection_of(clips, bytes(damaged))
        assert rejection.reason is Reason.AUDIO_CORRUPT, (share, rejection.detail)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"RIFF\x04\0\0\0WAVE", Reason.AUDIO_CORRUPT),
        (b"RIFF\x04\0\0\0AVI ", Reason.AUDIO_FORMAT),
        (wav_header(bits=12, data=4) + bytes(4), Reason.AUDIO_CODEC),
        (wav_header(tag=7, bits=8, data=4) + bytes(4), Reason.AUDIO_CODEC),
        (wav_header(data=3) + bytes(3), Reason.AUDIO_CORRUPT),
        (wav_header(channels=0, data=4) + bytes(4), Reason.AUDIO_CHANNELS),
        (wav_header(rate=0, data=4) + bytes(4), Reason.AUDIO_RATE),
        (b"fLaC", Reason.AUDIO_CORRUPT),
        (b"OggS", Reason.AUDIO_CORRUPT),
        (b"ID3\x04" + bytes(20), Reason.AUDIO_FORMAT),
        (b"x", Reason.AUDIO_FORMAT),
        (None, Reason.EMPTY),
    ],
)
async def test_impossible_headers_are_rejected(clips: ClipDecoder, value: bytes | None, reason: Reason) -> None:
    assert (await rejection_of(clips, value)).reason is reason


async def test_the_format_is_taken_from_the_bytes_unless_the_content_type_is_not_audio(clips: ClipDecoder) -> None:
    value = encode(tone(), 16_000, "FLAC")
    assert await clips.decode(value, (("content-type", b"audio/wav"),), T)
    assert await clips.decode(value, (("content-type", b"application/octet-stream"),), T)
    assert (await rejection_of(clips, value, (("content-type", b"image/png"),))).reason is Reason.UNKNOWN_CONTENT_TYPE
    assert (await rejection_of(clips, value, (("modality", b"sensor"),))).reason is Reason.UNKNOWN_MODALITY


def test_the_wav_parser_agrees_with_libsndfile_on_noise() -> None:
    noise = np.random.default_rng(4).uniform(-1, 1, 5_000)
    for subtype in ("PCM_16", "PCM_24", "PCM_32", "PCM_U8", "FLOAT", "DOUBLE"):
        value = encode(noise, 16_000, "WAV", subtype)
        theirs, _ = soundfile.read(io.BytesIO(value))
        ours = wav_samples(read_wav(value, AudioSettings()))
        assert np.abs(ours - np.clip(theirs * 32_768, -32_768, 32_767)).max() <= 0.51


# -- claim checks


def claim(uri: str, content: bytes, **more: Any) -> bytes:
    return json.dumps({"time": T + 7, "uri": uri, "sha256": hashlib.sha256(content).hexdigest()} | more).encode()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    return folder


async def test_a_claim_check_is_the_clip_it_points_to(root: Path) -> None:
    for name, format in (("pump 1.wav", "WAV"), ("pump.flac", "FLAC")):
        content = encode(tone(), 16_000, format)
        (root / name).write_bytes(content)
        async with ClipDecoder(AudioSettings(claim_roots=(root,))) as clips:
            value = claim((root / name).as_uri(), content)
            for headers in (JSON, ()):
                clip = await clips.decode(value, headers, T)
                assert (clip.time_ms, clip.sha256) == (T + 7, hashlib.sha256(content).hexdigest())
                assert clip.duration_ms == 1_000
            late = await clips.decode(claim((root / name).as_uri(), content, time=None), JSON, T)
            assert late.time_ms == T


async def test_claims_reach_only_files_inside_the_roots(root: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.wav"
    secret.write_bytes(encode(tone(), 16_000, "WAV"))
    (root / "link.wav").symlink_to(secret)
    (root / "loop.wav").symlink_to(root / "loop.wav")
    (root / "inner").mkdir()
    os.mkfifo(root / "pipe.wav")
    (root / "good.wav").write_bytes(secret.read_bytes())
    (root / "inside.wav").symlink_to(root / "good.wav")
    content = secret.read_bytes()
    async with ClipDecoder(AudioSettings(claim_roots=(root,))) as clips:
        for uri in (
            secret.as_uri(),
            (root / "link.wav").as_uri(),
            f"{root.as_uri()}/../secret.wav",
            f"{root.as_uri()}/%2e%2e/secret.wav",
            f"{root.as_uri()}/../no-such-file.wav",
            f"{root.as_uri()}-other/x.wav",
            (root / "loop.wav").as_uri(),
            (root / "pipe.wav").as_uri(),
            (root / "inner").as_uri(),
            f"file://elsewhere{root}/good.wav",
            f"file:{root.name}/good.wav",
            f"{root.as_uri()}/good.wav%00.txt",
            f"{root.as_uri()}/%ff.wav",
            "http://127.0.0.1/x.wav",
            str(root / "good.wav"),
            "file://[",
            "",
        ):
            rejection = await rejection_of(clips, claim(uri, content), JSON)
            assert rejection.reason is Reason.CLAIM_FORBIDDEN, (uri, rejection)
            assert rejection.detail.isprintable()
        assert await clips.decode(claim((root / "inside.wav").as_uri(), content), JSON, T)


async def test_without_roots_claims_are_rejected_and_the_detail_names_the_setting(root: Path) -> None:
    async with ClipDecoder(AudioSettings()) as clips:
        rejection = await rejection_of(clips, claim((root / "x.wav").as_uri(), b""), JSON)
    assert rejection.reason is Reason.CLAIM_FORBIDDEN
    assert "SENSORIUM_AUDIO__CLAIM_ROOTS" in rejection.detail


async def test_a_claimed_file_must_exist_match_its_hash_and_fit_the_limit(root: Path) -> None:
    content = encode(tone(), 16_000, "WAV")
    file = root / "clip.wav"
    async with ClipDecoder(AudioSettings(claim_roots=(root,), max_bytes=len(content))) as clips:
        assert (await rejection_of(clips, claim(file.as_uri(), content), JSON)).reason is Reason.CLAIM_MISSING
        file.write_bytes(content[:-1] + b"\x7f")
        assert (await rejection_of(clips, claim(file.as_uri(), content), JSON)).reason is Reason.CLAIM_HASH
        file.write_bytes(content + b"\0")
        assert (await rejection_of(clips, claim(file.as_uri(), content), JSON)).reason is Reason.TOO_LARGE
        file.write_bytes(b"")
        assert (await rejection_of(clips, claim(file.as_uri(), b""), JSON)).reason is Reason.EMPTY


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b'{"uri": "file:///x", "sha256": "abc"}', Reason.BAD_SCHEMA),
        (b'{"uri": 7, "sha256": "' + b"0" * 64 + b'"}', Reason.BAD_SCHEMA),
        (b'{"uri"', Reason.NOT_JSON),
        (b'{"uri": "\xff"}', Reason.NOT_UTF8),
        (b"{" + b" " * 20_000 + b"}", Reason.TOO_LARGE),
        (b'{"time": "soon", "uri": "file:///x", "sha256": "' + b"0" * 64 + b'"}', Reason.BAD_TIME),
    ],
)
async def test_an_invalid_claim_check_is_rejected(clips: ClipDecoder, value: bytes, reason: Reason) -> None:
    assert (await rejection_of(clips, value, JSON)).reason is reason
