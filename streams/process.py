"""What concerns the process as a whole: its memory allocator, its garbage collector, signals and the terminal."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import signal
from collections.abc import Iterator
from typing import Any

_M_ARENA_MAX = -8  # malloc.h


def limit_malloc_arenas() -> None:
    """Let all threads of this process allocate from one arena, where the C library is glibc.

    In an arena of its own a thread gives memory back and asks for it again with every batch: the models took 300 page
    faults a window, a tenth of their time.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def freeze_gc() -> None:
    """Keep the garbage collector from what is loaded by now, torch above all: it stays for good.

    Every full collection walked through half a million objects and held up the event loop for 0.1 to 0.3 s.
    """
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()


@contextlib.contextmanager
def stop_on_signals() -> Iterator[asyncio.Event]:
    """An event that SIGINT, SIGTERM and a closed terminal set; a second signal ends the process at once, as usual."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    names = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        names.append(signal.SIGHUP)

    def ask(name: Any) -> None:
        stop.set()
        if name == signal.SIGHUP:
            _detach_terminal()
        else:
            loop.remove_signal_handler(name)

    for name in names:
        loop.add_signal_handler(name, ask, name)
    try:
        yield stop
    finally:
        for name in names:
            loop.remove_signal_handler(name)


def _detach_terminal() -> None:
    """Output on the way out would fail: the terminal is gone."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
