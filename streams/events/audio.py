"""Clips: which format, which decoder, and the decoder child that `streams.events.decoder_child` runs in."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import os
import signal
import struct
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from streams.events.claim_check import parse_claim, read_claim
from streams.events.decoder_child import READY
from streams.events.envelope import Headers, check_modality, content_type, fallback_time, shown, time_of
from streams.events.types import Clip, Modality, Reason, Rejection
from streams.events.wav import check_limits, float_samples, read_wav, wav_samples
from streams.settings import AudioSettings

_INLINE_BYTES = 65_536  # smaller clips are decoded on the loop: handing over would cost more
_IN_FLIGHT = 4  # requests the child may have waiting, so that it never idles between clips
_START_TIMEOUT_S = 60.0
_MEMORY_BYTES = 1 << 30  # address space of the child: libraries, a clip and its samples
_CHILD = Path(__file__).with_name("decoder_child.py")
_OTHER_TYPES = ("application/ogg", "application/octet-stream")
_JSON_TYPES = ("application/json", "text/json")
_CHILD_REASONS = frozenset(reason.value for reason in Reason if reason.name.startswith("AUDIO_"))
_GOOD = "send WAV (PCM or float), FLAC, OGG Vorbis or OGG Opus"


class DecoderUnavailable(RuntimeError):
    """The decoder child does not start: an installation that is broken, not a clip that is."""


class ClipDecoder:
    """Turns records of `audio-clips` into clips. Use as a context manager; safe for concurrent `decode` calls."""

    def __init__(self, settings: AudioSettings) -> None:
        self._settings = settings
        self._child = DecoderChild(settings)
        # one thread: BLAS has threads of its own, and several of these would fight over the cores
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="clips")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._child.close()
        self._thread.shutdown(wait=True, cancel_futures=True)

    @property
    def child_pid(self) -> int | None:
        """Process id of the decoder child, where one runs; for health pages and tests."""
        return self._child.pid

    async def check(self) -> None:
        """Start the decoder child if none runs. Raises `DecoderUnavailable` if it cannot."""
        await self._child.request(b"")

    async def decode(self, value: bytes | None, headers: Headers, timestamp_ms: int | None) -> Clip:
        """The clip in one record: the encoded sound itself, or a claim check (content-type application/json).

        Raises `Rejection` for every fault of the clip, `DecoderUnavailable` if the decoder child cannot run.
        """
        check_modality(headers, Modality.AUDIO)
        media = content_type(headers)
        if not value:
            raise Rejection(Reason.EMPTY, "the record has no value")
        time: int | None = None
        if media in _JSON_TYPES or (media is None and value[:1] == b"{"):
            claim = parse_claim(value)
            time = None if claim.time is None else time_of(claim.time)
            roots, most = self._settings.claim_roots, self._settings.max_bytes
            value = await asyncio.to_thread(read_claim, claim, roots, most)
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
            body = await self._child.request(value)
            if len(body) <= _INLINE_BYTES:
                sha256, samples = _from_child(value, body, self._settings)
            else:
                sha256, samples = await loop.run_in_executor(self._thread, _from_child, value, body, self._settings)
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
    said = f", content-type {shown(media)}" if media else ""
    return Rejection(Reason.AUDIO_FORMAT, f"{what}{said}; {_GOOD}")


def _from_wav(value: bytes, settings: AudioSettings) -> tuple[str, NDArray[np.int16]]:
    return hashlib.sha256(value).hexdigest(), wav_samples(read_wav(value, settings))


def _from_child(value: bytes, body: bytes, settings: AudioSettings) -> tuple[str, NDArray[np.int16]]:
    """What the child answered. It has read bytes from strangers: it is believed no more than they are."""
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


class _Job:
    __slots__ = ("answer", "crashes", "encoded")

    def __init__(self, encoded: bytes) -> None:
        self.encoded = encoded
        self.crashes = 0
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()


class DecoderChild:
    """One decoder process, started when first needed and again after it was killed; answers in order.

    The clip at the head of the line is the one being decoded: when the child hangs, that clip is to blame, and those
    behind it are given to the next child. When the child dies the clip gets a second try, for the child may have been
    killed from outside; it is to blame if that one dies too.
    """

    def __init__(self, settings: AudioSettings) -> None:
        self._settings = settings
        # the longest answer there can be: a clip at all its limits, and a little for words
        samples = int(settings.max_seconds * settings.max_rate_hz + 1) * settings.max_channels
        self._most_bytes = 4 * samples + 65_536
        self._waiting: deque[_Job] = deque()
        self._flight: deque[_Job] = deque()
        self._news = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def request(self, encoded: bytes) -> bytes:
        """Status and body of the child's answer. Raises AUDIO_DECODER_TIMEOUT, AUDIO_DECODER_CRASHED."""
        job = _Job(encoded)
        self._waiting.append(job)
        self._news.set()
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._run())
        return await job.answer

    async def close(self) -> None:
        """End the child; whoever still waits is cancelled."""
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.wait([self._pump])
        await self._end()
        self._fail(None)

    async def _run(self) -> None:
        """Serve requests with one child after another, for as long as there are any."""
        try:
            while True:
                if not self._waiting:
                    self._news.clear()
                    await self._news.wait()
                if self.pid is None:
                    await self._end()
                    self._process = await self._start()
                await self._serve(self._process)  # type: ignore[arg-type]
        except Exception as error:  # whatever it is, nobody may be left waiting
            await self._end()
            self._fail(error)

    async def _start(self) -> asyncio.subprocess.Process:
        s = self._settings
        limits = (s.max_seconds, s.max_channels, s.min_rate_hz, s.max_rate_hz, math.ceil(s.decode_timeout_s))
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            str(_CHILD),
            str(os.getpid()),
            *(str(limit) for limit in limits),
            str(_MEMORY_BYTES),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=_child_environment(),
            limit=1 << 20,
        )
        self._process = process
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                hello = await _stdout(process).readexactly(len(READY))
        except (TimeoutError, asyncio.IncompleteReadError):
            hello = b""
        if hello != READY:
            await self._end()
            what = f"the audio decoder does not start (it ended with {process.returncode})"
            raise DecoderUnavailable(
                f"{what}; repair it with: {sys.executable} -m pip install --force-reinstall soundfile"
            )
        return process

    async def _serve(self, process: asyncio.subprocess.Process) -> None:
        """Keep the child fed and collect its answers, until nothing is left or the child is lost."""
        feeder = asyncio.create_task(self._feed(process))
        reason: Rejection | None = None
        try:
            while self._flight or self._waiting:
                if not self._flight:
                    if feeder.done():  # the child is gone, and had nothing to do: nobody is to blame
                        return await self._end()
                    await asyncio.sleep(0)  # the feeder has yet to move a job over
                    continue
                async with asyncio.timeout(self._settings.decode_timeout_s):
                    (length,) = struct.unpack("<I", await _stdout(process).readexactly(4))
                    if length > self._most_bytes:
                        raise asyncio.IncompleteReadError(b"", length)  # not its words any more: as good as dead
                    body = await _stdout(process).readexactly(length)
                job = self._flight.popleft()
                self._news.set()
                if not job.answer.done():
                    job.answer.set_result(body)
        except TimeoutError:
            detail = f"decoding took more than {self._settings.decode_timeout_s:g} s"
            reason = Rejection(Reason.AUDIO_DECODER_TIMEOUT, detail)
        except asyncio.IncompleteReadError:
            await self._end()
            code = process.returncode
            reason = Rejection(Reason.AUDIO_DECODER_CRASHED, f"the decoder ended with {code} while it decoded the clip")
        finally:
            feeder.cancel()
            await asyncio.wait([feeder])  # not `await feeder`: its cancellation must not be taken for ours
            if reason is not None:
                await self._end()
                self._blame_head(reason)

    async def _feed(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        with contextlib.suppress(ConnectionError):  # a dead child is noticed by whoever reads its answers
            while True:
                while self._waiting and len(self._flight) < _IN_FLIGHT:
                    job = self._waiting.popleft()
                    self._flight.append(job)
                    process.stdin.write(struct.pack("<I", len(job.encoded)))
                    process.stdin.write(job.encoded)
                    await process.stdin.drain()
                self._news.clear()
                await self._news.wait()

    def _blame_head(self, reason: Rejection) -> None:
        if self._flight:
            job = self._flight[0]
            job.crashes += reason.reason is Reason.AUDIO_DECODER_CRASHED
            if job.crashes != 1:
                self._flight.popleft()
                if not job.answer.done():
                    job.answer.set_exception(reason)
        self._waiting.extendleft(reversed(self._flight))
        self._flight.clear()

    def _fail(self, error: Exception | None) -> None:
        for job in (*self._flight, *self._waiting):
            if job.answer.done():
                continue
            if error is None:
                job.answer.cancel()
            else:
                job.answer.set_exception(error)
        self._flight.clear()
        self._waiting.clear()

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                # not process.kill(): it polls first, and would take the exit code from under asyncio's watcher
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            await process.wait()


def _child_environment() -> dict[str, str]:
    """Nothing but what the loader may need: no secrets, and no threads that would eat into the memory limit."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return kept | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}


def _stdout(process: asyncio.subprocess.Process) -> asyncio.StreamReader:
    assert process.stdout is not None
    return process.stdout
