"""The program of the decoder process: decodes FLAC and OGG with libsndfile, and nothing else.

`streams.events.decoder_process` runs it as a file. It is a process of its own because it hands untrusted bytes to C
code: it may crash, hang or use up its memory, and is then killed and started again. It imports nothing of this
package, writes no file, and ends with its parent.

Arguments: parent pid, max seconds, max channels, min rate, max rate (Hz), CPU seconds per clip, memory limit (bytes).
Once ready it writes `READY`. Then, in order, for every request on stdin (u32 length, encoded clip) one answer on
stdout (u32 length, u8 status, body); numbers are little-endian. Status 0: u32 rate, u32 channels, interleaved
float32 samples. Status 1: UTF-8 "reason detail", the reason being a value of `streams.events.types.Reason`.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import io
import os
import resource
import signal
import struct
import sys
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO

READY = b"sensorium-audio-1\n"
_PR_SET_PDEATHSIG = 1
_BLOCK_FRAMES = 65_536
_BITS_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True)
class Limits:
    """What a clip may have: seconds, channels, sampling rates in Hz."""

    max_seconds: float
    max_channels: int
    min_rate: int
    max_rate: int


class Refused(Exception):
    """The clip cannot be decoded; `args` are reason and detail."""


def decode(encoded: bytes, limits: Limits, space: bytearray) -> tuple[int, int, memoryview]:
    """Rate (Hz), channels and interleaved float32 samples. Raises `Refused`; limits are checked before decoding.

    The samples are in `space`, which grows as needed and is reused for every clip: allocating afresh costs a tenth of
    the decoding time.
    """
    import soundfile

    expected = flac_frames(encoded) if encoded[:4] == b"fLaC" else ogg_frames(encoded)
    try:
        with soundfile.SoundFile(io.BytesIO(encoded)) as sound:
            if sound.format not in ("FLAC", "OGG"):
                raise Refused("audio_codec", f"{sound.format} that starts like FLAC or OGG")
            rate, channels = sound.samplerate, sound.channels
            if not 1 <= channels <= limits.max_channels:
                raise Refused("audio_channels", f"{channels} channels, at most {limits.max_channels} are allowed")
            if not limits.min_rate <= rate <= limits.max_rate:
                detail = f"{rate} Hz, {limits.min_rate} to {limits.max_rate} Hz are allowed"
                raise Refused("audio_rate", detail)
            max_frames = int(limits.max_seconds * rate)
            if expected is not None:
                # the last page of Opus counts at 48 kHz whatever rate libsndfile gives
                expected = min(expected, sound.frames) if sound.format == "OGG" else expected
                if expected > max_frames:
                    raise _too_long(expected / rate, limits)
            frames, width = 0, 4 * channels
            while True:
                # no further than the declared length: libsndfile fails on other data that may follow
                block = min(_BLOCK_FRAMES, max_frames + 1 - frames, max(0, sound.frames - frames))
                if len(space) < (frames + block) * width:
                    space.extend(bytes((frames + block) * width - len(space)))
                got = sound.buffer_read_into(memoryview(space)[frames * width : (frames + block) * width], "float32")
                frames += got
                if frames > max_frames:
                    raise _too_long(frames / rate, limits)
                if not got:
                    break
    except soundfile.LibsndfileError as error:
        raise Refused("audio_corrupt", f"libsndfile: {error.error_string}") from None
    if expected is not None and frames < expected:
        raise Refused("audio_corrupt", f"{frames} of {expected} frames could be decoded")
    if not frames:
        raise Refused("audio_empty", "the clip has no samples")
    return rate, channels, memoryview(space)[: frames * width]


def _too_long(seconds: float, limits: Limits) -> Refused:
    return Refused("audio_too_long", f"{seconds:.1f} s, at most {limits.max_seconds:g} s are allowed")


def flac_frames(encoded: bytes) -> int | None:
    """Frames that STREAMINFO declares; None where it declares none (0)."""
    if len(encoded) < 42 or encoded[4] & 0x7F != 0:
        raise Refused("audio_corrupt", "FLAC without STREAMINFO")
    return int.from_bytes(encoded[21:26], "big") & ((1 << 36) - 1) or None


def ogg_checksum(page: bytes) -> int:
    """CRC of an OGG page: zlib's polynomial with reversed bit order and without inversions."""
    blank = (page[:22] + bytes(4) + page[26:]).translate(_BITS_REVERSED)
    return int(f"{zlib.crc32(blank, 0xFFFFFFFF) ^ 0xFFFFFFFF:032b}"[::-1], 2)


