"""Shared by all commands: options, settings, output, errors and their exit status.

Exit status: 0 done; 1 `doctor` found something wrong; 2 to 5 as in `streams.errors`; 130 and 143 ended by Ctrl-C and
SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from aiokafka.errors import KafkaError
from rich.console import Console
from rich.table import Table

from models.errors import ModelError
from streams.errors import ConfigError, DataError, DependencyError, SensoriumError, UsageError
from streams.settings import Settings, load_settings

T = TypeVar("T")
CommandError = UsageError  # wrong options or arguments; the message names the right ones
console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

EXPECTED: tuple[type[Exception], ...] = (SensoriumError, ModelError, KafkaError, OSError)

StateOption = Annotated[
    Path | None,
    typer.Option("--state", metavar="DIR", help="Folder with the data of this installation; default: sensorium-state."),
]
KafkaOption = Annotated[
    str | None,
    typer.Option("--kafka", metavar="HOST:PORT[,...]", help="A Kafka cluster; default: the embedded Kafka."),
]
StoreOption = Annotated[
    str | None,
    typer.Option("--store", metavar="URL", help="edge:DIR or http://host:6333; default: edge:<state>/store."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
StreamOption = Annotated[str | None, typer.Option("--stream", metavar="NAME", help="Only this stream.")]
FromOption = Annotated[
    str | None, typer.Option("--from", metavar="TIME", help="From this time on: 2026-01-01T12:00:00Z or epoch ms.")
]
ToOption = Annotated[str | None, typer.Option("--to", metavar="TIME", help="Before this time.")]


def examples(*lines: str) -> str:
    """The examples at the end of a command's help; each works as it is."""
    return "\n".join(("\b", "Examples:", *(f"  {line}" for line in lines)))


def settings_of(
    state: Path | None = None, kafka: str | None = None, store: str | None = None, *, service: bool = False, **more: Any
) -> Settings:
    """The settings in force, command line first; also sets up logging.

    `service`: the command runs until it is stopped, and its log is for operators. Raises `SettingsError`.
    """
    from streams.logs import configure_logs
    from streams.settings_report import check

    settings = load_settings(state=state, kafka=kafka, store=store, **more)
    configure_logs(settings, service=service)
    if service:
        check(settings)
    return settings


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine. SIGTERM and SIGHUP cancel it; of an exception group the first error is raised."""

    async def cancellable() -> T:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        for name in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(name) != signal.SIG_IGN:  # as under nohup
                loop.add_signal_handler(name, task.cancel)
        return await work

    try:
        return asyncio.run(cancellable())
    except asyncio.CancelledError:
        with contextlib.suppress(OSError):
            errors.print("stopped before it was done")
        raise typer.Exit(128 + signal.SIGTERM) from None
    except BaseExceptionGroup as group:
        leaf: BaseException = group
        while isinstance(leaf, BaseExceptionGroup):
            leaf = leaf.exceptions[0]
        raise leaf from None


def exit_code(error: BaseException) -> int:
    """The exit status of an expected error; 4 for one of Kafka or the network, 5 for one of a file."""
    if isinstance(error, SensoriumError):
        return error.exit_code
    if isinstance(error, ModelError):
        return ConfigError.exit_code
    of_file = isinstance(error, OSError) and error.filename is not None
    return DataError.exit_code if of_file else DependencyError.exit_code


def fail(error: BaseException) -> NoReturn:
    """End the process with one line on standard error and the exit status of the error."""
    message = str(error) or repr(error)
    if isinstance(error, OSError) and error.filename is not None:
        message = f"{error.filename}: {error.strerror}"
    elif isinstance(error, KafkaError):
        message = f"Kafka: {message}; check it with: sensorium doctor"
    errors.print(f"[bold red]error:[/] {_escaped(message)}", soft_wrap=True)
    if os.environ.get("SENSORIUM_TRACEBACK"):
        raise error
    sys.exit(exit_code(error))


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def print_json(value: Any) -> None:
    """Print a value as JSON on standard output, in full."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def print_table(names: Sequence[str], rows: Sequence[Sequence[str]], *, folded: int | None = None) -> None:
    """Print columns. In a terminal only column `folded` wraps; in a pipe nothing is wrapped or cut."""
    if not console.is_terminal:
        widths = [max(len(row[n]) for row in (names, *rows)) for n in range(len(names))]
        for row in (names, *rows):
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            sys.stdout.write("  ".join(cells).rstrip() + "\n")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for n, name in enumerate(names):
        table.add_column(name, no_wrap=n != folded, overflow="fold")
    for row in rows:
        table.add_row(*(_escaped(cell) for cell in row))
    console.print(table)


def say(text: str, style: str | None = None) -> None:
    """Print a line as it is: no markup, not wrapped."""
    console.print(text, style=style, markup=False, soft_wrap=True)


def parse_time(text: str | None) -> int | None:
    """Epoch ms of `--from` or `--to`; a time without a zone is UTC. Raises `CommandError`."""
    if text is None:
        return None
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise CommandError(f"{text!r} is not a time; write 2026-01-01T12:00:00Z or epoch milliseconds") from None


def parse_range(from_: str | None, to: str | None) -> tuple[int | None, int | None]:
    """Epoch ms of `--from` and `--to`. Raises `CommandError` where the range is empty."""
    start, end = parse_time(from_), parse_time(to)
    if start is not None and end is not None and start >= end:
        raise CommandError(f"--from {from_} is not before --to {to}; the range would be empty")
    return start, end


def clock(time_ms: int | None) -> str:
    """A time (epoch ms) for the terminal, in UTC; "-" for None."""
    if time_ms is None:
        return "-"
    try:
        return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return str(time_ms)


def lasted(ms: int) -> str:
    """A duration (ms) in seconds, minutes or hours."""
    seconds = round(ms / 1000)
    if seconds < 120:
        return f"{seconds} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
