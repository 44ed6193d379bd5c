"""Room on the disk of an embedded store, looked at before it is written.

The engine grows memory-mapped files sparsely: on a full disk the kernel kills the process with SIGBUS at some later
write, without a word. So the room is looked at first, and a store that has none waits like a server that is away.
"""

from __future__ import annotations

import os
from pathlib import Path

from streams.store.base import StoreUnavailable

# A batch of 256 windows takes about 4 MB; a new segment of the write-ahead log is 32 MB; others write to the same disk.
MIN_FREE_BYTES = 128 * 1_048_576


def free_bytes(folder: Path) -> int:
    """Bytes that an unprivileged process may still write where `folder` is, or will be."""
    while not folder.exists():
        folder = folder.parent
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def check_free(folder: Path, free: int, least: int) -> None:
    """Raises `StoreUnavailable` where fewer than `least` bytes are free."""
    if free < least:
        raise StoreUnavailable(
            f"the disk of {folder} is nearly full: {free:,} bytes are free, {least:,} are needed to write safely; free "
            "some room there, or move the folder to a larger disk and name it with --store edge:DIR"
        )
