"""The decoder process may crash, hang, run out of memory or be killed; only the clip that caused it is rejected."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from streams.events import decoder_process
from streams.events.audio import ClipDecoder
from streams.events.decoder_child import ogg_checksum
from streams.events.decoder_process import DecoderUnavailable
from streams.events.types import Clip, Reason, Rejection
from streams.settings import AudioSettings
from tests.bad_inputs import encode, tone

T = 1_800_000_000_000
FLAC = encode(tone(0.2), 16_000, "FLAC")

# the real child, with a decoder that misbehaves on clips that contain a mark
_FAULTY_CHILD = r"""
import os, runpy, sys, time
child = runpy.run_path({path!r})
real, answer = child["decode"], child["answer"]
def invalid_answer(encoded, limits, space):
    status = None
    if b"NONSENSE" in encoded: status = b"\x07" * 50
    if b"REASON" in encoded: status = b"\x01made_up reason"
    if b"UNEVEN" in encoded: status = b"\x00" + (16000).to_bytes(4, "little") + (2).to_bytes(4, "little") + bytes(12)
    if b"ZERO" in encoded: status = b"\x00" + bytes(16)
    if b"HUGE" in encoded: status = b"\x00" * (200 << 20)
    return answer(encoded, limits, space) if status is None else (status, memoryview(b""))
child["serve"].__globals__["answer"] = invalid_answer
def decode(encoded, limits, space):
    if b"CRASH" in encoded: os.abort()
    if b"SPIN" in encoded:
        while True: pass
    if b"SLEEP" in encoded: time.sleep(600)
    if b"EAT" in encoded: bytearray(8 << 30)
    if b"WRITE" in encoded: open({target!r}, "wb").write(b"x" * 100_000)
    if b"PRINT" in encoded: print("noise from a library", flush=True)
    return real(encoded, limits, space)
answer.__globals__["decode"] = decode
child["main"](sys.argv[1:])
"""


@pytest.fixture
def faulty_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes decoders use the faulty child; returns the file that it is not allowed to write."""
    target = tmp_path / "written"
    script = tmp_path / "child.py"
    script.write_text(_FAULTY_CHILD.format(path=str(decoder_process._CHILD), target=str(target)))
    monkeypatch.setattr(decoder_process, "_CHILD", script)
    return target


def marked(mark: bytes) -> bytes:
    """A valid FLAC clip with a mark after its end."""
    return FLAC + mark


async def outcome(clips: ClipDecoder, value: bytes) -> Clip | Reason:
    try:
        return await clips.decode(value, (), T)
    except Rejection as refused:
        return refused.reason


async def test_no_child_runs_before_the_first_compressed_clip_and_none_after_the_end() -> None:
    async with ClipDecoder(AudioSettings()) as clips:
        await clips.decode(encode(tone(), 16_000, "WAV"), (), T)
        assert clips.child_pid is None
        await clips.decode(FLAC, (), T)
        first = clips.child_pid
        await clips.decode(FLAC, (), T)
        assert first is not None
        assert clips.child_pid == first
    assert not psutil.pid_exists(first)


async def test_many_clips_at_once_each_get_their_own_samples() -> None:
    values = [encode(np.full(100 + i, i / 100), 16_000, "FLAC", "PCM_16") for i in range(60)]
    async with ClipDecoder(AudioSettings()) as clips:
        decoded = await asyncio.gather(*(clips.decode(value, (), T + i) for i, value in enumerate(values)))
    for i, clip in enumerate(decoded):
        assert (clip.time_ms, len(clip.samples)) == (T + i, 100 + i)
        assert abs(int(clip.samples[0]) - i / 100 * 32_768) <= 1


async def test_large_clips_in_both_directions_do_not_block_each_other() -> None:
    noise = np.random.default_rng(1).uniform(-1, 1, (48_000 * 8, 2))
    values = [encode(noise, 48_000, "FLAC") for _ in range(6)]
    assert len(values[0]) > 1 << 20
    async with ClipDecoder(AudioSettings(decode_timeout_s=30)) as clips:
        decoded = await asyncio.gather(*(clips.decode(value, (), T) for value in values))
    assert {clip.duration_ms for clip in decoded} == {8_000}


async def test_a_clip_that_crashes_the_child_is_rejected_and_its_neighbours_are_not(faulty_child: Path) -> None:
    async with ClipDecoder(AudioSettings()) as clips:
        results = await asyncio.gather(
            *(outcome(clips, value) for value in [FLAC, FLAC, marked(b"CRASH"), FLAC, marked(b"CRASH"), FLAC])
        )
    kinds = [result if isinstance(result, Reason) else "clip" for result in results]
    crashed = Reason.AUDIO_DECODER_CRASHED
    assert kinds == ["clip", "clip", crashed, "clip", crashed, "clip"]


@pytest.mark.parametrize("mark", [b"SLEEP", b"SPIN"])
async def test_a_clip_that_hangs_the_child_is_rejected_in_time_and_its_neighbours_are_not(
    faulty_child: Path, mark: bytes
) -> None:
    async with ClipDecoder(AudioSettings(decode_timeout_s=1.0)) as clips:
        results = await asyncio.gather(*(outcome(clips, value) for value in [FLAC, marked(mark), FLAC]))
    assert results[1] is Reason.AUDIO_DECODER_TIMEOUT
    assert isinstance(results[0], Clip)
    assert isinstance(results[2], Clip)


