"""`sensorium doctor`: every part the service depends on, checked one by one, with the command that mends it."""

from __future__ import annotations

import asyncio
import importlib
import shutil
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from models.errors import ModelError
from streams.kafka.admin import TopicsError, check_topics, describe_topics
from streams.kafka.clients import KafkaUnreachable, find_bootstrap
from streams.kafka.jars import JarError, class_path
from streams.serving.client import worker_url
from streams.settings import Settings
from streams.settings_report import problems
from streams.store import open_store
from streams.store.base import StoreError, StoreLocked

_FREE_BYTES = 2 * 1024**3


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    part: str
    level: Literal["ok", "warning", "error"]
    text: str

    def to_json(self) -> dict[str, str]:
        return {"part": self.part, "level": self.level, "text": self.text}


async def examine(settings: Settings) -> list[Finding]:
    """Run every check; one that fails with an exception is a finding, not a crash."""
    checks: list[tuple[str, Callable[[Settings], Awaitable[Finding]]]] = [
        ("python", _python),
        ("settings", _settings),
        ("disk", _disk),
        ("torch", _torch),
        ("model", _model),
        ("java", _java),
        ("codecs", _codecs),
        ("kafka", _kafka),
        ("topics", _topics),
        ("store", _store),
        ("worker", _worker),
    ]
    findings = []
    for part, check in checks:
        try:
            findings.append(await asyncio.wait_for(check(settings), 60))
        except Exception as error:
            findings.append(Finding(part, "error", f"{type(error).__name__}: {error}"))
    return findings


async def _python(_: Settings) -> Finding:
    return Finding("python", "ok", sys.version.split()[0])


async def _settings(settings: Settings) -> Finding:
    found = problems(settings)
    return Finding("settings", "error", "; ".join(found)) if found else Finding("settings", "ok", "usable")


async def _disk(settings: Settings) -> Finding:
    folder = settings.state
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    text = f"{free / 1024**3:.0f} GB free for {settings.state}"
    return Finding("disk", "ok" if free > _FREE_BYTES else "warning", text)


async def _torch(_: Settings) -> Finding:
    try:
        torch = await asyncio.to_thread(importlib.import_module, "torch")
        audio = await asyncio.to_thread(importlib.import_module, "torchaudio")
    except (ImportError, OSError) as error:
        why = "torchaudio 2.11 needs a CUDA build of torch (2.11 to 2.14), also on a machine without a GPU"
        return Finding("torch", "error", f"{error}; {why}; mend with: make clean setup")
    return Finding("torch", "ok", f"torch {torch.__version__}, torchaudio {audio.__version__}")


async def _model(settings: Settings) -> Finding:
    def load() -> Any:
        import models

        return models.load(settings.model)

    try:
        model = await asyncio.to_thread(load)
    except ModelError as error:
        return Finding("model", "error", str(error))
    return Finding("model", "ok", model.version)


async def _java(settings: Settings) -> Finding:
    if settings.kafka:
        return Finding("java", "ok", f"not needed: Kafka is at {settings.kafka}")
    try:
        jars = await asyncio.to_thread(class_path)
    except JarError as error:
        return Finding("java", "error", str(error))
    return Finding("java", "ok", f"{len(jars.split(':'))} Kafka jars, all as pinned")


async def _codecs(_: Settings) -> Finding:
    """Producers choose how their batches are compressed, and a topic's compression.type chooses for all of them."""
    from aiokafka import codec

    checks = {"gzip": codec.has_gzip, "snappy": codec.has_snappy, "lz4": codec.has_lz4, "zstd": codec.has_zstd}
    missing = [name for name, has in checks.items() if not has()]
    if missing:
        text = f"batches compressed with {', '.join(missing)} cannot be read: cramjam is missing; mend with: make setup"
        return Finding("codecs", "error", text)
    return Finding("codecs", "ok", ", ".join(checks))


async def _kafka(settings: Settings) -> Finding:
    try:
        bootstrap = find_bootstrap(settings)
        await describe_topics(settings, bootstrap)
    except KafkaUnreachable as error:
        # the embedded one comes with `up`; another one has to be there
        return Finding("kafka", "error" if settings.kafka else "warning", str(error))
    return Finding("kafka", "ok", f"answers at {bootstrap}")


async def _topics(settings: Settings) -> Finding:
    try:
        states = await describe_topics(settings, find_bootstrap(settings))
        check_topics(states)
    except KafkaUnreachable:
        return Finding("topics", "warning", "not looked at: Kafka does not answer")
    except TopicsError as error:
        return Finding("topics", "error", str(error))
    warnings = [state.warning for state in states if state.warning is not None]
    if warnings:
        return Finding("topics", "warning", "; ".join(warnings))
    return Finding("topics", "ok", f"{len(states)} topics, inputs with {states[0].partitions} partitions each")


async def _store(settings: Settings) -> Finding:
    url = settings.store_url
    if url.startswith("edge:") and not Path(url.removeprefix("edge:")).is_dir():
        return Finding("store", "ok", f"{url} will be made")
    try:
        async with open_store(settings) as store:
            info = await store.info()
    except StoreLocked as error:
        if worker_url(settings.state) is not None:
            return Finding("store", "ok", f"{url} is open in the running worker")
        return Finding("store", "error", str(error))
    except StoreError as error:
        return Finding("store", "error", str(error))
    return Finding("store", "ok", f"{info.kind} {info.version} at {info.location}, {info.points} windows")


async def _worker(settings: Settings) -> Finding:
    import httpx

    url = worker_url(settings.state)
    if url is None:
        return Finding("worker", "warning", f"none runs here; start with: sensorium up --state {settings.state}")
    async with httpx.AsyncClient(base_url=url, timeout=10, trust_env=False) as http:
        details = (await http.get("/readyz")).json()
    if details["ready"]:
        return Finding("worker", "ok", f"ready at {url}, {details['backlog']} waiting")
    return Finding("worker", "warning", f"at {url}, not ready: {'; '.join(details['reasons'])}")
