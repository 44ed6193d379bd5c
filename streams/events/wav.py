"""A strict WAV parser, and conversion of any sample width, channels and rate to int16 mono at 16 kHz.

The result is the same to the last bit on every machine: samples and filter are integers in float64, whose products
and sums stay below 2**53, so that order of summation, vector width and thread count cannot change the rounding.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from streams.events.types import CLIP_RATE_HZ, Reason, Rejection
from streams.settings import AudioSettings

_PCM, _FLOAT, _EXTENSIBLE = 0x0001, 0x0003, 0xFFFE
_GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")  # of subformats that are a plain format tag
_CODECS = {0x0002: "ADPCM", 0x0011: "IMA ADPCM", 0x0006: "A-law", 0x0007: "mu-law", 0x0031: "GSM", 0x0055: "MP3"}
_UNKNOWN_SIZES = (0xFFFFFFFF, 0x7FFFFFFF + 1)  # written to a pipe, where the size is not known in advance

_SCALE_BITS = 23  # samples are integers of up to 24 bits
_FILTER_BITS = 22
_ZERO_CROSSINGS = 24  # of the filter's sinc, on each side
_KAISER_BETA = 9.0  # about -90 dB: below the resolution of 16 bits
_PASSBAND = 0.94  # share of the lower Nyquist frequency that passes
_MAX_PHASES = 640  # up to so many filter phases, resampling is a product with a matrix
_ODD_PHASES = 4_096  # of the filter for all other rates
_BLOCK_OUTPUTS = 96


@dataclass(frozen=True, slots=True)
class Wav:
    """Format and sample bytes of a WAV file; `rate` in Hz, `data` interleaved."""

    rate: int
    channels: int
    bits: int
    is_float: bool
    data: memoryview


def check_limits(rate: int, channels: int, frames: int, settings: AudioSettings) -> None:
    """Raises AUDIO_CHANNELS, AUDIO_RATE (Hz), AUDIO_EMPTY or AUDIO_TOO_LONG for a clip outside the limits."""
    if not 1 <= channels <= settings.max_channels:
        detail = f"{channels} channels, at most {settings.max_channels} are allowed"
        raise Rejection(Reason.AUDIO_CHANNELS, detail)
    if not settings.min_rate_hz <= rate <= settings.max_rate_hz:
        detail = f"{rate} Hz, {settings.min_rate_hz} to {settings.max_rate_hz} Hz are allowed"
        raise Rejection(Reason.AUDIO_RATE, detail)
    if frames == 0:
        raise Rejection(Reason.AUDIO_EMPTY, "the clip has no samples")
    if frames > settings.max_seconds * rate:
        detail = f"{frames / rate:.1f} s, at most {settings.max_seconds:g} s are allowed"
        raise Rejection(Reason.AUDIO_TOO_LONG, detail)


def read_wav(encoded: bytes, settings: AudioSettings) -> Wav:
    """Parse a RIFF WAVE file of PCM (8, 16, 24, 32 bits) or float (32, 64 bits).

    Raises AUDIO_CODEC, AUDIO_CORRUPT and what `check_limits` raises, before any sample is read.
    """
    view = memoryview(encoded)
    wav: tuple[int, int, int, bool] | None = None
    position = 12
    while position + 8 <= len(view):
        name, size = struct.unpack_from("<4sI", view, position)
        start = position + 8
        if name == b"data":
            if wav is None:
                raise _corrupt("samples come before the format")
            return _with_data(wav, view[start:], size, settings)
        if start + size > len(view):
            raise _corrupt(f"chunk {name!r} at byte {position} is cut off")
        if name == b"fmt ":
            wav = _read_format(view[start : start + size])
        position = start + size + size % 2
    raise _corrupt("there is no data chunk" if wav else "there is no format chunk")


def _with_data(wav: tuple[int, int, int, bool], rest: memoryview, size: int, settings: AudioSettings) -> Wav:
    rate, channels, bits, is_float = wav
    width = channels * bits // 8
    # limits first, so that a header with 1,024 channels is rejected for that, whatever follows
    if size in _UNKNOWN_SIZES:
        size = len(rest) - len(rest) % max(width, 1)
    check_limits(rate, channels, size // width if width else 0, settings)
    if size > len(rest):
        raise _corrupt(f"has {len(rest)} of {size} bytes of samples")
    if size % width:
        raise _corrupt(f"{size} bytes of samples are not whole frames of {width} bytes")
    return Wav(rate, channels, bits, is_float, rest[:size])


def _read_format(chunk: memoryview) -> tuple[int, int, int, bool]:
    if len(chunk) < 16:
        raise _corrupt(f"the format chunk has {len(chunk)} bytes")
    tag, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", chunk)
    if tag == _EXTENSIBLE:
        if len(chunk) < 40:
            raise _corrupt(f"the extensible format chunk has {len(chunk)} bytes")
        if chunk[26:40] != _GUID_TAIL:
            raise Rejection(Reason.AUDIO_CODEC, "WAV with an unknown subformat; send PCM or float")
        (tag,) = struct.unpack_from("<H", chunk, 24)
    if tag not in (_PCM, _FLOAT):
        name = _CODECS.get(tag, f"format 0x{tag:04x}")
        raise Rejection(Reason.AUDIO_CODEC, f"WAV with {name}; send PCM or float, FLAC, OGG Vorbis or OGG Opus")
    if bits not in ((32, 64) if tag == _FLOAT else (8, 16, 24, 32)):
        kind = "float" if tag == _FLOAT else "PCM"
        raise Rejection(Reason.AUDIO_CODEC, f"WAV with {bits}-bit {kind}; send 8 to 32-bit PCM or 32 or 64-bit float")
    if block != channels * bits // 8:
        raise _corrupt(f"frames of {block} bytes do not hold {channels} channels of {bits} bits")
    return rate, channels, bits, tag == _FLOAT


def _corrupt(detail: str) -> Rejection:
    return Rejection(Reason.AUDIO_CORRUPT, f"WAV: {detail}")


def wav_samples(wav: Wav) -> NDArray[np.int16]:
    """int16 mono samples at 16 kHz, shape (n,). Raises NOT_FINITE for NaN or infinite float samples."""
    if wav.is_float:
        return float_samples(np.frombuffer(wav.data, "<f4" if wav.bits == 32 else "<f8"), wav.channels, wav.rate)
    if wav.bits == 16:
        narrow = np.frombuffer(wav.data, "<i2")
        if wav.channels == 1 and wav.rate == CLIP_RATE_HZ:
            return narrow.astype(np.int16)
        integers = narrow.astype(np.float64) * 256
    elif wav.bits == 8:
        integers = (np.frombuffer(wav.data, np.uint8).astype(np.float64) - 128) * 65_536
    elif wav.bits == 24:
        octets = np.frombuffer(wav.data, np.uint8).reshape(-1, 3)
        wide = np.zeros((len(octets), 4), np.uint8)
        wide[:, 1:] = octets
        integers = (wide.view("<i4").ravel() >> 8).astype(np.float64)
    else:
        integers = (np.frombuffer(wav.data, "<i4") >> 8).astype(np.float64)
    return _finish(integers, wav.channels, wav.rate)


def float_samples(samples: NDArray[np.floating], channels: int, rate: int) -> NDArray[np.int16]:
    """Interleaved float samples (full scale 1.0, clipped) as int16 mono at 16 kHz, shape (n,). Raises NOT_FINITE."""
    if not np.isfinite(samples).all():
        raise Rejection(Reason.NOT_FINITE, "the clip has samples that are not numbers")
    full = 1 << _SCALE_BITS
    return _finish(np.clip(np.rint(samples.astype(np.float64) * full), -full, full - 1), channels, rate)


def _finish(integers: NDArray[np.float64], channels: int, rate: int) -> NDArray[np.int16]:
    """Interleaved 24-bit integers to int16 mono at 16 kHz."""
    mixed = integers
    if channels > 1:  # channel by channel: ten times faster than a sum over so short an axis
        frames = integers.reshape(-1, channels)
        mixed = frames[:, 0].copy()
        for channel in range(1, channels):
            mixed += frames[:, channel]
    scale = channels << (_SCALE_BITS - 15)
    if rate != CLIP_RATE_HZ:
        mixed = _resample(mixed, rate)
        scale <<= _FILTER_BITS
    return np.clip(np.rint(mixed / scale), -32_768, 32_767).astype(np.int16)


def _resample(x: NDArray[np.float64], rate: int) -> NDArray[np.float64]:
    """Polyphase resampling to 16 kHz; the result is integers, scaled by 2**22. Shape (n,) to (m,)."""
    ratio = Fraction(CLIP_RATE_HZ, rate)
    count = max(1, len(x) * ratio.numerator // ratio.denominator)
    if ratio.numerator > _MAX_PHASES:
        return _resample_odd(x, rate, count)
    # a block of outputs is one row of overlapping frames times a banded matrix, computed by BLAS
    step, before, matrix = _banded(rate)
    span, block = matrix.shape
    rows = -(-count // block)
    frames = sliding_window_view(_padded(x, before, (rows - 1) * step + span), span)[::step]
    result = np.empty((rows, block))
    for start in range(0, rows, 256):  # bounds the memory of the copied frames
        result[start : start + 256] = np.ascontiguousarray(frames[start : start + 256]) @ matrix
    return result.ravel()[:count]


def _resample_odd(x: NDArray[np.float64], rate: int, count: int) -> NDArray[np.float64]:
    """For rates with too many phases: exact positions, and the filter of the nearest of 4,096 phases."""
    half, table = _phases(rate)
    position = np.arange(count, dtype=np.int64) * rate * _ODD_PHASES + CLIP_RATE_HZ // 2
    centre, phase = np.divmod(position // CLIP_RATE_HZ, _ODD_PHASES)
    windows = sliding_window_view(_padded(x, half - 1, int(centre[-1]) + 2 * half), 2 * half)
    result = np.empty(count)
    for start in range(0, count, 4_096):
        part = slice(start, start + 4_096)
        result[part] = np.einsum("ij,ij->i", windows[centre[part]], table[phase[part]])
    return result


def _padded(x: NDArray[np.float64], before: int, length: int) -> NDArray[np.float64]:
    """`length` samples: `before` zeros, then `x`, cut off or followed by zeros."""
    padded = np.zeros(length)
    usable = min(len(x), length - before)
    padded[before : before + usable] = x[:usable]
    return padded


def _taps(rate: int, phase: NDArray[np.float64]) -> tuple[int, NDArray[np.float64]]:
    """Half the filter length, and integer coefficients for each phase in [0, 1), shape (phases, 2 * half)."""
    cutoff = _PASSBAND * min(1.0, CLIP_RATE_HZ / rate)  # of the input's Nyquist frequency
    half = math.ceil(_ZERO_CROSSINGS / cutoff)
    distance = np.arange(-half + 1, half + 1)[None, :] - phase[:, None]
    window = np.i0(_KAISER_BETA * np.sqrt(np.clip(1 - (distance / half) ** 2, 0, 1))) / np.i0(_KAISER_BETA)
    taps = cutoff * np.sinc(cutoff * distance) * window
    taps /= taps.sum(axis=1, keepdims=True)  # every phase passes a constant unchanged
    return half, np.rint(taps * (1 << _FILTER_BITS))


@lru_cache(maxsize=4)
def _phases(rate: int) -> tuple[int, NDArray[np.float64]]:
    return _taps(rate, np.arange(_ODD_PHASES) / _ODD_PHASES)


@lru_cache(maxsize=8)
def _banded(rate: int) -> tuple[int, int, NDArray[np.float64]]:
    """For `rate` Hz: samples from one block to the next, samples of history, and the matrix (span, block)."""
    ratio = Fraction(CLIP_RATE_HZ, rate)
    up, down = ratio.numerator, ratio.denominator
    block = up * max(1, -(-_BLOCK_OUTPUTS // up))
    output = np.arange(block)
    centre = output * down // up
    half, taps = _taps(rate, output * down % up / up)
    matrix = np.zeros((int(centre[-1]) + 2 * half, block))
    for column in range(block):
        matrix[centre[column] : centre[column] + 2 * half, column] = taps[column]
    return block // up * down, half - 1, matrix
