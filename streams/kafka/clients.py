"""How to reach Kafka: bootstrap servers, TLS and SASL, the same for every client.

`SENSORIUM_KAFKA` names any cluster; without it the embedded one is meant, which some process runs on the state folder.
"""

from __future__ import annotations

import logging
import ssl
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from streams.errors import DependencyError
from streams.kafka import unpacking
from streams.kafka.embedded import running_bootstrap
from streams.settings import Settings

_REQUEST_TIMEOUT_MS = 40_000


class KafkaUnreachable(DependencyError):
    """No broker answers; the message names the command that mends it."""


def find_bootstrap(settings: Settings) -> str:
    """`host:port[,...]` of the configured cluster, or of the embedded Kafka that runs on the state folder."""
    if settings.kafka:
        return settings.kafka
    running = running_bootstrap(settings.state)
    if running is None:
        raise KafkaUnreachable(
            f"no Kafka runs on {settings.state}; start one with: sensorium up --state {settings.state}  "
            "(or name a cluster with SENSORIUM_KAFKA=host:port)"
        )
    return running


def ssl_context(settings: Settings) -> ssl.SSLContext | None:
    """TLS towards the brokers, or None where the protocol has none."""
    security = settings.security
    if security.protocol not in ("SSL", "SASL_SSL"):
        return None
    context = ssl.create_default_context(cafile=str(security.ca_file) if security.ca_file else None)
    if security.cert_file:
        password = security.key_password.get_secret_value() if security.key_password else None
        context.load_cert_chain(security.cert_file, security.key_file, password)
    return context


def client_options(settings: Settings, bootstrap: str) -> dict[str, Any]:
    """Keyword arguments that every aiokafka client takes."""
    security = settings.security
    options: dict[str, Any] = {
        "bootstrap_servers": bootstrap,
        "security_protocol": security.protocol,
        "ssl_context": ssl_context(settings),
    }
    if security.protocol.startswith("SASL"):
        options["sasl_mechanism"] = security.mechanism
        options["sasl_plain_username"] = security.username
        options["sasl_plain_password"] = security.password.get_secret_value() if security.password else None
    return options


def new_producer(settings: Settings, bootstrap: str, **options: Any) -> AIOKafkaProducer:
    """An idempotent producer with `acks=all`: no repeats and no gaps by its own retries."""
    defaults: dict[str, Any] = {
        "acks": "all",
        "enable_idempotence": True,
        "linger_ms": 5,
        "max_request_size": settings.max_record_bytes,
        "request_timeout_ms": _REQUEST_TIMEOUT_MS,
    }
    return AIOKafkaProducer(**client_options(settings, bootstrap), **(defaults | options))


def new_consumer(settings: Settings, bootstrap: str, **options: Any) -> AIOKafkaConsumer:
    """A consumer without a group that commits nothing, of committed records only: for reading topics from the side.

    What it cannot unpack comes as `unpacking.UnreadableRecord`.
    """
    unpacking.install()
    defaults: dict[str, Any] = {
        "enable_auto_commit": False,
        "auto_offset_reset": "earliest",
        "isolation_level": "read_committed",
        "fetch_max_wait_ms": 100,
        "max_partition_fetch_bytes": 4 * 1_048_576,
        "request_timeout_ms": _REQUEST_TIMEOUT_MS,
    }
    return AIOKafkaConsumer(**client_options(settings, bootstrap), **(defaults | options))


async def open_admin(settings: Settings, bootstrap: str) -> AIOKafkaAdminClient:
    """A connected admin client. Raises `KafkaUnreachable`."""
    admin = AIOKafkaAdminClient(**client_options(settings, bootstrap), request_timeout_ms=_REQUEST_TIMEOUT_MS)
    with _ConnectionErrors() as logged:
        try:
            await admin.start()
        except (KafkaError, OSError, ValueError) as error:
            await admin.close()
            named = f" --kafka {bootstrap}" if settings.kafka else ""
            why = logged.first_line or error
            raise KafkaUnreachable(
                f"Kafka at {bootstrap} does not answer ({why}); check it with: sensorium doctor{named}"
            ) from None
    return admin


class _ConnectionErrors(logging.Handler):
    """aiokafka logs why it could not connect, and raises that it could not."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.first_line = ""
        self._propagated = True

    def __enter__(self) -> Self:
        logger = logging.getLogger("aiokafka")
        self._propagated, logger.propagate = logger.propagate, False  # it is part of the error
        logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logger = logging.getLogger("aiokafka")
        logger.removeHandler(self)
        logger.propagate = self._propagated

    def emit(self, record: logging.LogRecord) -> None:
        self.first_line = record.getMessage().splitlines()[0].removeprefix("Unable connect to ")


async def cluster_id(settings: Settings, bootstrap: str) -> str:
    """The id of the cluster: record offsets kept in the store are valid for this one only."""
    admin = await open_admin(settings, bootstrap)
    try:
        return str((await admin.describe_cluster())["cluster_id"])
    finally:
        await admin.close()
