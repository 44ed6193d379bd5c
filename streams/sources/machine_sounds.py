"""The sounds of the simulated machines, normal and faulty, as WAV bytes."""

from __future__ import annotations

import io
import math
import wave
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_RATE_HZ = 16_000
_CLIP_S = 2.0
_HISS = 0.02  # share of full scale


@dataclass(frozen=True, slots=True)
class MachineSound:
    """Samples, shape (n,), in -1..1 at 16 kHz, and the same as a WAV file: encoded once, used often."""

    samples: NDArray[np.float64]
    wav: bytes

    def noisier(self, times: float, rng: np.random.Generator) -> bytes:
        """A WAV file of the sound with `times` (at least 1) the hiss, newly drawn."""
        more = _HISS * math.sqrt(times**2 - 1)  # variances add up
        return _wav(self.samples + more * rng.standard_normal(len(self.samples)))


def machine_sound(hum_hz: float, fault: str | None, rng: np.random.Generator) -> MachineSound:
    """Two seconds of hum with harmonics and hiss; `fault`, one of `FAULTS`, adds its sound to a weaker hum."""
    n = int(_CLIP_S * _RATE_HZ)
    t = np.arange(n) / _RATE_HZ
    hum = np.zeros(n)
    for harmonic in range(1, 7):
        phase = rng.uniform(0, 2 * np.pi)
        hum += np.sin(2 * np.pi * hum_hz * harmonic * t + phase) / harmonic**1.3
    noise = rng.standard_normal(n)
    sound = 0.25 * hum + _HISS * noise
    if fault is not None:
        sound = 0.4 * sound + FAULTS[fault](t, noise, rng)
    samples = np.asarray(0.9 * sound / max(1.0, float(np.abs(sound).max())))
    return MachineSound(samples, _wav(samples))


def _grinding(t: NDArray[np.float64], noise: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    rough = np.convolve(noise, np.ones(6) / 6, mode="same")
    return np.asarray(0.7 * rough * (1 + np.sin(2 * np.pi * 31 * t + rng.uniform(0, 6))))


def _knocking(t: NDArray[np.float64], noise: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    since = (t * 5 + rng.uniform()) % 1.0 / 5
    return np.asarray(1.2 * np.exp(-since * 60) * (np.sin(2 * np.pi * 310 * since) + 0.3 * noise))


def _squeal(t: NDArray[np.float64], noise: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    return np.asarray(0.6 * np.sin(2 * np.pi * 2700 * t + 9 * np.sin(2 * np.pi * 6 * t + rng.uniform(0, 6))))


def _rattle(t: NDArray[np.float64], noise: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    since = (t * 23 + rng.uniform()) % 1.0 / 23
    return np.asarray(0.9 * np.exp(-since * 250) * noise)


def _hiss(t: NDArray[np.float64], noise: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    return np.asarray(0.5 * np.diff(noise, prepend=0.0))


def _surging(t: NDArray[np.float64], noise: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    swell = 1 + np.sin(2 * np.pi * 1.6 * t + rng.uniform(0, 6))
    return np.asarray(0.5 * swell * np.sign(np.sin(2 * np.pi * 137 * t)) + 0.1 * noise)


FAULTS = {
    "grinding": _grinding,
    "knocking": _knocking,
    "squeal": _squeal,
    "rattle": _rattle,
    "hiss": _hiss,
    "surging": _surging,
}


def _wav(samples: NDArray[np.float64]) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(_RATE_HZ)
        file.writeframes((samples.clip(-1.0, 1.0) * 32_767).astype("<i2").tobytes())
    return buffer.getvalue()
