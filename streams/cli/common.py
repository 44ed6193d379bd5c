"""What every command shares: options, settings, output, and how errors end."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console

from streams.broker import BrokerError, JarError
from streams.kafka_clients import KafkaUnreachable
from streams.queries import QueryError
from streams.settings import Settings, SettingsError, load_settings
from streams.store.base import StoreError
from streams.topics import TopicsError
from streams.versions import VersionError

T = TypeVar("T")
console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


class CommandError(Exception):
    """A command that cannot do what it was asked; one line, with what mends it."""


def _model_error() -> type[Exception]:
    from models.errors import ModelError

    return ModelError


def _recording_error() -> type[Exception]:
    from streams.recording import RecordingError

    return RecordingError


EXPECTED: tuple[type[Exception], ...] = (
    BrokerError,
    CommandError,
    JarError,
    KafkaUnreachable,
    QueryError,
    SettingsError,
    StoreError,
    TopicsError,
    VersionError,
    _model_error(),
    _recording_error(),
    OSError,
)

StateOption = Annotated[
    Path | None, typer.Option("--state", help="Folder for the embedded Kafka's and store's data.", show_default=False)
]
KafkaOption = Annotated[
    str | None,
    typer.Option("--kafka", help="Bootstrap servers host:port[,...] of a cluster; default: the embedded Kafka."),
]
StoreOption = Annotated[
    str | None, typer.Option("--store", help="edge:DIR or http://host:6333; default: embedded in the state folder.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
StreamOption = Annotated[str | None, typer.Option("--stream", help="Only this stream.")]
FromOption = Annotated[str | None, typer.Option("--from", help="Only moments from then on (RFC 3339 or epoch ms).")]
ToOption = Annotated[str | None, typer.Option("--to", help="Only moments before then (RFC 3339 or epoch ms).")]


def settings_of(state: Path | None = None, kafka: str | None = None, store: str | None = None, **more: Any) -> Settings:
    """Settings in force, with what was given on the command line on top; logs are set up by them."""
    from streams.logs import configure_logs

    settings = load_settings(state=state, kafka=kafka, store=store, **more)
    configure_logs(settings)
    return settings


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine; an expected error inside a group of tasks is shown as itself."""
    try:
        return asyncio.run(work)
    except BaseExceptionGroup as group:
        leaf: BaseException = group
        while isinstance(leaf, BaseExceptionGroup):
            leaf = leaf.exceptions[0]
        raise leaf from None


def fail(error: BaseException) -> NoReturn:
    """One clear line on standard error, status 1."""
    said = str(error) or repr(error)
    if isinstance(error, OSError) and error.filename is not None:
        said = f"{error.filename}: {error.strerror}"
    errors.print(f"[bold red]error:[/] {_escaped(said)}", soft_wrap=True)
    if os.environ.get("SENSORIUM_TRACEBACK"):
        raise error
    sys.exit(1)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def print_json(value: Any) -> None:
    """JSON on standard output, stable and complete."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def parse_time(text: str | None) -> int | None:
    """Epoch ms of `--from` and `--to`."""
    if text is None:
        return None
    if text.isdigit():
        return int(text)
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise CommandError(f"{text!r} is not a time; write 2026-01-01T12:00:00Z or epoch milliseconds") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def clock(time_ms: int | None) -> str:
    """A time as people read it, UTC."""
    return "-" if time_ms is None else datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
