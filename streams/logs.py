"""Structured logs to standard error: console lines, or one JSON object a line."""

from __future__ import annotations

import logging
import sys
import time

import structlog

from streams.settings import Settings

_WARNINGS_ONLY = ("aiokafka", "faust", "mode", "streams.kafka.consumer", "httpx")  # verbose at level info
_LIBRARIES = ("aiokafka", "asyncio", "faust", "httpx", "mode", "uvicorn")
_DROPPED = ("aiokafka.consumer.group_coordinator",)  # retries by itself; if that fails, the worker logs it


def configure_logs(settings: Settings, *, service: bool = True) -> None:
    """Route structlog and the standard library's loggers to one handler.

    `service` false is for a command that prints its result and ends. It reports its own errors: only warnings are
    logged, and nothing by libraries, unless the level is `debug`.
    """
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    quiet = not service and level > logging.DEBUG
    for name in _LIBRARIES:
        logger = logging.getLogger(name)
        logger.propagate = not quiet
        logger.handlers[:] = [logging.NullHandler()] if quiet else []  # none: printed unformatted
    if quiet:
        level = max(level, logging.WARNING)
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    renderer: structlog.typing.Processor
    if settings.log_format == "json":
        shared.append(structlog.processors.format_exc_info)
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
            foreign_pre_chain=shared,
        )
    )
    handler.addFilter(RateLimited())
    for name in _WARNINGS_ONLY:
        logging.getLogger(name).setLevel(logging.WARNING)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


class RateLimited(logging.Filter):
    """Passes one warning of each kind per interval, with the number suppressed since the last one.

    While a broker is away aiokafka logs four errors every 100 ms.
    """

    def __init__(self, interval_s: float = 30.0) -> None:
        super().__init__()
        self._interval_s = interval_s
        self._last: dict[tuple[str, int, str], float] = {}
        self._suppressed: dict[tuple[str, int, str], int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        if record.name in _DROPPED:
            return False
        kind = (record.name, record.levelno, str(record.msg))
        now = time.monotonic()
        if now - self._last.get(kind, -1e9) < self._interval_s:
            self._suppressed[kind] = self._suppressed.get(kind, 0) + 1
            return False
        suppressed = self._suppressed.pop(kind, 0)
        self._last[kind] = now
        if suppressed:
            record.msg = f"{record.msg} (and {suppressed} more like it)"
        return True
