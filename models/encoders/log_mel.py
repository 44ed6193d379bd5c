"""Log-mel frames of sound; the only module that imports torchaudio."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torchaudio
from numpy.typing import NDArray
from torch import Tensor

from models.interface import SAMPLE_RATE_HZ

MEL_BANDS = 64
HOP = 160  # samples, 10 ms
N_FFT = 512
FRAME_SAMPLES = SAMPLE_RATE_HZ  # one frame is one second
FRAME_COLUMNS = FRAME_SAMPLES // HOP  # 100
FRAMES_MAX = 8  # of one window
TAIL_MIN_SAMPLES = FRAME_SAMPLES // 4  # a shorter rest after a full frame is dropped
SILENCE = -8.0  # log10 mel power of digital silence: keeps the logarithm finite


@lru_cache(maxsize=1)
def _mel() -> torchaudio.transforms.MelSpectrogram:
    return torchaudio.transforms.MelSpectrogram(
        sample_rate=SAMPLE_RATE_HZ,
        n_fft=N_FFT,
        hop_length=HOP,
        n_mels=MEL_BANDS,
        f_min=20.0,
        f_max=7_800.0,
        center=True,
        pad_mode="constant",
        power=2.0,
    )


def log_mel(samples: Tensor) -> Tensor:
    """(B, n) float in -1..1 at 16 kHz -> (B, MEL_BANDS, n // HOP), log10 of mel power, -8 at silence."""
    power: Tensor = _mel()(samples)  # (B, bands, n // HOP + 1)
    return torch.log10(power[..., : samples.shape[-1] // HOP].clamp_min(10**SILENCE))


def resample(samples: Tensor, rate_hz: int) -> Tensor:
    """(..., n) at `rate_hz` -> (..., n * 16,000 / rate_hz) at 16 kHz."""
    if rate_hz == SAMPLE_RATE_HZ:
        return samples
    resampled: Tensor = torchaudio.functional.resample(samples, rate_hz, SAMPLE_RATE_HZ)
    return resampled


def resample_array(samples: NDArray[np.int16], rate_hz: int, to_hz: int) -> NDArray[np.float32]:
    """(n,) int16 at `rate_hz` -> (n * to_hz / rate_hz,) in -1..1 at `to_hz`."""
    scaled = torch.from_numpy(samples.astype(np.float32) / np.float32(32_768))
    out: NDArray[np.float32] = torchaudio.functional.resample(scaled, rate_hz, to_hz).numpy()
    return out


def frame_starts(samples: int) -> list[int]:
    """First samples of the 1-s frames of a clip of so many samples; at least one: an empty clip is one silent frame."""
    full = samples // FRAME_SAMPLES
    starts = [i * FRAME_SAMPLES for i in range(full)]
    if not starts or samples - full * FRAME_SAMPLES >= TAIL_MIN_SAMPLES:
        starts.append(full * FRAME_SAMPLES)
    return starts


def spread(count: int, most: int) -> list[int]:
    """`most` indices spread evenly over 0..count-1, both ends among them; all of them where they fit."""
    if count <= most:
        return list(range(count))
    return [i * (count - 1) // (most - 1) for i in range(most)]


def window_frames(clips: list[tuple[int, NDArray[np.int16]]]) -> list[tuple[int, NDArray[np.float32]]]:
    """At most FRAMES_MAX (time_ms, samples (FRAME_SAMPLES,) in -1..1) of a window's clips, evenly spread over them."""
    places = [(time_ms, samples, start) for time_ms, samples in clips for start in frame_starts(len(samples))]
    frames = []
    for index in spread(len(places), FRAMES_MAX):
        time_ms, samples, start = places[index]
        cut = samples[start : start + FRAME_SAMPLES].astype(np.float32) / np.float32(32_768)
        frame = np.zeros(FRAME_SAMPLES, np.float32)
        frame[: len(cut)] = cut
        frames.append((time_ms + start * 1_000 // SAMPLE_RATE_HZ, frame))
    return frames