def ogg_frames(encoded: bytes) -> int:
    """The last page's position in samples. Raises `Refused` for clips that are cut off, damaged or of another codec.

    libsndfile skips damaged and missing pages without an error.
    """
    position, pages, streams, last, serial = 0, 0, 0, 0, b""
    ended = False
    while position < len(encoded):
        head = encoded[position : position + 27]
        table = encoded[position + 27 : position + 27 + (head[26] if len(head) == 27 else 0)]
        start = position + 27 + len(table)
        end = start + sum(table)
        if len(head) < 27 or head[:4] != b"OggS" or len(table) < head[26] or end > len(encoded):
            raise Refused("audio_corrupt", f"OGG page at byte {position} of {len(encoded)} is cut off or damaged")
        if head[5] & 2:  # beginning of a logical stream
            streams += 1
            packet, serial = encoded[start : start + 8], head[14:18]
            if streams > 1:
                raise Refused("audio_codec", "OGG with more than one stream")
            if packet != b"OpusHead" and packet[:7] != b"\x01vorbis":
                raise Refused("audio_codec", "OGG that is neither Vorbis nor Opus")
        elif head[14:18] != serial:
            raise Refused("audio_corrupt", f"OGG page at byte {position} belongs to no stream")
        granule, sequence, checksum = struct.unpack("<q4xII", head[6:26])
        if sequence != pages or checksum != ogg_checksum(encoded[position:end]):
            raise Refused("audio_corrupt", f"OGG page {pages} at byte {position} is damaged or missing")
        ended = bool(head[5] & 4)
        pages += 1
        last = granule if granule >= 0 else last
        position = end
    if not ended:
        raise Refused("audio_corrupt", "OGG without its last page: the clip is cut off")
    return int(last)


# -- the process -------------------------------------------------------------------------------------------------


def answer(encoded: bytes, limits: Limits, space: bytearray) -> tuple[bytes, memoryview]:
    """The answer to one clip in two parts, so that the samples are not copied."""
    try:
        rate, channels, samples = decode(encoded, limits, space)
    except Refused as refused:
        status = b"\x01" + " ".join(refused.args).encode()
    except MemoryError:
        status = b"\x01audio_decoder_crashed decoding needs more memory than the decoder may use"
    except Exception as error:
        status = b"\x01" + f"audio_corrupt {type(error).__name__} while decoding".encode()
    else:
        return b"\x00" + struct.pack("<II", rate, channels), samples
    return status, memoryview(b"")


def serve(source: BinaryIO, sink: BinaryIO, limits: Limits, cpu_seconds: int) -> None:
    """Answer requests until the end of `source`."""
    space = bytearray()
    while len(head := source.read(4)) == 4:
        (length,) = struct.unpack("<I", head)
        encoded = source.read(length)
        if len(encoded) < length:
            return
        used = resource.getrusage(resource.RUSAGE_SELF)
        allowed = int(used.ru_utime + used.ru_stime) + 1 + cpu_seconds
        resource.setrlimit(resource.RLIMIT_CPU, (allowed, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        head, samples = answer(encoded, limits, space)
        sink.write(struct.pack("<I", len(head) + len(samples)) + head)
        sink.write(samples)
        sink.flush()
        samples.release()  # `space` cannot grow while it is exported


def die_with_parent(parent: int) -> None:
    """Ask the kernel for SIGKILL when the parent ends (Linux only; elsewhere the end of stdin ends us)."""
    if sys.platform == "linux":
        libc: Any = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def main(arguments: list[str]) -> None:
    parent, seconds, channels, low, high, cpu, memory = arguments
    die_with_parent(int(parent))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent decides
    import soundfile  # noqa: F401  # now, so that READY means it works, and before memory is limited

    for name, limit in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_AS, int(memory))):
        with contextlib.suppress(ValueError, OSError):  # not every system has each of them
            resource.setrlimit(name, (limit, limit))
    for pipe in (0, 1):
        with contextlib.suppress(ValueError, OSError):  # wide pipes: fewer switches between parent and child
            fcntl.fcntl(pipe, getattr(fcntl, "F_SETPIPE_SZ", 1031), 1 << 20)
    # answers have a descriptor of their own, so that output printed by a library cannot mix with them
    sink = os.fdopen(os.dup(1), "wb", buffering=1 << 16)
    os.dup2(2, 1)
    sink.write(READY)
    sink.flush()
    with contextlib.suppress(BrokenPipeError):
        serve(sys.stdin.buffer, sink, Limits(float(seconds), int(channels), int(low), int(high)), int(cpu))


if __name__ == "__main__":
    main(sys.argv[1:])