async def test_the_child_cannot_use_all_memory_or_write_files_or_disturb_answers(
    faulty_child: Path,
) -> None:
    async with ClipDecoder(AudioSettings()) as clips:
        results = [await outcome(clips, marked(mark)) for mark in (b"EAT", b"WRITE", b"PRINT")]
    assert results[0] is Reason.AUDIO_DECODER_CRASHED
    assert isinstance(results[1], Reason)
    assert not faulty_child.exists() or faulty_child.stat().st_size == 0
    assert isinstance(results[2], Clip)


@pytest.mark.parametrize("mark", [b"NONSENSE", b"REASON", b"UNEVEN", b"HUGE"])
async def test_an_invalid_answer_of_the_child_is_rejected(faulty_child: Path, mark: bytes) -> None:
    async with ClipDecoder(AudioSettings()) as clips:
        assert await outcome(clips, marked(mark)) is Reason.AUDIO_DECODER_CRASHED
        assert await outcome(clips, marked(b"ZERO")) is Reason.AUDIO_CHANNELS
        assert isinstance(await outcome(clips, FLAC), Clip)


async def test_a_child_killed_from_outside_is_replaced_and_no_clip_is_rejected() -> None:
    async with ClipDecoder(AudioSettings()) as clips:
        await clips.decode(FLAC, (), T)
        for _ in range(3):
            pid = clips.child_pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            assert (await clips.decode(FLAC, (), T)).duration_ms == 200
            assert clips.child_pid != pid
        pid = clips.child_pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        at_work = asyncio.gather(*(clips.decode(FLAC, (), T) for _ in range(10)))
        await asyncio.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
        assert len(await at_work) == 10


async def test_a_stopped_child_is_killed_after_the_timeout() -> None:
    async with ClipDecoder(AudioSettings(decode_timeout_s=1.0)) as clips:
        await clips.decode(FLAC, (), T)
        pid = clips.child_pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        assert await outcome(clips, FLAC) is Reason.AUDIO_DECODER_TIMEOUT
        assert not psutil.pid_exists(pid)
        assert isinstance(await outcome(clips, FLAC), Clip)


async def test_a_cancelled_clip_leaves_the_queue_in_order() -> None:
    async with ClipDecoder(AudioSettings()) as clips:
        await clips.decode(FLAC, (), T)
        tasks = [asyncio.create_task(clips.decode(FLAC, (), T + i)) for i in range(8)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        tasks[3].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for i, result in enumerate(results):
            assert isinstance(result, asyncio.CancelledError) if i in (0, 3) else isinstance(result, Clip)


async def test_closing_cancels_waiting_requests(faulty_child: Path) -> None:
    clips = ClipDecoder(AudioSettings(decode_timeout_s=60))
    async with clips:
        await clips.decode(FLAC, (), T)
        pid = clips.child_pid
        assert pid is not None
        waiting = asyncio.create_task(clips.decode(marked(b"SLEEP"), (), T))
        await asyncio.sleep(0.05)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not psutil.pid_exists(pid)


async def test_a_child_that_cannot_start_is_an_error_of_the_installation_and_not_of_the_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "child.py"
    broken.write_text("raise SystemExit(3)")
    real = decoder_process._CHILD
    async with ClipDecoder(AudioSettings()) as clips:
        monkeypatch.setattr(decoder_process, "_CHILD", broken)
        with pytest.raises(DecoderUnavailable, match=r"ended with 3.*pip install"):
            await clips.decode(FLAC, (), T)
        monkeypatch.setattr(decoder_process, "_CHILD", real)
        await clips.check()
        assert clips.child_pid is not None
        assert await clips.decode(FLAC, (), T)


_PARENT_SCRIPT = """
import asyncio, sys
sys.path.insert(0, {root!r})
from streams.events.audio import ClipDecoder
from streams.settings import AudioSettings

async def main():
    async with ClipDecoder(AudioSettings()) as clips:
        await clips.decode(bytes.fromhex(sys.stdin.readline()), (), 1)
        print(clips.child_pid, flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_the_child_ends_when_its_parent_is_killed(end: signal.Signals) -> None:
    script = _PARENT_SCRIPT.format(root=str(Path(decoder_process.__file__).resolve().parents[2]))
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write(FLAC.hex() + "\n")
        parent.stdin.flush()
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running()
        parent.send_signal(end)
        parent.wait()
    # the process that adopts it must reap it; a zombie has ended too
    gone, alive = psutil.wait_procs([child], timeout=30)
    assert gone or all(process.status() == psutil.STATUS_ZOMBIE for process in alive)


def test_the_page_checksum_is_the_one_in_real_ogg_files() -> None:
    for subtype in ("VORBIS", "OPUS"):
        clip = encode(tone(), 48_000, "OGG", subtype)
        assert clip[:4] == b"OggS"
        end = clip.index(b"OggS", 4)
        assert ogg_checksum(clip[:end]) == int.from_bytes(clip[22:26], "little")
