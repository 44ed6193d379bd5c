"""`sensorium demo`: Kafka, store, worker and a simulated plant in one process, shown by `live_table`."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from streams.cli.live_table import elapsed, show
from streams.logs import configure_logs
from streams.pipeline.status import StatusTable
from streams.process import stop_on_signals
from streams.service import StoppedEarly, running_service, start_unless_stopped
from streams.settings import load_settings
from streams.sources.plant_feed import feed

_PREFIX = "sensorium-demo-"
_WINDOW = {"size_ms": 5_000, "hop_ms": 5_000, "allowed_lateness_ms": 10_000, "idle_timeout_ms": 4_000}
# a simulated plant must not reach a cluster that the environment names
_LOCAL_ONLY = {"kafka": "", "security": {"protocol": "PLAINTEXT"}, "replication": 1, "broker_port": 0, "http_port": 0}
_HISTORY_S = 300.0  # of the plant's past: enough to learn what is normal
_STORE_DAYS = 0.1  # a demo that is left running must not fill the disk
_TOPIC_HOURS = 0.25


async def run_demo(
    console: Console, *, streams: int, seconds: float | None, started: float, keep: Path | None = None
) -> None:
    """Run until a signal, or for `seconds`; `started` is a monotonic time in seconds.

    `keep`: the state folder; None: a temporary one, removed at the end.
    """
    with contextlib.suppress(StoppedEarly), _folder(keep) as folder, stop_on_signals() as stop:
        limits = {} if keep else {"retention_days": _STORE_DAYS, "topic_retention_hours": _TOPIC_HOURS}
        settings = load_settings(
            state=folder, log_level="error", window=_WINDOW, **_LOCAL_ONLY, store=f"edge:{folder}/store", **limits
        )
        configure_logs(settings)
        console.print("starting Kafka, the store and a worker ...")
        status = StatusTable()
        async with start_unless_stopped(running_service(settings, stop, status), stop) as service:
            console.print(f"{elapsed(started)} ready: Kafka {service.bootstrap}, API {service.url}", soft_wrap=True)
            plant = asyncio.create_task(
                feed(settings, service.bootstrap, stop, streams=streams, history_s=_HISTORY_S), name="plant"
            )
            plant.add_done_callback(lambda _: stop.set())  # it ends with the demo, or by an error
            timer = asyncio.create_task(_stop_after(seconds, stop), name="timer")
            try:
                hint = f"Ctrl-C stops. Elsewhere: sensorium streams --state {folder}"
                await show(status, console, stop, started, hint)
            finally:
                stop.set()
                timer.cancel()
                await asyncio.gather(plant, timer, return_exceptions=True)
        if not plant.cancelled() and (error := plant.exception()) is not None:
            raise error
    console.print("stopped; nothing is left behind" if keep is None else f"stopped; the data is in {folder}")


async def _stop_after(seconds: float | None, stop: asyncio.Event) -> None:
    if seconds is None:
        return
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
    stop.set()


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    """The state folder. A temporary one is removed at the end; those of killed demos are removed first."""
    if keep is not None:
        yield keep
        return
    remove_abandoned(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    with (folder / "demo.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(parent: Path, min_age_s: float = 1.0) -> list[Path]:
    """Remove the folders of demos that run no more, and whose Kafka does not either; returns them.

    Younger ones are kept: their demo may not have locked them yet.
    """
    removed = []
    for folder in parent.glob(_PREFIX + "*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_uid != os.getuid() or time.time() - folder.stat().st_ctime < min_age_s:
                continue
            if _is_unlocked(folder / "demo.lock") and _is_unlocked(folder / "kafka" / "lock"):
                shutil.rmtree(folder)
                removed.append(folder)
    return removed


def _is_unlocked(path: Path) -> bool:
    """Whether no running process holds this lock."""
    if not path.exists():
        return True
    with path.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True
