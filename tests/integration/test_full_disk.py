"""An embedded store on a full disk: it waits with one clear line, and the process lives on."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from streams.serving.queries import StoreQueries
from streams.store.base import Filter, StoreError, StoreUnavailable
from streams.store.edge import EdgeStore, _classified
from streams.store.free_space import MIN_FREE_BYTES, free_bytes
from streams.store.retrying import RetryingStore
from tests.integration.test_store_contract import all_of, point
from tests.unit.serving.stored import window


class Disk:
    """Free bytes that a test sets."""

    def __init__(self, free: int = 10 * MIN_FREE_BYTES) -> None:
        self.free = free

    def __call__(self, folder: Path) -> int:
        return self.free


async def test_a_write_on_a_full_disk_waits_and_reads_go_on(tmp_path: Path) -> None:
    disk = Disk()
    async with EdgeStore(tmp_path, free=disk) as store:
        await store.upsert([point(n) for n in range(10)])
        disk.free = MIN_FREE_BYTES - 1
        for write in (
            lambda: store.upsert([point(10)]),
            lambda: store.set_payload(point(1).id, {"bank": True}),
            lambda: store.delete_before(3000),
        ):
            with pytest.raises(StoreUnavailable) as caught:
                await write()
            assert str(tmp_path) in str(caught.value)
            assert f"{MIN_FREE_BYTES - 1:,} bytes are free" in str(caught.value)
            assert "free some room" in str(caught.value)
            assert "\n" not in str(caught.value)
        assert [p.payload["start"] for p in await all_of(store)] == [n * 1000 for n in range(10)]
        disk.free = MIN_FREE_BYTES
        await store.upsert([point(10)])
        assert await store.count() == 11


async def test_a_store_is_not_opened_on_a_full_disk(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "made"
    with pytest.raises(StoreUnavailable, match="is nearly full: 5 bytes are free"):
        await EdgeStore(folder, free=Disk(5)).__aenter__()
    assert not folder.exists()
    async with EdgeStore(folder, free=Disk()) as store:
        assert await store.count() == 0


async def test_the_pipeline_waits_for_room_and_queries_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.store.retrying._WAITS_S", (0.01,))
    disk, began = Disk(), asyncio.Event()
    async with EdgeStore(tmp_path, free=disk) as bare:
        store = RetryingStore(bare, lambda waiting: began.set())
        await store.upsert([window(n) for n in range(10)])
        disk.free = 0
        writing = asyncio.create_task(store.upsert([window(10)]))
        await began.wait()
        assert store.waiting_for is not None
        assert "nearly full" in store.waiting_for
        assert len(await StoreQueries(bare, lambda: None).windows(Filter(), 100)) == 10  # type: ignore[arg-type, return-value]
        disk.free = 10 * MIN_FREE_BYTES
        await writing
        assert store.waiting_for is None
        assert await store.count() == 11


ENGINE = {
    "full": (Exception("Service internal error: IO Error: No space left on device (os error 28)"), StoreUnavailable),
    "quota": (OSError(122, "Disk quota exceeded"), StoreUnavailable),
    "read-only": (Exception("IO Error: Read-only file system (os error 30)"), StoreError),
    "not ours": (PermissionError(13, "Permission denied"), StoreError),
    "other": (Exception("Wrong input: Vector dimension error"), StoreError),
}


@pytest.mark.parametrize("name", ENGINE)
def test_what_the_engine_raises_is_waited_for_only_where_room_mends_it(name: str) -> None:
    error, kind = ENGINE[name]
    found = _classified(error, Path("/data"))
    assert type(found) is kind
    assert "/data" in str(found)


async def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        await EdgeStore(tmp_path / "file" / "store").__aenter__()


async def test_a_mistake_of_ours_is_not_called_a_failure_of_the_store(tmp_path: Path) -> None:
    async with EdgeStore(tmp_path) as store:
        with pytest.raises(TypeError):
            await store.upsert([point(1, odd=object())])


def test_free_bytes_are_those_of_the_folder_that_will_be_made(tmp_path: Path) -> None:
    found = os.statvfs(tmp_path)
    assert abs(free_bytes(tmp_path / "a" / "b") - found.f_bavail * found.f_frsize) < 2**30


_FILLER = """
import asyncio, sys
from pathlib import Path
from streams.store.base import StoreUnavailable
from streams.store.edge import EdgeStore
from tests.integration.test_store_contract import point

async def main():
    folder = Path(sys.argv[1]) / "store"
    written = 0
    try:
        async with EdgeStore(folder) as store:
            for batch in range(2000):
                await store.upsert([point(batch * 64 + n, filler="x" * 2000) for n in range(64)])
                written += 64
    except StoreUnavailable as error:
        print(error)
    try:
        await EdgeStore(folder).__aenter__()
    except StoreUnavailable as error:
        print(error)
    print(written)

asyncio.run(main())
"""


def _on_small_disk(folder: Path, mib: int, script: str) -> subprocess.CompletedProcess[str]:
    """Run Python with a file system of `mib` MiB mounted at `folder`, in a mount namespace of its own."""
    root = Path(__file__).resolve().parents[2]
    inside = f'mount -t tmpfs -o size={mib}m tmpfs "$1" && exec "$2" -c "$3" "$1"'
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    command = ["unshare", "--mount", *user, "sh", "-c", inside, "sh", str(folder), sys.executable, script]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=250, check=False)


def can_mount(folder: Path) -> bool:
    try:
        return _on_small_disk(folder, 1, "print('mounted')").stdout == "mounted\n"
    except OSError:
        return False


def test_a_disk_that_fills_up_never_kills_the_process(tmp_path: Path) -> None:
    """On a real file system of 160 MiB; where none can be mounted, the tests above hold the guard alone."""
    if not can_mount(tmp_path):
        pytest.skip("no file system can be mounted here: the guard is tested with given free bytes only")
    ended: Any = _on_small_disk(tmp_path, 160, _FILLER)
    assert ended.returncode == 0, ended.stderr
    full, again, written = ended.stdout.splitlines()
    for line in (full, again):
        assert "nearly full" in line
        assert str(tmp_path) in line
    assert int(written) > 1000
