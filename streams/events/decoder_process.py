"""The decoder process: started when needed, killed when it hangs, started again when it has died.

What runs in it is `streams.events.decoder_child`: libsndfile on bytes that anybody may have sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import struct
import sys
from collections import deque
from pathlib import Path

from streams.errors import DependencyError
from streams.events.decoder_child import READY
from streams.events.types import Reason, Rejection
from streams.settings import AudioSettings

_MAX_IN_FLIGHT = 4  # requests written to the child and not answered yet, so that it never idles between clips
_START_TIMEOUT_S = 60.0
_MEMORY_BYTES = 1 << 30  # address space of the child: libraries, a clip and its samples
_CHILD = Path(__file__).with_name("decoder_child.py")


class DecoderUnavailable(DependencyError):
    """The decoder process does not start: the installation is broken, not a clip."""


class _Request:
    __slots__ = ("answer", "crashes", "encoded")

    def __init__(self, encoded: bytes) -> None:
        self.encoded = encoded
        self.crashes = 0
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()


class DecoderProcess:
    """One decoder process, started with the first request and again after it was killed; answers in order.

    The clip at the head of the queue is the one being decoded. When the child hangs, that clip is rejected and those
    behind it are given to the next child. When the child dies, the clip is tried once more, because something outside
    may have killed the child; it is rejected if that child dies too.
    """

    def __init__(self, settings: AudioSettings) -> None:
        self._settings = settings
        # the longest possible answer: a clip at all its limits, and some room for a message
        samples = int(settings.max_seconds * settings.max_rate_hz + 1) * settings.max_channels
        self._max_answer_bytes = 4 * samples + 65_536
        self._waiting: deque[_Request] = deque()
        self._in_flight: deque[_Request] = deque()
        self._changed = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the child, None while none runs."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def request(self, encoded: bytes) -> bytes:
        """The child's answer to one encoded clip: status byte and body (empty clip: a rejection, once it runs).

        Raises `Rejection` (AUDIO_DECODER_TIMEOUT, AUDIO_DECODER_CRASHED) and `DecoderUnavailable`.
        """
        request = _Request(encoded)
        self._waiting.append(request)
        self._changed.set()
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run())
        return await request.answer

    async def close(self) -> None:
        """Kill the child; requests without an answer are cancelled."""
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.wait([self._runner])
        await self._end()
        self._fail(None)

    async def _run(self) -> None:
        """Answer requests until cancelled, with a new child whenever the last one has died."""
        try:
            while True:
                if not self._waiting:
                    self._changed.clear()
                    await self._changed.wait()
                if self.pid is None:
                    await self._end()
                    self._process = await self._start()
                await self._serve(self._process)  # type: ignore[arg-type]
        except Exception as error:  # whatever it is, no request may wait without end
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
                greeting = await _stdout(process).readexactly(len(READY))
        except (TimeoutError, asyncio.IncompleteReadError):
            greeting = b""
        if greeting != READY:
            await self._end()
            raise DecoderUnavailable(
                f"the audio decoder does not start (it ended with {process.returncode}); repair it with: "
                f"{sys.executable} -m pip install --force-reinstall soundfile"
            )
        return process

    async def _serve(self, process: asyncio.subprocess.Process) -> None:
        """Write requests and read answers until none is left or the child is lost."""
        writer = asyncio.create_task(self._write(process))
        reason: Rejection | None = None
        try:
            while self._in_flight or self._waiting:
                if not self._in_flight:
                    if writer.done():  # the child died idle: no clip caused it
                        return await self._end()
                    await asyncio.sleep(0)  # the writer has not taken a request yet
                    continue
                async with asyncio.timeout(self._settings.decode_timeout_s):
                    (length,) = struct.unpack("<I", await _stdout(process).readexactly(4))
                    if length > self._max_answer_bytes:
                        raise asyncio.IncompleteReadError(b"", length)  # no longer our protocol: treat it as dead
                    body = await _stdout(process).readexactly(length)
                request = self._in_flight.popleft()
                self._changed.set()
                if not request.answer.done():
                    request.answer.set_result(body)
        except TimeoutError:
            detail = f"decoding took more than {self._settings.decode_timeout_s:g} s"
            reason = Rejection(Reason.AUDIO_DECODER_TIMEOUT, detail)
        except asyncio.IncompleteReadError:
            await self._end()
            code = process.returncode
            reason = Rejection(Reason.AUDIO_DECODER_CRASHED, f"the decoder ended with {code} while it decoded the clip")
        finally:
            writer.cancel()
            await asyncio.wait([writer])  # not `await writer`: its cancellation is not ours
            if reason is not None:
                await self._end()
                self._reject_head(reason)

    async def _write(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        with contextlib.suppress(ConnectionError):  # a dead child is noticed where answers are read
            while True:
                while self._waiting and len(self._in_flight) < _MAX_IN_FLIGHT:
                    request = self._waiting.popleft()
                    self._in_flight.append(request)
                    process.stdin.write(struct.pack("<I", len(request.encoded)))
                    process.stdin.write(request.encoded)
                    await process.stdin.drain()
                self._changed.clear()
                await self._changed.wait()

    def _reject_head(self, reason: Rejection) -> None:
        if self._in_flight:
            request = self._in_flight[0]
            request.crashes += reason.reason is Reason.AUDIO_DECODER_CRASHED
            if request.crashes != 1:
                self._in_flight.popleft()
                if not request.answer.done():
                    request.answer.set_exception(reason)
        self._waiting.extendleft(reversed(self._in_flight))
        self._in_flight.clear()

    def _fail(self, error: Exception | None) -> None:
        for request in (*self._in_flight, *self._waiting):
            if request.answer.done():
                continue
            if error is None:
                request.answer.cancel()
            else:
                request.answer.set_exception(error)
        self._in_flight.clear()
        self._waiting.clear()

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                # not process.kill(): it polls first, and asyncio's watcher would miss the exit code
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            await process.wait()


def _child_environment() -> dict[str, str]:
    """Only what the loader may need: no secrets, and no extra threads, which would use up the memory limit."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return kept | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}


def _stdout(process: asyncio.subprocess.Process) -> asyncio.StreamReader:
    assert process.stdout is not None
    return process.stdout
