"""Windows -> vectors, in batches whose shape never depends on what is in them.

A matrix product may round its last bit differently at another size, so every batch here has BATCH rows and a length
picked by each item itself: a window's vectors are the same to the last bit alone, in company, and in any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.batches import stack_captions, stack_sensors
from models.config import PRIVATE_DIM, SHARED_DIM
from models.encoders.audio import FRAME_DIM
from models.encoders.caption import CAPTIONS_MAX, LENGTHS, CaptionWords, read_caption, window_captions
from models.encoders.sensor import POOLED
from models.errors import ModelError
from models.features import FRAME_SAMPLES, FRAMES_MAX, MEL_BANDS, log_mel, window_frames
from models.fusion import TOKENS
from models.interface import DIM, MODALITY_NAMES, Vector, WindowInput, WindowVectors
from models.network import Network
from models.sensor_tokens import SensorTokens, bucket_length, tokenize

BATCH = 8  # rows of every batch
Array = NDArray[np.float32]


class Embedder:
    """A WindowModel: see models.interface. May be called from several threads; torch itself uses one each."""

    def __init__(self, network: Network, version: str) -> None:
        torch.set_num_threads(1)
        self._network = network
        self._config = network.config
        self._version = version

    @property
    def version(self) -> str:
        return self._version

    def embed(self, windows: Sequence[WindowInput]) -> list[WindowVectors]:
        """Vectors of each window, in order. Raises ModelError for a window without any content."""
        for window in windows:
            if not (window.readings or window.clips or window.captions):
                raise ModelError(f"the window {window.start_ms}..{window.end_ms} ms is empty: nothing to embed")
        if torch.get_num_threads() != 1:
            torch.set_num_threads(1)
        with torch.inference_mode():
            sensors = self._sensors(windows)
            audio = self._audio(windows)
            captions = self._captions(windows)
            vectors: list[WindowVectors] = []
            for start in range(0, len(windows), BATCH):
                chunk = range(start, min(start + BATCH, len(windows)))
                vectors += self._fuse(windows, chunk, sensors, audio, captions)
        return vectors

    def embed_text(self, text: str) -> Vector:
        """(DIM,) of length 1: the shared part of a caption's vector, to compare with any stored vector."""
        return self._query("caption", WindowInput(0, 1_000, captions=[(0, text)]))

    def embed_audio(self, samples: NDArray[np.int16]) -> Vector:
        """(DIM,) of length 1: the shared part of a sound's vector, to compare with any stored vector."""
        return self._query("audio", WindowInput(0, 1_000, clips=[(0, samples)]))

    def _query(self, modality: str, window: WindowInput) -> Vector:
        vector = self.embed([window])[0].unimodal[modality].astype(np.float64)
        vector[SHARED_DIM:] = 0.0  # another modality's private part says nothing about this one
        return _unit(vector)

    def _sensors(self, windows: Sequence[WindowInput]) -> dict[int, tuple[Array, Array, Array]]:
        """By window: shared, private, tokens for fusion."""
        by_length: dict[int, list[tuple[int, SensorTokens]]] = {}
        for i, w in enumerate(windows):
            if w.readings:
                tokens = tokenize(w.readings, w.units, w.start_ms, w.end_ms, self._config.channel_buckets, PRIVATE_DIM)
                by_length.setdefault(bucket_length(len(tokens)), []).append((i, tokens))
        out: dict[int, tuple[Array, Array, Array]] = {}
        for length, items in by_length.items():
            for start in range(0, len(items), BATCH):
                chunk = items[start : start + BATCH]
                batch = stack_sensors([tokens for _, tokens in chunk], BATCH, length)
                shared, private, pooled = self._network.sensor(*batch)
                for row, (i, _) in enumerate(chunk):
                    out[i] = (shared[row].numpy(), private[row].numpy(), pooled[row].numpy())
        return out

    def _audio(self, windows: Sequence[WindowInput]) -> dict[int, tuple[Array, Array, Array, list[int]]]:
        """By window: shared, private, frames (F, FRAME_DIM), and the frames' times in ms."""
        owners: list[int] = []
        times: list[int] = []
        samples: list[NDArray[np.float32]] = []
        for i, window in enumerate(windows):
            for time_ms, frame in window_frames(list(window.clips)):
                owners.append(i)
                times.append(time_ms)
                samples.append(frame)
        frames: list[Tensor] = []
        levels: list[Tensor] = []
        for start in range(0, len(samples), BATCH):
            batch = torch.zeros(BATCH, FRAME_SAMPLES)
            for row, frame in enumerate(samples[start : start + BATCH]):
                batch[row] = torch.from_numpy(frame)
            some, level = self._network.frames(log_mel(batch))
            frames += list(some)
            levels += list(level)
        by_window: dict[int, list[int]] = {}
        for k, i in enumerate(owners):
            by_window.setdefault(i, []).append(k)
        out: dict[int, tuple[Array, Array, Array, list[int]]] = {}
        items = list(by_window.items())
        for start in range(0, len(items), BATCH):
            chunk = items[start : start + BATCH]
            held = torch.zeros(BATCH, FRAMES_MAX, FRAME_DIM)
            heard = torch.zeros(BATCH, FRAMES_MAX, 2 * MEL_BANDS)
            mask = torch.zeros(BATCH, FRAMES_MAX, dtype=torch.bool)
            for row, (_, places) in enumerate(chunk):
                for column, k in enumerate(places):
                    held[row, column], heard[row, column], mask[row, column] = frames[k], levels[k], True
            shared, private = self._network.audio(held, heard, mask)
            for row, (i, places) in enumerate(chunk):
                kept = held[row, : len(places)].numpy()
                out[i] = (shared[row].numpy(), private[row].numpy(), kept, [times[k] for k in places])
        return out

    def _captions(self, windows: Sequence[WindowInput]) -> dict[int, tuple[Array, Array, Array, list[int]]]:
        """By window: shared, private, captions (C, SHARED_DIM), and the captions' times in ms."""
        chosen = {i: window_captions(window.captions) for i, window in enumerate(windows) if window.captions}
        read = {text: read_caption(text, self._config.text_buckets) for kept in chosen.values() for _, text in kept}
        encoded = self._texts(read)
        out: dict[int, tuple[Array, Array, Array, list[int]]] = {}
        for i, kept in chosen.items():
            each = np.stack([encoded[text] for _, text in kept])  # (C, SHARED_DIM)
            sketch = np.stack([read[text].sketch for _, text in kept]).sum(axis=0, dtype=np.float64)
            shared = _unit(each.sum(axis=0, dtype=np.float64))
            out[i] = (shared, _unit(sketch), each, [time_ms for time_ms, _ in kept])
        return out

    def _texts(self, read: dict[str, CaptionWords]) -> dict[str, Array]:
        by_length: dict[int, list[tuple[str, CaptionWords]]] = {}
        for text, caption in read.items():
            by_length.setdefault(next(n for n in LENGTHS if len(caption) <= n), []).append((text, caption))
        out: dict[str, Array] = {}
        for length, items in by_length.items():
            for start in range(0, len(items), BATCH):
                chunk = items[start : start + BATCH]
                batch = stack_captions([caption for _, caption in chunk], BATCH, length)
                shared = self._network.caption(*batch).numpy()
                for row, (text, _) in enumerate(chunk):
                    out[text] = shared[row]
        return out

    def _fuse(
        self, windows: Sequence[WindowInput], chunk: range,
        sensors: dict[int, tuple[Array, Array, Array]],
        audio: dict[int, tuple[Array, Array, Array, list[int]]],
        captions: dict[int, tuple[Array, Array, Array, list[int]]],
    ) -> list[WindowVectors]:  # fmt: skip
        sensor_tokens = torch.zeros(BATCH, POOLED, self._config.sensor_dim)
        audio_tokens = torch.zeros(BATCH, FRAMES_MAX, FRAME_DIM)
        caption_tokens = torch.zeros(BATCH, CAPTIONS_MAX, SHARED_DIM)
        when = torch.zeros(BATCH, TOKENS)
        mask = torch.zeros(BATCH, TOKENS, dtype=torch.bool)
        unimodal = torch.zeros(BATCH, len(MODALITY_NAMES), SHARED_DIM)
        present = torch.zeros(BATCH, len(MODALITY_NAMES), dtype=torch.bool)
        for row, i in enumerate(chunk):
            window = windows[i]
            span = max(window.end_ms - window.start_ms, 1)
            if i in sensors:
                sensor_tokens[row] = torch.from_numpy(sensors[i][2])
                when[row, :POOLED], mask[row, :POOLED] = 0.5, True
            for held, target, at in ((audio, audio_tokens, POOLED), (captions, caption_tokens, POOLED + FRAMES_MAX)):
                if i in held:
                    _, _, tokens, times = held[i]
                    target[row, : len(times)] = torch.from_numpy(tokens)
                    mask[row, at : at + len(times)] = True
                    for k, time_ms in enumerate(times):
                        when[row, at + k] = (time_ms - window.start_ms) / span
            for m, part in enumerate((sensors.get(i), audio.get(i), captions.get(i))):
                if part is not None:
                    unimodal[row, m], present[row, m] = torch.from_numpy(part[0]), True
        fused, attention = self._network.fusion(
            sensor_tokens, audio_tokens, caption_tokens, when, mask, unimodal, present
        )
        out = []
        for row, i in enumerate(chunk):
            parts = {"sensor": sensors.get(i), "audio": audio.get(i), "caption": captions.get(i)}
            there = {name: part for name, part in parts.items() if part is not None}
            shares = {name: getattr(self._config, f"{name}_private") for name in there}
            vectors = {name: _join(part[0], part[1], shares[name]) for name, part in there.items()}
            sketch = np.stack([part[1] for part in there.values()]).sum(axis=0, dtype=np.float64)
            joint = _join(fused[row].numpy(), _unit(sketch), self._config.joint_private)
            seen = {name: float(attention[row, MODALITY_NAMES.index(name)]) for name in there}
            total = sum(seen.values())
            out.append(WindowVectors(joint, vectors, {name: share / total for name, share in seen.items()}))
        return out


def _join(shared: Array, private: Array, share: float) -> Vector:
    """Shared and private part in one vector of length 1, `share` of its square in the private part."""
    parts = (shared.astype(np.float64) * (1 - share) ** 0.5, private.astype(np.float64) * share**0.5)
    return _unit(np.concatenate(parts))


def _unit(vector: NDArray[Any]) -> Vector:
    """Length 1, or zeros where there is no direction."""
    length = float(np.sqrt(np.sum(vector * vector)))
    return (vector / length if length > 0 else vector).astype(np.float32)


__all__ = ["BATCH", "DIM", "Embedder"]
