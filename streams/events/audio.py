"""Sound clips: WAV is decoded here, FLAC and OGG in the decoder process; claim checks are resolved first."""

from __future__ import annotations

import asyncio
import hashlib
import struct
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from streams.events.claim_check import parse_claim, read_claim
from streams.events.decoder_process import DecoderProcess
from streams.events.envelope import JSON_TYPES, Headers, check_modality, content_type, fallback_time, shown, time_of
from streams.events.types import Clip, Modality, Reason, Rejection
from streams.events.wav import check_limits, float_samples, read_wav, wav_samples
from streams.settings import AudioSettings

_INLINE_BYTES = 65_536  # up to this size clips are decoded on the event loop: a thread would cost more
_OTHER_TYPES = ("application/ogg", "application/octet-stream")
_CHILD_REASONS = frozenset(reason.value for reason in Reason if reason.name.startswith("AUDIO_"))
_ACCEPTED = "send WAV (PCM or float), FLAC, OGG Vorbis or OGG Opus"


class ClipDecoder:
    """Turns records of `audio-clips` into clips. Use as a context manager; safe for concurrent `decode` calls."""

    def __init__(self, settings: AudioSettings) -> None:
        self._settings = settings
        self._process = DecoderProcess(settings)
        # one thread: BLAS starts threads of its own, and several of these would compete for the cores
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="clips")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._process.close()
        self._thread.shutdown(wait=True, cancel_futures=True)

    @property
    def child_pid(self) -> int | None:
        """Process id of the decoder process, None while none runs."""
        return self._process.pid

    async def check(self) -> None:
        """Start the decoder process if none runs. Raises `DecoderUnavailable` if it cannot start."""
        await self._process.request(b"")

    async def decode(self, value: bytes | None, headers: Headers, timestamp_ms: int | None) -> Clip:
        """The clip in one record: the encoded sound itself, or a claim check (content-type application/json).

        `timestamp_ms` is the record timestamp, used when neither payload nor headers have a time. Raises `Rejection`
        for every fault of the clip, `DecoderUnavailable` if the decoder process cannot start.
        """
        check_modality(headers, Modality.AUDIO)
        media = content_type(headers)
        if not value:
            raise Rejection(Reason.EMPTY, "the record has no value")
        time: int | None = None
        if media in JSON_TYPES or (media is None and value[:1] == b"{"):
            claim = parse_claim(value)
            time = None if claim.time is None else time_of(claim.time)
            roots, limit = self._settings.claim_roots, self._settings.max_bytes
            value = await asyncio.to_thread(read_claim, claim, roots, limit)
            if not value:
                raise Rejection(Reason.EMPTY, "the claimed file is empty")
        elif media is not None and not media.startswith("audio/") and media not in _OTHER_TYPES:
            detail = f"content-type {shown(media)} is neither audio/... nor application/json (a claim check)"
            raise Rejection(Reason.UNKNOWN_CONTENT_TYPE, detail)
        if len(value) > self._settings.max_bytes:
            detail = f"the clip has {len(value)} bytes, at most {self._settings.max_bytes} are allowed"
            raise Rejection(Reason.TOO_LARGE, detail)
        if time is None:
            time = fallback_time(headers, timestamp_ms)
        loop = asyncio.get_running_loop()
        if value[:4] in (b"fLaC", b"OggS"):
            body = await self._process.request(value)
            if len(body) <= _INLINE_BYTES:
                sha256, samples = _from_answer(value, body, self._settings)
            else:
                sha256, samples = await loop.run_in_executor(self._thread, _from_answer, value, body, self._settings)
        elif value[:4] == b"RIFF" and value[8:12] == b"WAVE":
            if len(value) <= _INLINE_BYTES:
                sha256, samples = _from_wav(value, self._settings)
            else:
                sha256, samples = await loop.run_in_executor(self._thread, _from_wav, value, self._settings)
        else:
            raise _unknown_format(value, media)
        return Clip(time, sha256, samples)


def _unknown_format(value: bytes, media: str | None) -> Rejection:
    what = f"a clip that starts with {shown(value[:8])}"
    if value[:3] == b"ID3" or (value[0] == 0xFF and len(value) > 1 and value[1] & 0xE6 == 0xE2):
        what = "MP3"
    declared = f", content-type {shown(media)}" if media else ""
    return Rejection(Reason.AUDIO_FORMAT, f"{what}{declared}; {_ACCEPTED}")


def _from_wav(value: bytes, settings: AudioSettings) -> tuple[str, NDArray[np.int16]]:
    return hashlib.sha256(value).hexdigest(), wav_samples(read_wav(value, settings))


def _from_answer(value: bytes, body: bytes, settings: AudioSettings) -> tuple[str, NDArray[np.int16]]:
    """SHA-256 and samples. The answer is validated like input: a hostile clip may have taken over the child."""
    if body[:1] == b"\1":
        reason, _, detail = body[1:].decode("utf-8", "replace").partition(" ")
        if reason in _CHILD_REASONS:
            raise Rejection(Reason(reason), detail)
    elif body[:1] == b"\0" and len(body) >= 9:
        rate, channels = struct.unpack_from("<II", body, 1)
        frames, rest = divmod(len(body) - 9, 4 * channels or 1)
        if not rest:
            check_limits(rate, channels, frames, settings)
            samples = float_samples(np.frombuffer(body, "<f4", offset=9), channels, rate)
            return hashlib.sha256(value).hexdigest(), samples
    raise Rejection(Reason.AUDIO_DECODER_CRASHED, f"the decoder answered {shown(body[:20])}")
